"""Wide residual networks (Zagoruyko and Komodakis, 2016), pre-activation, without dropout."""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from cudfkd_jax.models import layers


class WideBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3 and a shortcut: [B, H, W, C] -> [B, H/stride, W/stride, filters].

    Where the width changes, the shortcut is a 1x1 convolution of the activated input, without BatchNorm.
    """

    filters: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        activated = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(x))
        y = _conv(self.filters, 3, "conv1", self.dtype, self.stride)(activated)
        y = nn.relu(layers.batch_norm(train, name="bn2", dtype=self.dtype)(y))
        y = _conv(self.filters, 3, "conv2", self.dtype)(y)
        if x.shape[-1] != self.filters:
            x = _conv(self.filters, 1, "convShortcut", self.dtype, self.stride)(activated)
        return x + y


class WideResNet(nn.Module):
    """WRN-depth-width: three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` filters.

    Initialisation: convolutions N(0, sqrt(2 / (k*k*out))), the linear layer PyTorch's default weights and bias 0.

    Attributes:
      depth: 6n + 4 with n >= 1.
      width: the widening factor.
      num_classes: number of logits.
      dtype: dtype of the convolutions and the linear layer; None takes that of inputs and parameters.
    """

    depth: int
    width: int
    num_classes: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes logits [B, num_classes], float32 or wider, of normalised images [B, H, W, C]."""
        x = _conv(16, 3, "conv1", self.dtype)(x)
        self.sow("intermediates", "stages", x)
        for group in range(3):
            for index in range((self.depth - 4) // 6):
                x = WideBlock(
                    filters=16 * self.width * 2**group,
                    stride=2 if group > 0 and index == 0 else 1,
                    dtype=self.dtype,
                    name=f"block{group + 1}.layer.{index}",
                )(x, train)
            self.sow("intermediates", "stages", x)
        x = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(x))
        x = layers.global_average_pool(x)
        head = nn.Dense(self.num_classes, kernel_init=layers.torch_uniform, dtype=self.dtype, name="fc")
        return layers.at_least_float32(head(x))


def _conv(features: int, size: int, name: str, dtype: DTypeLike | None, stride: int = 1) -> nn.Conv:
    return layers.conv(features, size, stride=stride, kernel_init=layers.he_normal, dtype=dtype, name=name)
