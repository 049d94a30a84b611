"""The generator of synthetic images: a linear layer and convolutions on nearest-neighbour up-sampled maps."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from cudfkd_jax.models import layers
from cudfkd_jax.models.convolution import conv_general_dilated, conv_of_upsampled
from cudfkd_jax.runtime.errors import UserError, choose

_NORMAL = initializers.normal(0.02)
_FIRST_MAPS = 8  # pixels; those of the releases' generators at 32x32 (2 stages) and at 64x64 (3)


class _Initialisers(NamedTuple):
    weights: initializers.Initializer
    bias: Callable[[int], initializers.Initializer]  # of a layer's fan-in
    bn_scale: initializers.Initializer


def _normal_around_one(key, shape, dtype=jnp.float32, out_sharding=None):
    """Draws from N(1, 0.02)."""
    del out_sharding
    return 1 + _NORMAL(key, shape, dtype)


_INITIALISERS = {
    "normal": _Initialisers(_NORMAL, lambda fan_in: initializers.zeros, _normal_around_one),
    "torch": _Initialisers(layers.torch_uniform, layers.torch_uniform_bias, initializers.ones),
}
SIZES = ("large", "small")
INITIALISATIONS = tuple(_INITIALISERS)


class Generator(nn.Module):
    """A generator from latent vectors to images.

    Linear to H/2^d x W/2^d maps, rounded up, and BatchNorm; d stages of nearest x2, 3x3 convolution, BatchNorm,
    LeakyReLU 0.2; a 3x3 convolution to the image channels, cropped to the centre where H or W is not divisible by
    2^d, and a sigmoid. Each stage halves the channels, down to ngf; a small generator starts with half the
    channels, and its first stage keeps them.

    Attributes:
      image_shape: (H, W, C) of the images; H and W at least 2^stages.
      latent_dim: size of the latent vector.
      ngf: channels after the last stage.
      stages: number d of up-sampling stages.
      dtype: dtype of the convolutions and the linear layer; None takes that of inputs and parameters.
      size: "large" starts with ngf * 2^stages channels, "small" with half of that; one of SIZES.
      initialisation: "normal" follows CuDFKD's released code: weights N(0, 0.02), biases 0, BN scales N(1, 0.02);
        "torch" is PyTorch's default, as in the benchmark of the other methods: weights and biases
        U(-1/sqrt(fan_in), 1/sqrt(fan_in)), BN scales 1. One of INITIALISATIONS.

    Raises:
      UserError: at construction, if H or W is below 2^stages, or a name is unknown.
    """

    image_shape: tuple[int, int, int]
    latent_dim: int
    ngf: int = 64
    stages: int = 2
    dtype: DTypeLike | None = None
    size: str = "large"
    initialisation: str = "normal"

    def __post_init__(self) -> None:
        check_stages(self.image_shape, self.stages)
        for name, value, valid in (
            ("size", self.size, SIZES),
            ("initialisation", self.initialisation, INITIALISATIONS),
        ):
            choose(f"generator.{name}", value, valid)
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of the first maps and after each stage."""
        most = (self.ngf << self.stages) // (2 if self.size == "small" else 1)
        return tuple(min(self.ngf << stages_left, most) for stages_left in reversed(range(self.stages + 1)))

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        """Generates images [B, H, W, C] in [0, 1], float32 or wider, from latents [B, latent_dim] ~ N(0, 1)."""
        h, w = first_maps(self.image_shape, self.stages)
        initial = _INITIALISERS[self.initialisation]

        def batch_norm(name: str) -> nn.BatchNorm:
            return layers.batch_norm(train, name=name, dtype=self.dtype, scale_init=initial.bn_scale)

        linear = nn.Dense(
            h * w * self.widths[0],
            kernel_init=initial.weights,
            bias_init=initial.bias(self.latent_dim),
            dtype=self.dtype,
            name="linear",
        )
        x = linear(z).reshape(-1, h, w, self.widths[0])
        x = batch_norm("bn0")(x)
        for stage, channels in enumerate(self.widths[1:], 1):
            conv = layers.conv(
                channels,
                3,
                kernel_init=initial.weights,
                dtype=self.dtype,
                operation=conv_of_upsampled,
                name=f"conv{stage}",
            )
            x = nn.leaky_relu(batch_norm(f"bn{stage}")(conv(x)), 0.2)
        to_image = nn.Conv(
            self.image_shape[2],
            (3, 3),
            padding=1,
            kernel_init=initial.weights,
            bias_init=initial.bias(9 * self.widths[-1]),
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name=f"conv{self.stages + 1}",
        )
        return nn.sigmoid(layers.at_least_float32(crop_centre(to_image(x), self.image_shape)))


def suitable_stages(image_shape: tuple[int, int, int]) -> int:
    """Returns the least number of up-samplings, at least 1, with first maps of at most 8x8 pixels.

    Images of 32, 64, 96, 128 and 224 pixels get 2, 3, 4, 4 and 5.
    """
    height, width, _ = image_shape
    stages = 1
    while max(first_maps(image_shape, stages)) > _FIRST_MAPS and 2 << stages <= min(height, width):
        stages += 1
    return stages


def check_stages(image_shape: tuple[int, int, int], stages: int) -> None:
    """Checks that `stages` up-samplings by 2 make no larger images than shape (H, W, C) needs.

    Raises:
      UserError: H or W is below 2^stages.
    """
    height, width, _ = image_shape
    if min(height, width) < 2**stages:
        raise UserError(
            f"generator.stages={stages} makes images of at least {2**stages}x{2**stages} pixels and "
            f"data.image_shape is {image_shape}; expected fewer stages. Set --config.generator.stages"
        )


def first_maps(image_shape: tuple[int, int, int], stages: int) -> tuple[int, int]:
    """Returns height and width of the maps that `stages` up-samplings by 2 bring to (H, W, C), or just above."""
    return -(-image_shape[0] // 2**stages), -(-image_shape[1] // 2**stages)


def crop_centre(x: jax.Array, image_shape: tuple[int, int, int]) -> jax.Array:
    """Crops [B, h, w, C] to [B, H, W, C], with the smaller half of the margin above and on the left."""
    height, width, _ = image_shape
    if x.shape[1:3] == (height, width):
        return x
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]
