"""The MLflow model registry: versions with their evidence, and aliases that the gate allows."""
