"""Methods that train a generator: one synthesis step is one Adam step on a weighted sum of terms.

    min_θ  Σ_k  w_k(t) · L_k( G_θ(z), f_t, f_s ),    z ~ N(0, I)                           (Eq. 4)

A method is a choice of terms and of a student loss; see `cudfkd.py` for the first.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cudfkd_jax.capture import apply
from cudfkd_jax.methods.base import FrozenClassifier, Method, Metrics
from cudfkd_jax.methods.student import StudentLoss
from cudfkd_jax.methods.terms import STUDENT, Synthetic, Term
from cudfkd_jax.parallel import SINGLE, Axis
from cudfkd_jax.train_state import TrainState, gradient_norm


def generative_method(
    *,
    generator: nn.Module,
    optimiser: optax.GradientTransformation,
    latent_dim: int,
    batch_size: int,
    terms: tuple[Term, ...],
    student_loss: StudentLoss,
) -> Method:
    """A method whose only state is a generator's `TrainState`.

    Args:
        generator: called as `generator(z, train)`, z `[B, latent_dim]`, images `[B, H, W, C]` in [0, 1].
        optimiser: the generator's.
        batch_size: of a synthesis step and of a student step, over all devices.
        terms: the synthesis objective; leave out terms whose weight is constantly 0.
        student_loss: see `Method`.
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

    return Method(init, synthesise, sample, student_loss, preview)
