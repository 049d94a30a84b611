"""scikit-learn's handwritten digits: 1,797 real 8x8 images, shipped with the package without a download."""

import importlib.util
from pathlib import Path

import numpy as np

from cudfkd_jax.data.base import Dataset, Request, make_split

_FILE = "datasets/data/digits.csv.gz"  # in scikit-learn's package
_CLASSES = tuple("0123456789")
_MAX_INTENSITY = 16  # a pixel counts the ink pixels of a 4x4 block
_SPLIT_SEED = 0
_TEST_FRACTION = 0.2


def load(request: Request) -> Dataset:
    """Reads the digits as grey images resized bilinearly to the requested height and width.

    The 80/20 split is stratified and independent of a run's seed: a fifth of each class's images, rounded, goes to
    'test'.
    """
    from PIL import Image

    pixels, labels = _read()
    height, width, _ = request.image_shape
    levels = np.rint(pixels * (255 / _MAX_INTENSITY)).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)) for image in levels]
    )[..., None]
    in_test = _test_mask(labels)
    members = {"train": ~in_test, "test": in_test}
    return Dataset(
        num_classes=len(_CLASSES),
        classes=_CLASSES,
        image_shape=(height, width, 1),
        splits={
            split: make_split(images[members[split]], labels[members[split]], len(_CLASSES), "digits")
            for split in request.splits
        },
    )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Returns the images, float `[N, 8, 8]` from 0 to 16, and their labels, int `[N]`.

    They are those of `sklearn.datasets.load_digits`, without the seconds that importing scikit-learn takes.
    """
    found = importlib.util.find_spec("sklearn")
    assert found and found.origin
    rows = np.loadtxt(Path(found.origin).parent / _FILE, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)


def _test_mask(labels: np.ndarray) -> np.ndarray:
    """Returns the mask of the test split, bool [N], from integer labels [N]."""
    # RandomState's stream is frozen, default_rng's is not: the split must not depend on NumPy's version.
    random = np.random.RandomState(_SPLIT_SEED)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        mask[random.permutation(members)[: round(_TEST_FRACTION * len(members))]] = True
    return mask
