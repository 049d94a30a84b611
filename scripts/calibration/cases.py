"""The teachers: how each is trained, and the architecture that its weights are loaded into."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from calibration.networks import OtherWideResNet, PooledResNet18
from cudfkd_jax.models import MODELS

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Case(NamedTuple):
    """A teacher and its training.

    Attributes:
        arch: the architecture that loads the weights.
        is_right: whether it computes what was trained.
        module: what is trained, built with its dtype; None trains `arch`.
        batch_size: of the training.
        mean, std: the normalisation in training.
        images, labels: applied to the training images and labels.
        mixup: whether pairs of images are mixed (Zhang et al., 2018, "mixup: Beyond Empirical Risk Minimization").
        augments: whether images are cropped and mirrored.
        file: a trained network, in place of training one.
        fine_tunes: whether this network is trained further, at a low learning rate, while BatchNorm keeps its
            statistics.
    """

    arch: str = "wrn16_2"
    is_right: bool = True
    module: Callable[..., nn.Module] | None = None
    batch_size: int = 128
    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD
    images: Callable[[np.ndarray], np.ndarray] = np.asarray
    labels: Callable[[np.ndarray], np.ndarray] = np.asarray
    mixup: bool = False
    augments: bool = True
    file: str = ""
    fine_tunes: bool = False


_wrong = functools.partial(Case, is_right=False)

_OF_RESNETS = 32  # they take ten times the time of the others
_TRAINED = "results/gpu/cifar10_wrn40_2.safetensors"

CASES = {
    **{
        arch: Case(arch, batch_size=_OF_RESNETS if arch.startswith("resnet") else 128)
        for arch in MODELS
        if not arch.endswith("_imagenet")  # the images are small
    },
    "wrn40_2, trained on a GPU to 90.3 %": Case("wrn40_2", file=_TRAINED),
    "wrn40_2, this one fine-tuned with frozen BatchNorm": Case("wrn40_2", file=_TRAINED, fine_tunes=True),
    "wrn16_2, mixup": Case(mixup=True),
    "wrn16_2, no augmentation": Case(augments=False),
    "resnet18 with the max pool kept": _wrong("resnet18", module=PooledResNet18, batch_size=_OF_RESNETS),
    "WRN with LeakyReLU(0.1)": _wrong(
        module=functools.partial(OtherWideResNet, functools.partial(nn.leaky_relu, negative_slope=0.1))
    ),
    "WRN with LeakyReLU(0.01)": _wrong(module=functools.partial(OtherWideResNet, nn.leaky_relu)),
    "WRN with GELU": _wrong(module=functools.partial(OtherWideResNet, nn.gelu)),
    "WRN, groups 2 and 3 not pre-activated": _wrong(
        module=functools.partial(OtherWideResNet, activates_shortcuts=False)
    ),
    "WRN, stem of stride 2": _wrong(module=functools.partial(OtherWideResNet, stem_stride=2)),
    "WRN, ImageNet's mean and std": _wrong(mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "WRN, mean and std of 0.5": _wrong(mean=(0.5,) * 3, std=(0.5,) * 3),
    "WRN, images in [0, 1] not normalised": _wrong(mean=(0.0,) * 3, std=(1.0,) * 3),
    "WRN, BGR": _wrong(images=lambda images: images[..., ::-1]),
    "WRN, classes in another order": _wrong(labels=lambda labels: (labels + 1) % 10),
}
