"""The networks of MB-DFKD and PRE-DFKD: generators with normalised output, and a VAE's encoder.

K. Binici, S. Aggarwal, N. T. Pham, K. Leman, T. Mitra, "Robust and Resource-Efficient Data-Free Knowledge
Distillation by Generative Pseudo Replay", AAAI 2022; layers and initialisation as in its released code. Inner
BatchNorms have that code's epsilon 0.8 (a positional argument, perhaps meant as a momentum), which damps maps of
low variance; the first of the generator and the last of either network have the usual 1e-5.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cudfkd_jax.models import layers
from cudfkd_jax.models.convolution import conv_general_dilated, conv_of_upsampled
from cudfkd_jax.models.generator import check_stages, crop_centre, first_maps

_INNER_EPSILON = 0.8
Operation = Callable[..., jax.Array]


def _weights(key, shape, dtype=jnp.float32, out_sharding=None):
    """Draws from U(-0.08, 0.08)."""
    del out_sharding
    return jax.random.uniform(key, shape, dtype, -0.08, 0.08)


class NormalisedGenerator(nn.Module):
    """A generator whose images have the data's mean and standard deviation by construction.

    Linear to H/2^d x W/2^d maps, rounded up, and BatchNorm; d stages of nearest x2, 3x3 convolution, BatchNorm,
    LeakyReLU 0.2; a 3x3 convolution to the image channels, cropped to the centre where H or W is not divisible by
    2^d, tanh, and a BatchNorm without scale and bias. The last returns y, a normalised image. Classifiers
    normalise their inputs, so the generator returns y * std + mean.

    Attributes:
      image_shape: (H, W, C) of the images; H and W at least 2^stages.
      latent_dim: size of the latent vector.
      mean: per channel, of the data's images in [0, 1].
      std: the same; the standard deviation.
      width: channels after the last stage; the maps before it have twice as many.
      stages: number d of up-sampling stages.
      spectral_norm: divides the kernel of every convolution by an estimate of its largest singular value, with
        one power iteration per call in training (Miyato et al., 2018; Binici et al. train a generator this way).
      dtype: dtype of the convolutions and the linear layer; None takes that of inputs and parameters.

    Raises:
      UserError: at construction, if H or W is below 2^stages.
    """

    image_shape: tuple[int, int, int]
    latent_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int = 64
    stages: int = 2
    spectral_norm: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        check_stages(self.image_shape, self.stages)
        super().__post_init__()

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        """Generates images [B, H, W, C] near [0, 1], float32 or wider, from latents [B, latent_dim] ~ N(0, 1)."""
        (h, w), channels = first_maps(self.image_shape, self.stages), 2 * self.width
        x = nn.Dense(h * w * channels, kernel_init=_weights, dtype=self.dtype, name="linear")(z)
        x = _batch_norm("bn0", train, self.dtype, epsilon=1e-5)(x.reshape(-1, h, w, channels))
        for stage in range(1, self.stages + 1):
            features = self.width if stage == self.stages else channels
            x = self._conv(features, stage, x, train, conv_of_upsampled)
            x = nn.leaky_relu(_batch_norm(f"bn{stage}", train, self.dtype)(x), 0.2)
        x = crop_centre(self._conv(self.image_shape[2], self.stages + 1, x, train), self.image_shape)
        x = nn.tanh(layers.at_least_float32(x))
        y = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, use_scale=False, use_bias=False, name="output"
        )(x)
        return y * jnp.asarray(self.std, y.dtype) + jnp.asarray(self.mean, y.dtype)

    def _conv(
        self, features: int, index: int, x: jax.Array, train: bool, operation: Operation = conv_general_dilated
    ) -> jax.Array:
        conv = _conv(features, f"conv{index}", self.dtype, operation=operation)
        if not self.spectral_norm:
            return conv(x)
        return nn.SpectralNorm(conv, name=f"norm{index}")(x, update_stats=train)


class Encoder(nn.Module):
    """A VAE's encoder from images to the Gaussian q(z | x).

    Images normalised, each column of pixels to unit length; 3x3 convolutions to width, 2 width and, at half
    the resolution and with stride 2, 2 width channels, each with BatchNorm and all but the last with LeakyReLU
    0.2; every second pixel of the result, and one linear layer each for the mean and the log variance.

    Attributes:
      latent_dim: size of the latent vector.
      mean: per channel, of the data's images in [0, 1].
      std: the same; the standard deviation.
      width: channels of the first convolution.
      dtype: dtype of the convolutions and the linear layers; None takes that of inputs and parameters.
    """

    latent_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Encodes images [B, H, W, C] as mean and log variance, [B, latent_dim] each, float32 or wider."""
        x = (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        x = nn.leaky_relu(self._conv_bn(self.width, 1, x, train), 0.2)
        x = nn.leaky_relu(self._conv_bn(2 * self.width, 2, x, train), 0.2)
        x = self._conv_bn(2 * self.width, 3, x[:, ::2, ::2], train, stride=2, epsilon=1e-5)[:, ::2, ::2]
        x = x.reshape(len(x), -1)
        heads = (
            nn.Dense(self.latent_dim, kernel_init=_weights, dtype=self.dtype, name=name)(x)
            for name in ("mean_head", "log_var_head")
        )
        mean, log_var = map(layers.at_least_float32, heads)
        return mean, log_var

    def _conv_bn(
        self,
        features: int,
        index: int,
        x: jax.Array,
        train: bool,
        stride: int = 1,
        epsilon: float = _INNER_EPSILON,
    ) -> jax.Array:
        x = _conv(features, f"conv{index}", self.dtype, stride)(x)
        return _batch_norm(f"bn{index}", train, self.dtype, epsilon)(x)


def _conv(
    features: int,
    name: str,
    dtype: DTypeLike | None,
    stride: int = 1,
    operation: Operation = conv_general_dilated,
) -> nn.Conv:
    return layers.conv(
        features,
        3,
        name=name,
        kernel_init=_weights,
        dtype=dtype,
        stride=stride,
        use_bias=True,
        operation=operation,
    )


def _batch_norm(name: str, train: bool, dtype: DTypeLike | None, epsilon: float = _INNER_EPSILON) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, dtype=dtype, name=name)
