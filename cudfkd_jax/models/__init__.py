"""Networks by name. Classifiers are called as `module(x, train)`: normalised [B, H, W, C] -> logits."""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from cudfkd_jax.models.generator import Generator
from cudfkd_jax.models.imported import import_network, import_torch_network
from cudfkd_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from cudfkd_jax.models.vgg import VGG
from cudfkd_jax.models.wrn import WideResNet
from cudfkd_jax.runtime.errors import unknown
from cudfkd_jax.runtime.imports import is_import_path, is_torch_path

__all__ = ["MODELS", "Generator", "build_classifier", "count_parameters"]

# Each factory takes num_classes and dtype.
MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, (2, 2, 2, 2), BasicBlock),
    "resnet34": partial(ResNet, (3, 4, 6, 3), BasicBlock),
    "resnet50": partial(ResNet, (3, 4, 6, 3), Bottleneck),
    # torchvision's, and a ResNet-10 made of its parts.
    "resnet10_imagenet": partial(ResNet, (1, 1, 1, 1), BasicBlock, torchvision=True),
    "resnet18_imagenet": partial(ResNet, (2, 2, 2, 2), BasicBlock, torchvision=True),
    "resnet34_imagenet": partial(ResNet, (3, 4, 6, 3), BasicBlock, torchvision=True),
    "resnet50_imagenet": partial(ResNet, (3, 4, 6, 3), Bottleneck, torchvision=True),
    "vgg8": partial(VGG, ((64,), (128,), (256,), (512,), (512,))),
    "vgg11": partial(VGG, ((64,), (128,), (256, 256), (512, 512), (512, 512))),
    "vgg13": partial(VGG, ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))),
    "wrn16_1": partial(WideResNet, 16, 1),
    "wrn16_2": partial(WideResNet, 16, 2),
    "wrn40_1": partial(WideResNet, 40, 1),
    "wrn40_2": partial(WideResNet, 40, 2),
}


def build_classifier(arch: str, num_classes: int, dtype: DTypeLike | None = None) -> nn.Module:
    """Builds the classifier called `arch`.

    Args:
      arch: a key of MODELS, wrnD_W for any depth D = 6n + 4 >= 10 and width W >= 1, or an import path
        `package.module:Name`, called without arguments; `torch:package.module:Name` for a PyTorch module.
      num_classes: number of logits.
      dtype: dtype of convolutions and linear layers; None takes that of inputs and parameters. Parameters,
        BatchNorm statistics and logits stay float32 (float64 with float64 variables).

    Raises:
      UserError: the name is unknown or invalid; the valid ones are listed.
    """
    if is_torch_path(arch):
        return import_torch_network(arch, num_classes, dtype)
    if is_import_path(arch):
        return import_network(arch)
    if arch in MODELS:
        return MODELS[arch](num_classes=num_classes, dtype=dtype)
    wide = re.fullmatch(r"wrn([1-9][0-9]*)_([1-9][0-9]*)", arch)
    if wide:
        depth, width = int(wide[1]), int(wide[2])
        if depth >= 10 and (depth - 4) % 6 == 0:
            return WideResNet(depth, width, num_classes, dtype)
    raise unknown("model", arch, MODELS, "wrnD_W with depth D = 6n + 4 and width W")


def count_parameters(params: Any) -> int:
    """Returns the number of scalars in a tree of arrays, or of shapes from `jax.eval_shape`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
