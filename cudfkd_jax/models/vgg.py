"""VGG networks with BatchNorm for small images (Simonyan and Zisserman, 2015), with one linear layer."""

import flax.linen as nn
import jax
from jax.nn import initializers
from jax.typing import DTypeLike

from cudfkd_jax.models import layers
from cudfkd_jax.runtime.errors import UserError


class VGG(nn.Module):
    """Blocks of 3x3 convolutions with bias, BatchNorm and ReLU, then global average pooling.

    A 2x2 max pool follows the first three blocks, and the fourth where the images are at least 64 high (in
    RepDistiller only where they are exactly 64 high).
    Initialisation: convolutions N(0, sqrt(2 / (k*k*out))), the linear layer N(0, 0.01), all biases 0.

    Attributes:
      widths: per block, the filters of its convolutions.
      num_classes: number of logits.
      dtype: dtype of the convolutions and the linear layer; None takes that of inputs and parameters.
    """

    widths: tuple[tuple[int, ...], ...]
    num_classes: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes logits [B, num_classes], float32 or wider, of normalised images [B, H, W, C].

        Raises:
            UserError: the images are too small for the pooling.
        """
        pooled_blocks = min(4 if x.shape[1] >= 64 else 3, len(self.widths))
        if min(x.shape[1:3]) < 2**pooled_blocks:
            raise UserError(
                f"VGG halves images {pooled_blocks} times and data.image_shape is {x.shape[1:]}; expected at "
                f"least {2**pooled_blocks} pixels. Set --config.data.image_shape, or choose another arch"
            )
        for block, block_widths in enumerate(self.widths):
            for index, width in enumerate(block_widths):
                # Numbered as in a PyTorch Sequential of (conv, BN, ReLU) triples.
                x = layers.conv(
                    width,
                    3,
                    use_bias=True,
                    kernel_init=layers.he_normal,
                    dtype=self.dtype,
                    name=f"block{block}.{3 * index}",
                )(x)
                x = layers.batch_norm(train, name=f"block{block}.{3 * index + 1}", dtype=self.dtype)(x)
                x = nn.relu(x)
            if block < pooled_blocks:
                x = max_pool_2x2(x)
            self.sow("intermediates", "stages", x)
        x = layers.global_average_pool(x)
        head = nn.Dense(
            self.num_classes, kernel_init=initializers.normal(0.01), dtype=self.dtype, name="classifier"
        )
        return layers.at_least_float32(head(x))


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Max-pools 2x2 tiles, dropping an odd last row or column: [B, H, W, C] -> [B, H//2, W//2, C]."""
    batch, height, width, channels = x.shape
    h, w = height // 2, width // 2
    # Not nn.max_pool: on the CPU backend the gradient of its reduce_window takes six times as long.
    return x[:, : 2 * h, : 2 * w].reshape(batch, h, 2, w, 2, channels).max(axis=(2, 4))
