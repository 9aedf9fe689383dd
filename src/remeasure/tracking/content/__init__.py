"""What an MLflow run should hold, computed from files: runs.py for a seed, rows.py for a row. No mlflow."""
