"""Removes from a SQLite store what versions before the sections of metrics sent, once it is there by its present names.

MLflow removes no metric, parameter or input. Other stores keep them, beside the present ones.
"""

import sqlite3
from contextlib import closing

from remeasure.tracking.mlflow_store import Store

_METRICS = (
    *("train_loss", "train_accuracy_percent", "test_loss", "test_accuracy_percent", "validation_loss", "lr"),
    *("validation_accuracy_percent", "num_correct", "num_params", "wall_seconds", "mean_percent", "sd_percent"),
    *("interval_low_percent", "interval_high_percent", "published_percent", "gap_pp", "num_seeds", "num_seeds_judged"),
)
_NAMES = ", ".join(f"'{name}'" for name in _METRICS)
_SENT_AGAIN = """
SELECT tags.run_uuid FROM tags JOIN latest_metrics ON latest_metrics.run_uuid = tags.run_uuid
WHERE tags.key IN ('remeasure.run_id', 'remeasure.record', 'remeasure.campaign')
AND (latest_metrics.key LIKE 'train/%' OR latest_metrics.key LIKE 'run/%' OR latest_metrics.key LIKE 'row/%')
"""
_INPUTS = (
    "SELECT input_uuid FROM inputs JOIN datasets ON source_id = dataset_uuid WHERE dataset_source_type = 'remeasure'"
)
_STATEMENTS = (
    f"DELETE FROM metrics WHERE key IN ({_NAMES}) AND run_uuid IN ({_SENT_AGAIN})",
    f"DELETE FROM latest_metrics WHERE key IN ({_NAMES}) AND run_uuid IN ({_SENT_AGAIN})",
    f"DELETE FROM params WHERE (value IN ('null', '[]') OR key LIKE '%sha256' OR key LIKE '%md5.%' "
    f"OR key LIKE '%known_copies%') AND run_uuid IN ({_SENT_AGAIN})",
    f"DELETE FROM input_tags WHERE input_uuid IN ({_INPUTS})",
    f"DELETE FROM inputs WHERE input_uuid IN ({_INPUTS})",
)


def forget_former(store: Store) -> None:
    """To be called when all runs are up to date."""
    if store.database is None:
        return
    with store.locked(), closing(sqlite3.connect(store.database)) as connection, connection:
        for statement in _STATEMENTS:
            connection.execute(statement)
