"""`python deploy/serve.py [OPTION…]`: become a team's MLflow server, on PostgreSQL and an S3-compatible store.

Every address and password comes from the environment (docs/team.md), so that none is in `ps`; options go to
`mlflow server`. It listens on 127.0.0.1, unless --host says otherwise.
"""

import os
import sys
from pathlib import Path

import boto3
import psycopg

NEEDED = (
    *("PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
)
SHORTEST = 12  # characters that MLflow demands of the administrator's password
SETTINGS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background jobs are for language models
    "MLFLOW_AUTH_CONFIG_PATH": str(Path(__file__).with_name("auth.ini")),
}


def main(*options: str) -> None:
    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        sys.exit(f"set {', '.join(missing)} in the environment: docs/team.md")
    if len(os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]) < SHORTEST:
        sys.exit(f"MLFLOW_AUTH_ADMIN_PASSWORD: expected at least {SHORTEST} characters")
    try:
        psycopg.connect(connect_timeout=10).close()  # MLflow would try for minutes
    except psycopg.OperationalError as error:
        sys.exit(f"PostgreSQL, by PGHOST, PGUSER, PGDATABASE and PGPASSWORD: {error}")
    bucket = os.environ.get("BUCKET", "remeasure")
    store = boto3.client("s3")
    if bucket not in {each["Name"] for each in store.list_buckets()["Buckets"]}:
        store.create_bucket(Bucket=bucket)
    os.environ |= SETTINGS
    from mlflow.cli import cli  # reads the environment

    stores = ("--backend-store-uri", "postgresql+psycopg://", "--artifacts-destination", f"s3://{bucket}")
    cli(["server", "--app-name", "basic-auth", *stores, *options])


if __name__ == "__main__":
    main(*sys.argv[1:])
