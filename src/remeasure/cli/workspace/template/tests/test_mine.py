"""What remeasure expects of the builder and of the reader. `make test` runs this."""

from pathlib import Path

import my_data
import my_net
import numpy as np
import torch


def test_the_net_maps_images_to_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    net = my_net.build(image_shape=(1, 8, 8), num_classes=10, generator=generator, channels=16)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert sum(each.numel() for each in net.parameters()) == 16 * 9 + 16 + 16 * 4 * 4 * 10 + 10


def test_no_test_image_is_in_the_training_split() -> None:
    train, test = (my_data.read(split, Path("data"), {}, False) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((1297, 1, 8, 8), (500, 1, 8, 8))
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int64)
    known = {image.tobytes() for image in train.images}
    assert not [image for image in test.images if image.tobytes() in known]
