"""One run: python src/train.py model=mlp4. `--help` lists what can be chosen."""

from remeasure.cli.commands import train_main
from remeasure.system import startup

if __name__ == "__main__":
    startup.run(train_main)
