"""Measuring a bundle on the test split: evidence and pictures."""
