"""The command `remeasure`; also `python -m remeasure`."""

import sys
from typing import NoReturn

from remeasure.cli.commands import main
from remeasure.system import startup


def run() -> NoReturn:
    """The console script: ends the process."""
    startup.run(lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    run()
