"""The memory of PRE-DFKD: a VAE that learns a generator's distribution and replays it; see `pre_dfkd.py`.

x are the input images of this package's classifiers, y = (x − mean) / std their normalised form.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cudfkd_jax.models.capture import apply
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.models.vae import Encoder, NormalisedGenerator
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.terms import Synthetic, balance_term, class_term
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.runtime.errors import UserError


class MemoryState(struct.PyTreeNode):
    """The two networks of the VAE."""

    encoder: TrainState
    decoder: TrainState


@dataclasses.dataclass(frozen=True)
class GenerativeMemory:
    """A VAE with its training step and the replay of images from it.

    Attributes:
        encoder: q(z | x).
        decoder: D, with latents of the same length.
        optimiser: the optimiser of both networks.
        rows: R, images per replay, over all devices.
        class_weight: weight of L_oh when latents are tuned.
        balance_weight: weight of Σ p̄ log10(p̄ + 1e-8) when latents are tuned.
        learning_rate: learning rate of the single Adam step that tunes latents.
        kl_weight: weight of KL(q(z | x) ‖ N(0, I)) in the VAE's loss.

    Raises:
        UserError: at construction, if R is below 2 or latents differ in length.
    """

    encoder: Encoder
    decoder: NormalisedGenerator
    optimiser: optax.GradientTransformation
    rows: int
    class_weight: float
    balance_weight: float
    learning_rate: float
    kl_weight: float

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise UserError(f"{self.rows} replayed images have no variance, which PRE-DFKD needs; take at least 2")
        lengths = self.encoder.latent_dim, self.decoder.latent_dim
        if lengths[0] != lengths[1]:
            raise UserError(
                f"the encoder has latent_dim={lengths[0]}, the decoder {lengths[1]}; give both the same"
            )

    def init(self, key: jax.Array) -> MemoryState:
        """Returns an untrained VAE."""
        encoder_key, decoder_key = jax.random.split(key)
        z, image = jnp.zeros((1, self.decoder.latent_dim)), jnp.zeros((1, *self.decoder.image_shape))
        return MemoryState(
            TrainState.create(dict(self.encoder.init(encoder_key, image, train=False)), self.optimiser),
            TrainState.create(dict(self.decoder.init(decoder_key, z, train=False)), self.optimiser),
        )

    def replay(
        self, decoder: TrainState, teacher: FrozenClassifier, key: jax.Array, axis: Axis, *, train: bool
    ) -> tuple[jax.Array, Any]:
        """Replays R images, tuned by one step towards confident teacher predictions and balanced classes.

        Returns D(z − Adam step), z ~ N(0, I), with the step along the gradient of
        w_class · L_oh + w_balance · Σ_c p̄_c log10(p̄_c + 1e-8) + mean (var z − 1)² + mean (mean z)².

        Args:
            decoder: the decoder's state.
            teacher: the teacher, with logits f_t.
            key: the random key of z.
            axis: the devices that share the R images; z is replicated.
            train: whether the decoder is in training mode.

        Returns:
            `[R / axis.size, H, W, C]`, and the decoder's statistics after its two calls.
        """
        z = jax.random.normal(key, (self.rows, self.decoder.latent_dim))
        adam = optax.adam(self.learning_rate)

        def objective(z: jax.Array) -> tuple[jax.Array, Any]:
            decoded = apply(self.decoder, decoder.variables, axis.shard(z), train=train, axis=axis)
            synthetic = Synthetic(decoded.value, teacher(decoded.value), None)
            return self._mismatch(synthetic, axis) + _distance_to_standard_normal(z), decoded.batch_stats

        gradient, batch_stats = jax.grad(objective, has_aux=True)(z)
        updates, _ = adam.update(axis.mean(gradient), adam.init(z), z)
        variables = {"params": decoder.params, "batch_stats": batch_stats}
        decoded = apply(self.decoder, variables, axis.shard(z + updates), train=train, axis=axis)
        return decoded.value, decoded.batch_stats

    def update(
        self,
        state: MemoryState,
        teacher: FrozenClassifier,
        new: jax.Array,
        instead: jax.Array,
        key: jax.Array,
        first: jax.Array,
        axis: Axis,
    ) -> MemoryState:
        """Takes one step of encoder and decoder on N new images and R of their own replays.

        The loss is mean |y' − y| + mean |f_t(x') − f_t(x)| + w · mean KL(q(z | x) ‖ N(0, I)), x' = D(z) with z
        drawn from q(z | x). Replays are constants of the gradient.

        Args:
            state: the VAE's state.
            teacher: the teacher, with logits f_t.
            new: images `[N / axis.size, H, W, C]`.
            instead: images `[R / axis.size, H, W, C]` that replace the replays if `first`.
            key: the random key of the replay and of z.
            first: bool, whether the VAE is untrained.
            axis: the devices that share the N and the R images.
        """
        replay_key, noise_key = jax.random.split(key)
        replayed, replay_stats = self.replay(state.decoder, teacher, replay_key, axis, train=True)
        stats = jax.tree.map(lambda old, new: jnp.where(first, old, new), state.decoder.batch_stats, replay_stats)
        images = jnp.concatenate([new, jnp.where(first, instead, replayed)])
        logits = teacher(images).value
        count = len(new) * axis.size
        noise = jax.random.normal(noise_key, (count + self.rows, self.decoder.latent_dim))
        noise = part_rows(noise, count, axis)
        std = jnp.asarray(self.decoder.std, images.dtype)

        def objective(params: tuple[Any, Any]) -> tuple[jax.Array, tuple[Any, Any]]:
            variables = {"params": params[0], "batch_stats": state.encoder.batch_stats}
            encoded = apply(self.encoder, variables, images, train=True, axis=axis)
            mean, log_var = encoded.value
            z = mean + jnp.exp(log_var / 2) * noise
            variables = {"params": params[1], "batch_stats": stats}
            decoded = apply(self.decoder, variables, z, train=True, axis=axis)
            loss = jnp.mean(jnp.abs(decoded.value - images) / std)
            loss += jnp.mean(losses.l1_distance(logits, teacher(decoded.value).value))
            loss += self.kl_weight * jnp.mean(gaussian_kl(mean, log_var))
            return loss, (encoded.batch_stats, decoded.batch_stats)

        gradients, batch_stats = jax.grad(objective, has_aux=True)((state.encoder.params, state.decoder.params))
        gradients = axis.mean(gradients)
        return MemoryState(
            state.encoder.update(gradients[0], batch_stats[0], self.optimiser),
            state.decoder.update(gradients[1], batch_stats[1], self.optimiser),
        )

    def _mismatch(self, synthetic: Synthetic, axis: Axis) -> jax.Array:
        balance_weight = self.balance_weight / math.log(10)
        weighted = (
            (self.class_weight, class_term(self.class_weight)),
            (balance_weight, balance_term(balance_weight)),
        )
        return sum((weight * term.value(synthetic, axis) for weight, term in weighted), start=jnp.asarray(0.0))


def gaussian_kl(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """Computes KL(N(mean, diag exp(log_var)) ‖ N(0, I)) in nats: `[B, D]` -> `[B]`.

    Reference: Kingma and Welling, 2014, App. B.
    """
    return -0.5 * jnp.sum(1 + log_var - jnp.square(mean) - jnp.exp(log_var), axis=-1)


def part_rows(whole: jax.Array, first: int, axis: Axis) -> jax.Array:
    """Returns this device's share of a batch's `first` rows, followed by its share of the others."""
    return jnp.concatenate([axis.shard(whole[:first]), axis.shard(whole[first:])])


def _distance_to_standard_normal(z: jax.Array) -> jax.Array:
    """Computes mean (var z − 1)² + mean (mean z)² over the dimensions, with the unbiased variance."""
    spread, centre = jnp.var(z, axis=0, ddof=1), jnp.mean(z, axis=0)
    return jnp.mean(jnp.square(spread - 1)) + jnp.mean(jnp.square(centre))
