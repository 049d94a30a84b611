"""Classifiers with input normalisation."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cudfkd_jax.models.capture import Outputs, Variables, apply, mode_arguments
from cudfkd_jax.runtime.devices import SINGLE, Axis


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A linen classifier and the normalisation of its inputs."""

    module: nn.Module
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    train_argument: str = ""  # see `mode_arguments`

    def __call__(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool = False,
        capture: Sequence[str] = (),
        axis: Axis = SINGLE,
        key: jax.Array | None = None,
        fold: bool = False,
    ) -> Outputs:
        """Computes the logits of images `[B, H, W, C]` in [0, 1]; see `apply`."""
        mean, std = jnp.asarray(self.mean, images.dtype), jnp.asarray(self.std, images.dtype)
        return apply(
            self.module,
            variables,
            (images - mean) / std,
            train=train,
            capture=capture,
            axis=axis,
            key=key,
            train_argument=self.train_argument,
            fold=fold,
        )

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> dict[str, Any]:
        """Initialises the variables: `params`, `batch_stats`, and the module's further collections."""
        mode = mode_arguments(self.module, train=False, train_argument=self.train_argument)
        return {"params": {}, "batch_stats": {}, **self.module.init(key, jnp.zeros((1, *image_shape)), **mode)}


# A frozen network in evaluation mode, called as net(images [B, H, W, C] in [0, 1], capture=...).
FrozenClassifier = Callable[..., Outputs]
