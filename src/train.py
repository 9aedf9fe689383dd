"""One run: python src/train.py model=mlp4. `--help` lists what can be chosen."""

from remeasure import process
from remeasure.cli import train_main

if __name__ == "__main__":
    process.run(train_main)
