"""From the ledger and results/ to verdict, table and report; without torch, Lightning, MLflow and Hydra."""
