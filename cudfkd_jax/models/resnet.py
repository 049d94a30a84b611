"""Post-activation ResNets (He et al., 2016), for small images and for those of ImageNet's size."""

from typing import ClassVar

import flax.linen as nn
import jax
from jax.nn import initializers
from jax.typing import DTypeLike

from cudfkd_jax.models import layers


class _Block(nn.Module):
    filters: int
    stride: int = 1
    dtype: DTypeLike | None = None
    kernel_init: initializers.Initializer = layers.torch_uniform
    shortcut: str = "shortcut"  # its name

    def _conv(self, features: int, size: int, name: str, stride: int = 1) -> nn.Conv:
        return layers.conv(
            features, size, stride=stride, kernel_init=self.kernel_init, dtype=self.dtype, name=name
        )

    def _shortcut(self, x: jax.Array, features: int, train: bool) -> jax.Array:
        """Applies the identity or, on a change of shape, a 1x1 convolution and BatchNorm."""
        if self.stride == 1 and x.shape[-1] == features:
            return x
        x = self._conv(features, 1, f"{self.shortcut}.0", self.stride)(x)
        return layers.batch_norm(train, name=f"{self.shortcut}.1", dtype=self.dtype)(x)


class BasicBlock(_Block):
    """Two 3x3 convolutions and a shortcut: [B, H, W, C] -> [B, H/stride, W/stride, filters]."""

    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self._conv(self.filters, 3, "conv1", self.stride)(x)
        y = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(y))
        y = self._conv(self.filters, 3, "conv2")(y)
        y = layers.batch_norm(train, name="bn2", dtype=self.dtype)(y)
        return nn.relu(y + self._shortcut(x, y.shape[-1], train))


class Bottleneck(_Block):
    """1x1, 3x3 (strided), 1x1 and a shortcut: [B, H, W, C] -> [B, H/stride, W/stride, 4 * filters]."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self._conv(self.filters, 1, "conv1")(x)
        y = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(y))
        y = self._conv(self.filters, 3, "conv2", self.stride)(y)
        y = nn.relu(layers.batch_norm(train, name="bn2", dtype=self.dtype)(y))
        y = self._conv(self.expansion * self.filters, 1, "conv3")(y)
        y = layers.batch_norm(train, name="bn3", dtype=self.dtype)(y)
        return nn.relu(y + self._shortcut(x, y.shape[-1], train))


class ResNet(nn.Module):
    """A ResNet for small images, or torchvision's.

    For small images: a 3x3 stem of stride 1, no max pool, and PyTorch's default initialisation,
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)) throughout. torchvision's: a 7x7 stem and a 3x3 max pool, both of stride 2;
    the names `downsample` and `fc` in place of `shortcut` and `linear`; convolutions N(0, sqrt(2 / (k*k*out))).

    Attributes:
      stage_sizes: blocks per stage; stage i = 0, 1, ... has 64 * 2^i filters and stride 2 if i > 0.
      block: BasicBlock (ResNet-10, 18, 34) or Bottleneck (ResNet-50; stride on the 3x3 convolution).
      num_classes: number of logits.
      dtype: dtype of the convolutions and the linear layer; None takes that of inputs and parameters.
      torchvision: whether it is torchvision's.
    """

    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    num_classes: int
    dtype: DTypeLike | None = None
    torchvision: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes logits [B, num_classes], float32 or wider, of normalised images [B, H, W, C]."""
        kernel_init = layers.he_normal if self.torchvision else layers.torch_uniform
        size, stride = (7, 2) if self.torchvision else (3, 1)
        stem = layers.conv(64, size, stride=stride, kernel_init=kernel_init, dtype=self.dtype, name="conv1")
        x = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(stem(x)))
        if self.torchvision:
            x = layers.max_pool_3x3(x)
        self.sow("intermediates", "stages", x)
        for stage, count in enumerate(self.stage_sizes):
            for index in range(count):
                x = self.block(
                    filters=64 * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    dtype=self.dtype,
                    kernel_init=kernel_init,
                    shortcut="downsample" if self.torchvision else "shortcut",
                    name=f"layer{stage + 1}.{index}",
                )(x, train)
            self.sow("intermediates", "stages", x)
        x = layers.global_average_pool(x)
        head = nn.Dense(
            self.num_classes,
            kernel_init=layers.torch_uniform,
            bias_init=layers.torch_uniform_bias(x.shape[-1]),
            dtype=self.dtype,
            name="fc" if self.torchvision else "linear",
        )
        return layers.at_least_float32(head(x))
