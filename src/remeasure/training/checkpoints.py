"""Checkpoint files that end with the SHA-256 of their content: written atomically, verified before use."""

import hashlib
import os
from pathlib import Path
from typing import Literal

from remeasure.spec.base import InputError
from remeasure.system.paths import naming, refuse_no_file

DIGEST_BYTES = hashlib.sha256().digest_size


def keep_checkpoint(partial: Path, checkpoint: Path) -> None:
    """Append the SHA-256 to a file that was just written, fsync it, and rename it to `checkpoint`."""
    with naming(partial), partial.open("r+b") as handle:
        digest = hashlib.file_digest(handle, "sha256").digest()
        handle.write(digest)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, checkpoint)


def unusable(checkpoint: Path, reason: object) -> InputError:
    """The error for an intact checkpoint that is not of this run: someone put it there."""
    what = f"{checkpoint}: not a checkpoint of this run, and nothing in it was executed"
    return InputError(f"{what}; remove it, and the run begins again ({' '.join(str(reason).split())[:300]})")


def sound(checkpoint: Path) -> Literal["used", "none", "corrupt"]:
    """Whether the run can resume from the checkpoint; a corrupt one is removed."""
    if not checkpoint.exists():
        return "none"
    digest, left = hashlib.sha256(), checkpoint.stat().st_size - DIGEST_BYTES
    with refuse_no_file(checkpoint).open("rb") as handle:
        while left > 0 and (piece := handle.read(min(left, 2**20))):
            digest.update(piece)
            left -= len(piece)
        if left == 0 and handle.read() == digest.digest():
            return "used"
    checkpoint.unlink()
    return "corrupt"
