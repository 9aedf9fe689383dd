"""The whole table: plan, measure, table, verify. `--help` lists the commands."""

import sys

from remeasure.cli.commands import reproduce_main
from remeasure.system import startup

if __name__ == "__main__":
    startup.run(lambda: reproduce_main(sys.argv[1:]))
