"""The generator of synthetic images: a linear layer and convolutions on nearest-neighbour up-sampled maps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from cudfkd_jax.errors import UserError
from cudfkd_jax.models import layers

_WEIGHTS = initializers.normal(0.02)


class Generator(nn.Module):
    """Latent vectors to images, as in the released code: weights N(0, 0.02), biases 0, BN scales N(1, 0.02).

    Linear to H/2^d x W/2^d maps and BatchNorm; d stages of nearest x2, 3x3 convolution that halves the
    channels, BatchNorm, LeakyReLU 0.2; a 3x3 convolution to the image channels and a sigmoid.

    Attributes:
      image_shape: (H, W, C) of the images; H and W divisible by 2^stages.
      latent_dim: length of a latent vector.
      ngf: channels after the last stage; the linear layer feeds ngf * 2^stages of them.
      stages: number d of up-sampling stages.
      dtype: dtype of the convolutions and the linear layer; None takes that of inputs and parameters.

    Raises:
      UserError: at construction, where H or W is not divisible by 2^stages.
    """

    image_shape: tuple[int, int, int]
    latent_dim: int
    ngf: int = 64
    stages: int = 2
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        height, width, _ = self.image_shape
        scale = 2**self.stages
        if height % scale or width % scale:
            raise UserError(
                f"a generator with {self.stages} up-sampling stages cannot make {height}x{width} images: "
                f"choose a height and width divisible by {scale}, or fewer stages"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        """Latents [B, latent_dim] ~ N(0, 1) -> images [B, H, W, C] in [0, 1], float32 or wider."""
        height, width, image_channels = self.image_shape
        h, w = height >> self.stages, width >> self.stages
        channels = self.ngf << self.stages
        x = nn.Dense(h * w * channels, kernel_init=_WEIGHTS, dtype=self.dtype, name="linear")(z)
        x = x.reshape(-1, h, w, channels)
        x = _batch_norm("bn0", train, self.dtype)(x)
        for stage in range(1, self.stages + 1):
            channels //= 2
            x = _conv(channels, f"conv{stage}", self.dtype)(upsample_2x(x))
            x = nn.leaky_relu(_batch_norm(f"bn{stage}", train, self.dtype)(x), 0.2)
        x = _conv(image_channels, f"conv{self.stages + 1}", self.dtype, use_bias=True)(x)
        return nn.sigmoid(layers.at_least_float32(x))


def upsample_2x(x: jax.Array) -> jax.Array:
    """Each pixel as a 2x2 tile (nearest neighbour): [B, H, W, C] -> [B, 2H, 2W, C]."""
    batch, h, w, channels = x.shape
    # The fastest form on the CPU, forward and backward, against jnp.repeat and jax.image.resize.
    tiles = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, h, 2, w, 2, channels))
    return tiles.reshape(batch, 2 * h, 2 * w, channels)


def _conv(features: int, name: str, dtype: DTypeLike | None, use_bias: bool = False) -> nn.Conv:
    return layers.conv(features, 3, use_bias=use_bias, kernel_init=_WEIGHTS, dtype=dtype, name=name)


def _batch_norm(name: str, train: bool, dtype: DTypeLike | None) -> nn.BatchNorm:
    return layers.batch_norm(train, name=name, dtype=dtype, scale_init=_normal_around_one)


def _normal_around_one(key, shape, dtype=jnp.float32, out_sharding=None):
    """N(1, 0.02)."""
    del out_sharding
    return 1 + _WEIGHTS(key, shape, dtype)
