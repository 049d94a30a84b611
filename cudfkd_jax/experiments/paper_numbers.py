"""The numbers of the paper (Li et al.), for comparison with those of a run.

Those of Tables II to IV are at their best epochs on the test images. Loyalty is the released code's,
`loyalty_released` here. For figures, only numbers stated in the text are included: bars cannot be read off.
"""

from typing import NamedTuple


class Pair(NamedTuple):
    """A data set, in the names of `data.name`, and a pair of architectures."""

    dataset: str
    teacher: str
    student: str


class Scores(NamedTuple):
    """A cell of Tables II to IV: accuracy and agreement in percent, loyalty; None for N/A."""

    acc1: float
    agree1: float | None = None
    loyalty: float | None = None


class Stability(NamedTuple):
    """A cell of Table V: Acc@1 in percent from epoch 80 on and at best, memory in GB, and hours.

    ResNet-34 to ResNet-18 at batch 256 on one RTX 3090; CuDFKD's mean and variance are over 4 runs.
    """

    mean: float
    variance: float
    best: float
    memory: float | None = None
    hours: float | None = None


R34_R18, VGG_R18, W40_W40, W40_W16 = (
    ("resnet34", "resnet18"),
    ("vgg11", "resnet18"),
    ("wrn40_2", "wrn40_1"),
    ("wrn40_2", "wrn16_2"),
)
PAIRS = (R34_R18, VGG_R18, W40_W40, W40_W16)

# Tables II (CIFAR-10) and III (CIFAR-100), in the order of PAIRS.
_TABLES: dict[str, dict[str, tuple[tuple[float, ...], ...]]] = {
    "cifar10": {
        "teacher": ((95.70, 100, 1), (92.25, 100, 1), (94.87, 100, 1), (94.87, 100, 1)),
        "scratch": (
            (94.23, 94.91, 0.8276),
            (94.23, 94.91, 0.8276),
            (91.21, 91.42, 0.8046),
            (90.42, 90.91, 0.7998),
        ),
        "dafl": ((92.22, 93.20, 0.7686), (81.10, 82.30, 0.6303), (81.33, 80.21, 0.6445), (81.55, 80.21, 0.6445)),
        "zskt": ((91.60, 93.57, 0.7968), (89.46, 90.24, 0.7193), (86.07, 88.43, 0.6998), (89.66, 91.19, 0.7464)),
        "adi": ((93.26, 95.33, 0.8478), (90.36, 93.11, 0.8063), (87.18, 88.43, 0.7746), (84.50, 85.61, 0.7279)),
        "dfq": ((94.61, 97.07, 0.8492), (90.84, 93.14, 0.7568), (91.69, 92.16, 0.7380), (92.01, 93.50, 0.7826)),
        "cmi": ((94.84, 96.46, 0.8747), (91.13, 94.18, 0.8213), (92.78, 93.59, 0.8305), (92.52, 94.01, 0.8460)),
        "pre_dfkd": ((94.10,),),
        "cudfkd": ((95.28, 98.20, 0.8915), (91.61, 96.00, 0.8267), (93.18, 95.27, 0.8440), (92.94, 95.15, 0.8477)),
    },
    "cifar100": {
        "teacher": ((78.05, 100, 1), (71.32, 100, 1), (75.83, 100, 1), (75.83, 100, 1)),
        "scratch": (
            (73.24, 76.69, 0.5836),
            (73.24, 76.69, 0.5836),
            (64.87, 65.90, 0.5160),
            (66.61, 67.85, 0.5394),
        ),
        "dafl": ((67.58, 74.82, 0.5232), (64.49, 72.82, 0.4891), (55.06, 58.83, 0.3847), (55.48, 58.85, 0.3878)),
        "zskt": ((56.49, 61.61, 0.4379), (59.83, 67.75, 0.4935), (44.35, 46.56, 0.3046), (50.98, 54.74, 0.3695)),
        "adi": ((69.13, 75.56, 0.5604), (68.21, 76.79, 0.5949), (52.25, 54.74, 0.4029), (51.54, 54.48, 0.3966)),
        "dfq": ((72.06, 80.75, 0.5744), (69.37, 80.16, 0.5699), (63.62, 68.42, 0.4366), (64.02, 68.51, 0.4396)),
        "cmi": ((73.75, 81.67, 0.6325), (69.78, 78.54, 0.6158), (66.89, 71.69, 0.5525), (65.11, 69.71, 0.5319)),
        "pre_dfkd": ((77.10,),),
        "cudfkd": ((75.71, 86.52, 0.6576), (71.22, 85.85, 0.6777), (66.43, 71.85, 0.5216), (65.66, 70.41, 0.5187)),
    },
    "tiny_imagenet": {  # Table IV
        "teacher": ((61.47, 100, 1),),
        "scratch": ((43.18, 44.10, 0.3502),),
        "cmi": ((1.85, 3.65, 0.1181),),
        "adi": ((6.00, 6.98, 0.1256),),
        "dfq": ((41.30, 47.07, 0.3300),),
        "cudfkd": ((43.42, 50.07, 0.3562),),
    },
}

_STABILITY = {  # Table V
    "cifar10": {
        "dafl": Stability(62.6, 17.1, 92.0, 6.45, 6.10),
        "dfad": Stability(86.1, 12.3, 93.3),
        "adi": Stability(87.2, 13.9, 93.3, 7.85, 25.2),
        "cmi": Stability(82.4, 16.6, 94.8, 12.5, 13.3),
        "mb_dfkd": Stability(83.3, 16.4, 92.4),
        "pre_dfkd": Stability(87.4, 10.3, 94.1),
        "cudfkd": Stability(94.1, 2.88, 95.0, 6.84, 5.48),
    },
    "cifar100": {
        "dafl": Stability(52.5, 12.8, 74.5, 6.45, 7.09),
        "dfad": Stability(54.9, 12.9, 67.7),
        "adi": Stability(51.3, 18.2, 61.3, 7.85, 30.4),
        "cmi": Stability(55.2, 24.1, 77.0, 12.5, 22.3),
        "mb_dfkd": Stability(64.4, 18.3, 75.4),
        "pre_dfkd": Stability(70.2, 11.1, 77.1),
        "cudfkd": Stability(71.7, 4.37, 75.2, 6.84, 7.50),
    },
}

NOISY_TEACHER = 94.07  # Acc@1 in percent of the teacher of Figures 4 and 8
# Acc@1 in percent on CIFAR-10 with ResNet-34 to ResNet-18 by strategy (Figure 6), from a notebook in the release.
STRATEGIES = {"none": 93.24, "hard": 94.97, "soft": 95.01, "log": 95.28}


def scores(dataset: str, teacher: str, student: str, method: str) -> Scores | None:
    """Returns a cell of Tables II to IV, or None; `method` may also be "teacher" or "scratch"."""
    pairs = (R34_R18,) if dataset == "tiny_imagenet" else PAIRS
    row = _TABLES.get(dataset, {}).get(method, ())
    place = pairs.index((teacher, student)) if (teacher, student) in pairs else len(row)
    return Scores(*row[place]) if place < len(row) else None


def acc1(dataset: str, teacher: str, student: str, method: str) -> float | None:
    """Returns Acc@1 in percent; None if the paper has none."""
    found = scores(dataset, teacher, student, method)
    return found.acc1 if found else None


def agree1(dataset: str, teacher: str, student: str, method: str = "cudfkd") -> float | None:
    """Returns Agree@1 in percent; None if the paper has none."""
    found = scores(dataset, teacher, student, method)
    return found.agree1 if found else None


def loyalty_released(dataset: str, teacher: str, student: str, method: str = "cudfkd") -> float | None:
    """Returns the released code's loyalty; None if the paper has none."""
    found = scores(dataset, teacher, student, method)
    return found.loyalty if found else None


def stability(dataset: str, teacher: str, student: str, method: str) -> Stability | None:
    """Returns a cell of Table V, or None."""
    return _STABILITY.get(dataset, {}).get(method) if (teacher, student) == R34_R18 else None
