"""The whole table: plan, measure, table, verify. `--help` lists the commands."""

import sys

from remeasure import process
from remeasure.cli import reproduce_main

if __name__ == "__main__":
    process.run(lambda: reproduce_main(sys.argv[1:]))
