"""The numbers of the paper's Tables II to V (Li et al.), to be set beside those of a run.

Each is at its best epoch on the test images. Loyalty is what the released code computes, `loyalty_released` here.
"""

from typing import NamedTuple


class Pair(NamedTuple):
    """A data set, in the names of `data.name`, and a pair of architectures."""

    dataset: str
    teacher: str
    student: str


_COLUMNS = (
    Pair("cifar10", "resnet34", "resnet18"),
    Pair("cifar10", "vgg11", "resnet18"),
    Pair("cifar10", "wrn40_2", "wrn40_1"),
    Pair("cifar10", "wrn40_2", "wrn16_2"),
    Pair("cifar100", "resnet34", "resnet18"),
    Pair("cifar100", "vgg11", "resnet18"),
    Pair("cifar100", "wrn40_2", "wrn40_1"),
    Pair("cifar100", "wrn40_2", "wrn16_2"),
)
_ACC1: dict[str, tuple[float | None, ...]] = {  # Tables II and III
    "teacher": (95.70, 92.25, 94.87, 94.87, 78.05, 71.32, 75.83, 75.83),
    "scratch": (94.23, 94.23, 91.21, 90.42, 73.24, 73.24, 64.87, 66.61),
    "dafl": (92.22, 81.10, 81.33, 81.55, 67.58, 64.49, 55.06, 55.48),
    "zskt": (91.60, 89.46, 86.07, 89.66, 56.49, 59.83, 44.35, 50.98),
    "adi": (93.26, 90.36, 87.18, 84.50, 69.13, 68.21, 52.25, 51.54),
    "dfq": (94.61, 90.84, 91.69, 92.01, 72.06, 69.37, 63.62, 64.02),
    "cmi": (94.84, 91.13, 92.78, 92.52, 73.75, 69.78, 66.89, 65.11),
    "pre_dfkd": (94.10, None, None, None, 77.10, None, None, None),
    "cudfkd": (95.28, 91.61, 93.18, 92.94, 75.71, 71.22, 66.43, 65.66),
}
_AGREE1 = (98.20, 96.00, 95.27, 95.15, 86.52, 85.85, 71.85, 70.41)  # of CuDFKD
_LOYALTY = (0.8915, 0.8267, 0.8440, 0.8477, 0.6576, 0.6777, 0.5216, 0.5187)
_TINY = Pair("tiny_imagenet", "resnet34", "resnet18")  # Table IV
_TINY_ACC1 = {"teacher": 61.47, "cudfkd": 43.42}

# Table V: CIFAR-10, ResNet-34 to ResNet-18, epoch 80 to the end, 4 runs: mean and variance of acc@1.
STABILITY = {
    "cudfkd": (94.1, 2.88),
    "dafl": (62.6, 17.1),
    "adi": (87.2, 13.9),
    "cmi": (82.4, 16.6),
    "pre_dfkd": (87.4, 10.3),
    "mb_dfkd": (83.3, 16.4),
    "dfad": (86.1, 12.3),
}


def acc1(dataset: str, teacher: str, student: str, method: str) -> float | None:
    """Acc@1 in percent; None where the paper has none."""
    pair = Pair(dataset, teacher, student)
    if pair == _TINY:
        return _TINY_ACC1.get(method)
    if pair not in _COLUMNS or method not in _ACC1:
        return None
    return _ACC1[method][_COLUMNS.index(pair)]


def agree1(dataset: str, teacher: str, student: str) -> float | None:
    """CuDFKD's Agree@1 in percent; None where the paper has none."""
    return _of_cudfkd(_AGREE1, 50.07, Pair(dataset, teacher, student))


def loyalty_released(dataset: str, teacher: str, student: str) -> float | None:
    """CuDFKD's loyalty; None where the paper has none."""
    return _of_cudfkd(_LOYALTY, 0.3562, Pair(dataset, teacher, student))


def _of_cudfkd(values: tuple[float, ...], tiny: float, pair: Pair) -> float | None:
    if pair == _TINY:
        return tiny
    return values[_COLUMNS.index(pair)] if pair in _COLUMNS else None
