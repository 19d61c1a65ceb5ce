"""What every room agrees on: errors, catalog, preprocessing, and the three waists (manifest, bundle, evidence)."""
