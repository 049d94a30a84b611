"""Verification of a teacher: BatchNorm remembers its training images, and the test images should look alike.

Weights load without an error into any function with the same names and shapes. Another activation, stem, pooling,
normalisation or channel order than in training shows in the statistics at the inputs of BatchNorm.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from cudfkd_jax.data import Split
from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.models.capture import BN, BNStatistics, Variables, batch_norm_layers
from cudfkd_jax.models.classifier import Classifier

_IMAGES, _PIXELS = 512, 512 * 256**2  # at most, of all images
_AT_ONCE = 512 * 64**2  # pixels of a pass
# `results/verification/table.md`: right teachers deviate by at most 0.010 on 512 images and, as a rule, 0.018 on
# 64, those of BGR images by 0.06. Deep ones can deviate by more in evaluation mode; in training mode by 0.005.
_LIMIT, _LIMIT_IN_TRAINING, _LIMIT_TIMES_IMAGES = 0.015, 0.008, 1.0


class Verification(NamedTuple):
    """A teacher on some of the test images.

    Attributes:
        images: number of images.
        accuracy: share of them that it classifies right, in percent.
        chance: the accuracy, in percent, below which it is no better than chance.
        deviation: the largest relative deviation of a BatchNorm layer; 0 without BatchNorm.
        layer: the layer, as a path of module names.
        in_training: the largest one in training mode, measured where `deviation` is above the limit.
        probabilities: whether the outputs are probabilities rather than logits.
        depends: whether the outputs for an image depend on the other images of its batch.
    """

    images: int
    accuracy: float
    chance: float
    deviation: float
    layer: str
    in_training: float | None = None
    probabilities: bool = False
    depends: bool = False

    @property
    def limit(self) -> float:
        """The largest deviation of a teacher that computes what it was trained to compute."""
        return _LIMIT + _LIMIT_TIMES_IMAGES / self.images

    @property
    def is_guessing(self) -> bool:
        """Whether the accuracy is near chance."""
        return self.accuracy < self.chance

    @property
    def is_strange(self) -> bool:
        """Whether the statistics are not those of the training."""
        return self.deviation > self.limit

    @property
    def may_amplify(self) -> bool:
        """Whether the teacher may be right and amplify small differences; see `verify`."""
        limit = _LIMIT_IN_TRAINING + _LIMIT_TIMES_IMAGES / self.images
        return self.is_strange and self.in_training is not None and self.in_training <= limit


def verify(network: Classifier, variables: Variables, test: Split, *, padding: int, flip: bool) -> Verification:
    """Compares the statistics of up to 512 test images, fewer above 256 pixels, with the remembered ones.

    The training images may have been cropped with a border and mirrored, and mixed in pairs (Zhang et al., 2018,
    "mixup: Beyond Empirical Risk Minimization"), which changes the statistics. The images are therefore compared
    as they are, augmented, and augmented and mixed; the smallest deviation counts.

    In evaluation mode a deep network can amplify small differences from layer to layer, on its training images,
    too: a ResNet-50 with 98 % of the digits deviated by 0.2 on test and by 5.7 on training images. In training
    mode, where each layer normalises by the batch, it showed 0.004. That does not make such a teacher right: one
    with another activation, LeakyReLU(0.1), deviated by 0.16 and 0.006.

    Args:
        network, variables: the teacher.
        test: uint8 images and their labels, spread evenly over the classes or sorted by class.
        padding, flip: see `random_crop_flip`.
    """
    count = min(_IMAGES, _PIXELS // math.prod(test.images.shape[1:3]), len(test.labels))
    chosen = np.linspace(0, len(test.labels) - 1, count).astype(int)
    images, labels = test.images[chosen].astype(np.float32) / 255, test.labels[chosen]
    measure = _make_measure(network, variables)
    logits, plain = measure(images)
    every_other = np.arange(len(images)) % 2 == 0
    among_others, _ = measure(images * every_other[:, None, None, None])
    others = _augmented(images, padding=padding, flip=flip)
    deviation, layer = min(_largest(each, variables) for each in (plain, *(measure(x)[1] for x in others)))
    found = Verification(
        images=len(labels),
        accuracy=100 * float(np.mean(np.argmax(logits, axis=1) == labels)),
        chance=chance_limit(logits.shape[-1], len(labels)),
        deviation=deviation,
        layer=layer,
        probabilities=bool(np.all(logits >= 0) and np.allclose(logits.sum(axis=1), 1, atol=1e-3)),
        depends=bool(np.abs(logits - among_others)[every_other].max() > 0.01 * np.abs(logits).max()),
    )
    if found.is_strange and _can_train(network, variables, images):
        measure = _make_measure(network, variables, train=True)
        found = found._replace(in_training=min(float(np.max(measure(x)[1])) for x in (images, *others)))
    return found


def _can_train(network: Classifier, variables: Variables, images: np.ndarray) -> bool:
    """Returns whether a teacher computes something in training mode, which it does not need for anything else."""
    try:
        jax.eval_shape(functools.partial(network, variables, train=True, key=jax.random.key(0)), images)
    except Exception:  # of the user's module, of any type
        return False
    return True


def chance_limit(num_classes: int, images: int) -> float:
    """Returns the accuracy, in percent, below which a classifier is no better than chance on this many images.

    It is that of uniform guesses with three standard deviations and a margin: half of it, at most 5 points. Few
    images do not raise it above half-way to 100.
    """
    share = 1 / num_classes
    deviations = 3 * math.sqrt(share * (1 - share) / images)
    return 100 * min(share + min(0.5 * share, 0.05) + deviations, (1 + share) / 2)


@functools.partial(jax.jit, static_argnames=("padding", "flip"))
def _augmented(images: jax.Array, *, padding: int, flip: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the images augmented, and these each mixed with another one, in uniformly distributed shares."""
    augmented = random_crop_flip(jax.random.key(0), images, padding=padding, flip=flip)
    share_key, order_key = jax.random.split(jax.random.key(1))
    share = jax.random.uniform(share_key, (len(images), 1, 1, 1))
    return augmented, share * augmented + (1 - share) * jax.random.permutation(order_key, augmented)


def largest_deviation(network: Classifier, variables: Variables, images: jax.Array) -> tuple[float, str]:
    """Returns the largest relative deviation of a BatchNorm layer on images, and the layer.

    Args:
        network, variables: the teacher, with BatchNorm.
        images: `[N, H, W, C]` in [0, 1].
    """
    return _largest(_make_measure(network, variables)(images)[1], variables)


def _make_measure(
    network: Classifier, variables: Variables, *, train: bool = False
) -> Callable[[jax.Array | np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns a function from images in [0, 1] to logits and each layer's deviation; large images take passes."""
    key, variables = jax.random.key(0) if train else None, jax.device_put(variables)

    @jax.jit
    def outputs(variables: Variables, images: jax.Array) -> tuple[jax.Array, tuple[BNStatistics, ...]]:
        found = network(variables, images, train=train, capture=(BN,), key=key)
        return found.value, found.bn

    @np.errstate(all="ignore")  # of a teacher whose statistics are not finite
    def measure(images: jax.Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = np.array_split(np.asarray(images), _passes(images.shape))
        found = (jax.device_get(outputs(variables, part)) for part in parts)
        logits, statistics = zip(*found, strict=True)
        shares = np.array([len(part) for part in parts]) / len(images)
        layers = (_together(layer, shares) for layer in zip(*statistics, strict=True))
        deviations = [relative_deviation(layer) for layer in layers]
        return np.concatenate(logits).astype(np.float64), np.array(deviations or [0.0])

    return measure


def _passes(shape: Sequence[int]) -> int:
    """Returns into how many parts to split images; into equal ones if few more do, as each size is compiled."""
    least = min(math.ceil(math.prod(shape[:3]) / _AT_ONCE), shape[0])
    return next((count for count in range(least, 2 * least) if shape[0] % count == 0), least)


def _together(parts: Sequence[BNStatistics], shares: np.ndarray) -> BNStatistics:
    """Returns a layer's statistics on all images from those on parts of them, with the shares of the parts."""
    means, variances = (np.stack(values) for values in list(zip(*parts, strict=True))[:2])
    mean = shares @ means
    return parts[0]._replace(mean=mean, var=shares @ (variances + (means - mean) ** 2))


def _largest(deviations: np.ndarray, variables: Variables) -> tuple[float, str]:
    layers, worst = batch_norm_layers(variables), int(np.argmax(deviations))
    return float(deviations[worst]), layers[worst] if len(layers) == len(deviations) else f"number {worst + 1}"


def relative_deviation(layer: BNStatistics) -> float:
    """Computes (‖μ − μ_bn‖² + ‖σ − σ_bn‖²) / (‖μ_bn‖² + ‖σ_bn‖²), σ the standard deviations.

    It is non-negative; 0 where all statistics are 0.
    """
    std, running_std = np.sqrt(layer.var), np.sqrt(layer.running_var)
    distance = np.sum(np.square(layer.mean - layer.running_mean)) + np.sum(np.square(std - running_std))
    size = np.sum(np.square(layer.running_mean)) + np.sum(np.square(running_std))
    return float(distance / max(size, np.finfo(np.float32).tiny))
