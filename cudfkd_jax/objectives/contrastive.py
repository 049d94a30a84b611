"""The contrastive loss of CMI: instance features of two views, a projection head, InfoNCE over batch and bank."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cudfkd_jax.models import layers
from cudfkd_jax.models.capture import INSTANCES, STAGES, Outputs
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.errors import UserError

# Instance features and the capture each needs.
FEATURES = {"bn": INSTANCES, "stages": STAGES}


class Views(NamedTuple):
    """Features of two views of the same images, `[N, D]` each."""

    local: jax.Array
    whole: jax.Array  # of the global view


class Head(nn.Module):
    """Linear, ReLU, linear and L2 normalisation: `[N, D]` -> `[N, width]`, with D hidden units.

    Weights and biases are initialised as in PyTorch, U(−1/√D, 1/√D).
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1]
        bias = layers.torch_uniform_bias(size)
        x = nn.Dense(size, kernel_init=layers.torch_uniform, bias_init=bias, name="hidden")(x)
        x = nn.Dense(self.width, kernel_init=layers.torch_uniform, bias_init=bias, name="out")(nn.relu(x))
        # Clamped because the gradient of the square root is not finite at 0.
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def instance_features(outputs: Outputs, kind: str) -> jax.Array:
    """Returns one vector per image, `[B, D]`, from outputs that captured `FEATURES[kind]`.

    Args:
        outputs: the teacher's outputs.
        kind: "bn" takes channel means at the input of every BatchNorm layer, "stages" at the input of every
            stage of the network.
    """
    if kind == "bn":
        return jnp.concatenate(outputs.instances, axis=-1)
    return jnp.concatenate([layers.at_least_float32(maps).mean((1, 2)) for maps in outputs.stages[:-1]], axis=-1)


def feature_dim(teacher: Classifier, image_shape: tuple[int, int, int], kind: str) -> int:
    """Returns D of `instance_features` by abstract evaluation.

    Raises:
        UserError: the teacher does not provide these features.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.zeros(()).dtype)

    def features(key: jax.Array, images: jax.Array) -> jax.Array:
        outputs = teacher(teacher.init(key, image_shape), images, capture=(FEATURES[kind],))
        if kind == "bn" and not outputs.instances:
            raise UserError(
                f"{type(teacher.module).__name__} has no BatchNorm layer, and features='bn' are taken at their "
                "inputs; choose 'stages'"
            )
        return instance_features(outputs, kind)

    return jax.eval_shape(features, jax.random.key(0), images).shape[-1]


def info_nce(queries: jax.Array, keys: jax.Array, valid: jax.Array, temperature: float) -> jax.Array:
    """Computes −log softmax over the valid keys of q_i·k / τ, at k_i (van den Oord et al., 2018, Eq. 4).

    Args:
        queries: `[N, D]`.
        keys: `[N, D]`; the positive of a query is the key with the same index.
        valid: bool `[N]`, the mask of valid keys; results in other rows are meaningless.
        temperature: τ > 0.

    Returns:
        `[N]`.
    """
    logits = queries @ keys.T / temperature
    normaliser = jax.nn.logsumexp(jnp.where(valid, logits, -jnp.inf), axis=-1)
    return normaliser - jnp.diagonal(logits)


def contrastive_loss(
    head: Callable[[jax.Array], Any], batch: Views, bank: Views, drawn: jax.Array, temperature: float
) -> jax.Array:
    """Computes InfoNCE between local and global views: the mean over the batch plus the mean over the bank.

    Each local view is contrasted with the global views of batch and bank. The global side is a constant of the
    gradient: the generator receives gradients through the batch's local views alone, the head through the local
    views of both.

    Args:
        head: projects features `[N, D]` to unit vectors.
        batch: features of the whole synthetic batch.
        bank: features of past batches, `[M, D]` each.
        drawn: bool `[M]`, the mask of valid bank rows; without any, the second mean is 0.
        temperature: τ > 0.
    """
    queries = head(jnp.concatenate([batch.local, bank.local]))
    keys = jax.lax.stop_gradient(head(jnp.concatenate([batch.whole, bank.whole])))
    size = len(batch.local)
    losses = info_nce(queries, keys, jnp.concatenate([jnp.ones(size, bool), drawn]), temperature)
    of_bank = jnp.sum(losses[size:], where=drawn) / jnp.maximum(jnp.sum(drawn), 1)
    return jnp.mean(losses[:size]) + of_bank
