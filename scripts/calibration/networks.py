"""Networks that share names and shapes with those of `cudfkd_jax.models` and compute something else."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from cudfkd_jax.models import layers
from cudfkd_jax.models.resnet import BasicBlock


class OtherWideResNet(nn.Module):
    """WRN-16-2 of the variants in use.

    Attributes:
        activation: in place of ReLU.
        stem_stride: stride of the first convolution.
        activates_shortcuts: whether the shortcuts of groups 2 and 3 take the activated input.
    """

    activation: Callable[[jax.Array], jax.Array] = nn.relu
    stem_stride: int = 1
    activates_shortcuts: bool = True
    num_classes: int = 10
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(features: int, size: int, name: str, stride: int = 1) -> nn.Conv:
            return layers.conv(
                features, size, stride=stride, kernel_init=layers.he_normal, dtype=self.dtype, name=name
            )

        def activate(x: jax.Array, name: str) -> jax.Array:
            return self.activation(layers.batch_norm(train, name=name, dtype=self.dtype)(x))

        x = conv(16, 3, "conv1", self.stem_stride)(x)
        for group in range(3):
            for index in range(2):
                block, width = f"block{group + 1}.layer.{index}", 32 * 2**group
                stride = 2 if group > 0 and index == 0 else 1
                activated = activate(x, f"{block}.bn1")
                y = activate(conv(width, 3, f"{block}.conv1", stride)(activated), f"{block}.bn2")
                y = conv(width, 3, f"{block}.conv2")(y)
                if x.shape[-1] != width:
                    before = activated if group == 0 or self.activates_shortcuts else x
                    x = conv(width, 1, f"{block}.convShortcut", stride)(before)
                x = x + y
        x = layers.global_average_pool(activate(x, "bn1"))
        return layers.at_least_float32(nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x))


class PooledResNet18(nn.Module):
    """ResNet-18 with the 3x3 stem of small images and the max pool of large ones."""

    num_classes: int = 10
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = layers.conv(64, 3, kernel_init=layers.torch_uniform, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(train, name="bn1", dtype=self.dtype)(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in range(4):
            for index in range(2):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"layer{stage + 1}.{index}"
                x = BasicBlock(filters=64 * 2**stage, stride=stride, dtype=self.dtype, name=name)(x, train)
        x = layers.global_average_pool(x)
        return layers.at_least_float32(nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(x))
