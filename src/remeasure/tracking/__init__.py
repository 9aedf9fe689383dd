"""Who watches a run: MLflow and the terminal."""
