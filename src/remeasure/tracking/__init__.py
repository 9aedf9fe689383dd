"""Observers of a run: MLflow and the terminal."""
