"""The pictures of the page, read back by Pillow."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from remeasure.judging.report import images


def pixels(uri: str) -> np.ndarray:
    start = "data:image/png;base64,"
    assert uri.startswith(start)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(start)))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_test_image_is_shown_pixel_by_pixel(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    shown = pixels(images.test_image(image))
    np.testing.assert_array_equal(shown if channels == 3 else shown[..., None], image.transpose(1, 2, 0))


def test_filters_are_tiles_on_which_zero_is_grey_and_the_largest_weight_black_or_white() -> None:
    weights = np.zeros((20, 1, 2, 2), np.float16)
    weights[17, 0] = [[0.5, -0.5], [0.25, 0]]
    uri, num, columns = images.filter_sheet(weights, image_shape=(1, 28, 28)) or pytest.fail("no sheet")
    sheet = pixels(uri)
    assert (num, columns, sheet.shape) == (20, 16, (2 * 3 - 1, 16 * 3 - 1))
    assert sheet[3:5, 3:5].tolist() == [[255, 0], [191, 128]]
    assert sheet[:2, :2].tolist() == [[128, 128], [128, 128]]


def test_a_dense_layer_is_shown_as_images_and_other_shapes_are_not() -> None:
    uri, num, _ = images.filter_sheet(np.eye(100, 48), image_shape=(3, 4, 4)) or pytest.fail("no sheet")
    assert num == images.MOST_FILTERS
    assert pixels(uri).shape == (4 * 5 - 1, 16 * 5 - 1, 3)
    assert images.filter_sheet(np.zeros((2, 2)), image_shape=(1, 28, 28)) is None
    assert images.filter_sheet(np.zeros((8, 2, 3, 3)), image_shape=()) is None
    assert images.filter_sheet(np.zeros(0), image_shape=()) is None
