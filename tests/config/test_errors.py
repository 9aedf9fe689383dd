"""How a command ends where it cannot print."""

from pathlib import Path

import pytest

from remeasure.config.errors import EXIT_FAILED, guarded


def test_output_to_a_full_disk_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with Path("/dev/full").open("w") as file:
            print("97.3", file=file, flush=True)

    assert guarded(main) == EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("what is printed, or a temporary file: No space left on device; everything finished is kept")
