"""scikit-learn's handwritten digits: 1,797 real 8x8 images, shipped with the package without a download."""

import numpy as np

from cudfkd_jax.data.base import Dataset, Request, make_split

_MAX_INTENSITY = 16  # a pixel counts the ink pixels of a 4x4 block
_SPLIT_SEED = 0
_TEST_FRACTION = 0.2


def load(request: Request) -> Dataset:
    """Reads the digits as grey images resized bilinearly to the requested height and width.

    The 80/20 split is stratified and independent of a run's seed: a fifth of each class's images, rounded, goes to
    'test'.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    height, width, _ = request.image_shape
    levels = np.rint(bunch.images * (255 / _MAX_INTENSITY)).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)) for image in levels]
    )[..., None]
    classes = tuple(str(name) for name in bunch.target_names)
    in_test = _test_mask(bunch.target)
    members = {"train": ~in_test, "test": in_test}
    return Dataset(
        num_classes=len(classes),
        classes=classes,
        image_shape=(height, width, 1),
        splits={
            split: make_split(images[members[split]], bunch.target[members[split]], len(classes), "digits")
            for split in request.splits
        },
    )


def _test_mask(labels: np.ndarray) -> np.ndarray:
    """Returns the mask of the test split, bool [N], from integer labels [N]."""
    # RandomState's stream is frozen, default_rng's is not: the split must not depend on NumPy's version.
    random = np.random.RandomState(_SPLIT_SEED)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        mask[random.permutation(members)[: round(_TEST_FRACTION * len(members))]] = True
    return mask
