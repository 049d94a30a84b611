"""Tests of the strips of synthetic images in README.md and docs/."""

import numpy as np
import pytest
from PIL import Image

import picture_strip


@pytest.mark.parametrize("name", picture_strip.STRIPS)
def test_strip_shows_the_recorded_runs(name):
    made = np.asarray(picture_strip.strip(picture_strip.STRIPS[name]))
    with Image.open(picture_strip.FOLDER / name) as kept:
        np.testing.assert_array_equal(made, np.asarray(kept.convert("RGB")), "run python scripts/picture_strip.py")
    with Image.open(picture_strip.ROOT / picture_strip.STRIPS[name][0]) as first:
        height = first.height // 8
        np.testing.assert_array_equal(made[:height, : first.width], np.asarray(first.convert("RGB"))[:height])
