"""scikit-learn's bundled digits: 1,797 grey 8x8 images (the test part of UCI's optical digits), offline.

The bundle has no official split: the first 1,297 images train, the last 500 test, in the bundle's order.
"""

from pathlib import Path

import numpy as np

from remeasure.data.files import Split, SplitName

NUM_TRAIN = 1297


def read(split: SplitName, root: Path, files_md5: dict[str, str], fetch: bool) -> Split:  # noqa: ARG001
    """Images (N, 1, 8, 8) uint8, the bundle's 0..16 stretched to 0..255, and labels (N,) int64."""
    from sklearn.datasets import load_digits  # 1 s to import

    bundle = load_digits()
    part = slice(NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, None)
    images = (bundle.images[part].astype(np.uint16) * 255 // 16).astype(np.uint8)
    return Split(images=images[:, None], labels=bundle.target[part].astype(np.int64), verified=False)
