"""Post-activation ResNets for small images (He et al., 2016): 3x3 stem of stride 1, no max pool."""

from typing import ClassVar

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from cudfkd_jax.models import layers


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, H, W, C] -> [B, H/stride, W/stride, filters]."""

    expansion: ClassVar[int] = 1

    filters: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = _conv(self.filters, 3, "conv1", self.dtype, self.stride)(x)
        y = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(y))
        y = _conv(self.filters, 3, "conv2", self.dtype)(y)
        y = layers.batch_norm(train, name="bn2", dtype=self.dtype)(y)
        return nn.relu(y + _shortcut(x, y.shape[-1], self.stride, train, self.dtype))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 and a shortcut: [B, H, W, C] -> [B, H/stride, W/stride, 4 * filters]."""

    expansion: ClassVar[int] = 4

    filters: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = _conv(self.filters, 1, "conv1", self.dtype)(x)
        y = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(y))
        y = _conv(self.filters, 3, "conv2", self.dtype, self.stride)(y)
        y = nn.relu(layers.batch_norm(train, name="bn2", dtype=self.dtype)(y))
        y = _conv(self.expansion * self.filters, 1, "conv3", self.dtype)(y)
        y = layers.batch_norm(train, name="bn3", dtype=self.dtype)(y)
        return nn.relu(y + _shortcut(x, y.shape[-1], self.stride, train, self.dtype))


class ResNet(nn.Module):
    """A CIFAR ResNet with PyTorch's default initialisation, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) throughout.

    Attributes:
      stage_sizes: blocks per stage; stage i = 0, 1, ... has 64 * 2^i filters and stride 2 if i > 0.
      block: BasicBlock (ResNet-18, 34) or Bottleneck (ResNet-50).
      num_classes: number of logits.
      dtype: dtype of the convolutions and the linear layer; None takes that of inputs and parameters.
    """

    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    num_classes: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes logits [B, num_classes], float32 or wider, of normalised images [B, H, W, C]."""
        x = _conv(64, 3, "conv1", self.dtype)(x)
        x = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(x))
        self.sow("intermediates", "stages", x)
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                x = self.block(
                    filters=64 * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}.{index}",
                )(x, train)
            self.sow("intermediates", "stages", x)
        x = layers.global_average_pool(x)
        head = nn.Dense(
            self.num_classes,
            kernel_init=layers.torch_uniform,
            bias_init=layers.torch_uniform_bias(x.shape[-1]),
            dtype=self.dtype,
            name="linear",
        )
        return layers.at_least_float32(head(x))


def _conv(features: int, size: int, name: str, dtype: DTypeLike | None, stride: int = 1) -> nn.Conv:
    return layers.conv(features, size, stride=stride, kernel_init=layers.torch_uniform, dtype=dtype, name=name)


def _shortcut(x: jax.Array, features: int, stride: int, train: bool, dtype: DTypeLike | None) -> jax.Array:
    """Applies the identity or, on a change of shape, a 1x1 convolution and BatchNorm (the caller's submodules)."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = _conv(features, 1, "shortcut.0", dtype, stride)(x)
    return layers.batch_norm(train, name="shortcut.1", dtype=dtype)(x)
