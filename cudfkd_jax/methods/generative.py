"""Methods that train a generator: one synthesis step is one Adam step on a weighted sum of terms.

    min_θ  Σ_k  w_k(t) · L_k( G_θ(z), f_t, f_s ),    z ~ N(0, I)                           (Eq. 4)

A method chooses the terms and the student loss; see `cudfkd.py` for an example.

The student may be trained on images from an exponential moving average of the generator,

    θ̄ ← d · θ̄ + (1 − d) · θ    after each synthesis step, θ̄ = θ at the start,

which changes more slowly than the generator and so reduces forgetting in the student (cf. K. Do et al., "Momentum
Adversarial Distillation", NeurIPS 2022, where such an average generates part of the student's images).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from cudfkd_jax.methods.base import Method
from cudfkd_jax.models.capture import apply
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.models.train_state import TrainState, gradient_norm
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import STUDENT, Metrics, Synthetic, Term
from cudfkd_jax.runtime.devices import SINGLE, Axis


class Averaged(struct.PyTreeNode):
    """A generator in training and its exponential moving average.

    Attributes:
        state: the state of the generator in training.
        average: `{'params', 'batch_stats'}`, the averages of its variables.
    """

    state: TrainState
    average: dict[str, Any]


def generative_method(
    *,
    generator: nn.Module,
    optimiser: optax.GradientTransformation,
    latent_dim: int,
    batch_size: int,
    terms: tuple[Term, ...],
    student_loss: StudentLoss,
    student_capture: tuple[str, ...] = (),
    ema_decay: float = 0.0,
) -> Method:
    """Returns a method whose only state is a generator's: a `TrainState`, or `Averaged` if `ema_decay` is not 0.

    Args:
        generator: called as `generator(z, train)`, z `[B, latent_dim]`, images `[B, H, W, C]` in [0, 1].
        optimiser: the generator's.
        batch_size: images per synthesis step and per student step, over all devices.
        terms: the synthesis objective; leave out terms whose weight is a constant 0.
        student_loss: see `Method`.
        student_capture: see `Method`.
        ema_decay: d in [0, 1), the decay of the average that images are sampled from; 0 samples from θ itself.
    """
    needs = {need for term in terms for need in term.needs}
    capture = tuple(sorted(needs - {STUDENT}))

    def init(key: jax.Array) -> TrainState:
        variables = generator.init(key, jnp.zeros((1, latent_dim)), train=False)
        return TrainState.create(dict(variables), optimiser)

    def latents(key: jax.Array, axis: Axis) -> jax.Array:
        return axis.shard(jax.random.normal(key, (batch_size, latent_dim)))

    def synthesise(
        aux: TrainState,
        teacher: FrozenClassifier,
        student: FrozenClassifier,
        key: jax.Array,
        step: jax.Array,
        axis: Axis,
    ) -> tuple[TrainState, Metrics]:
        z = latents(key, axis)

        def objective(params):
            variables = {"params": params, "batch_stats": aux.batch_stats}
            generated = apply(generator, variables, z, train=True, axis=axis)
            images = generated.value
            synthetic = Synthetic(
                images, teacher(images, capture=capture), student(images) if STUDENT in needs else None
            )
            values = {term.name: term.value(synthetic, axis) for term in terms}
            loss = sum(term.weight(step) * values[term.name] for term in terms)
            weights = {term.weight_name: term.weight(step) for term in terms if term.weight_name}
            return loss, (generated.batch_stats, {"synthesis_loss": loss, **values, **weights})

        gradients, (batch_stats, metrics) = jax.grad(objective, has_aux=True)(aux.params)
        gradients = axis.mean(gradients)
        metrics["synthesis_gradient_norm"] = gradient_norm(gradients)
        return aux.update(gradients, batch_stats, optimiser), metrics

    def sample(aux: TrainState, teacher: FrozenClassifier, key: jax.Array, axis: Axis) -> jax.Array:
        return apply(generator, aux.variables, latents(key, axis), axis=axis).value

    def preview(aux: TrainState, key: jax.Array, count: int) -> jax.Array:
        return apply(generator, aux.variables, jax.random.normal(key, (count, latent_dim)), axis=SINGLE).value

    method = Method(init, synthesise, sample, student_loss, preview, student_capture=student_capture)
    return _averaged(method, ema_decay) if ema_decay else method


def _averaged(method: Method, decay: float) -> Method:
    """Wraps a method whose aux is a `TrainState` so that its images come from the generator's average."""

    def init(key: jax.Array) -> Averaged:
        state = method.init(key)
        # Copied, because a step donates the buffers of the whole state and may donate each only once.
        return Averaged(state, jax.tree.map(jnp.copy, state.variables))

    def synthesise(aux: Averaged, *arguments: Any) -> tuple[Averaged, Metrics]:
        state, metrics = method.synthesise(aux.state, *arguments)
        return Averaged(state, optax.incremental_update(state.variables, aux.average, 1 - decay)), metrics

    def sampled(aux: Averaged) -> TrainState:
        return aux.state.replace(**aux.average)

    return method._replace(
        init=init,
        synthesise=synthesise,
        sample=lambda aux, *arguments: method.sample(sampled(aux), *arguments),
        preview=lambda aux, *arguments: method.preview(sampled(aux), *arguments),
    )
