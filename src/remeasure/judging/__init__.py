"""Computes verdicts, table and report from the ledger and results/. Imports no torch, Lightning, MLflow or Hydra."""
