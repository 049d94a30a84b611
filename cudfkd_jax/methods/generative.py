"""Methods that train a generator: one synthesis step is one Adam step on a weighted sum of terms.

    min_θ  Σ_k  w_k(t) · L_k( G_θ(z), f_t, f_s ),    z ~ N(0, I)                           (Eq. 4)

A method chooses the terms and the student loss and passes them to `build`; see `cudfkd.py` for an example.

The student may be trained on images from an exponential moving average of the generator,

    θ̄ ← d · θ̄ + (1 − d) · θ    after each synthesis step, θ̄ = θ at the start,

which changes more slowly than the generator and so reduces forgetting in the student (cf. K. Do et al., "Momentum
Adversarial Distillation", NeurIPS 2022, where such an average generates part of the student's images).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from cudfkd_jax.methods.base import Method
from cudfkd_jax.methods.context import MethodContext, MethodSettings
from cudfkd_jax.methods.memory import replay
from cudfkd_jax.models.capture import FEATURES, apply
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.models.generator import Generator
from cudfkd_jax.models.optimisers import cosine_learning_rate
from cudfkd_jax.models.train_state import TrainState, gradient_norm
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import STUDENT, STUDENT_FEATURES, Metrics, StatefulTerm, Synthetic, Term
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.runtime.errors import UserError

READS = ("generator.schedule", "generator.ema_decay", "memory.capacity")  # by every method that `build` makes
SCHEDULES = ("constant", "cosine")  # of the generator's learning rate


class CarryingState(TrainState):
    """The state of a generator in training, with that of the objective's stateful term."""

    carried: Any


class Averaged(struct.PyTreeNode):
    """A generator in training and its exponential moving average.

    Attributes:
        state: the state of the generator in training.
        average: `{'params', 'batch_stats'}`, the averages of its variables.
    """

    state: TrainState
    average: dict[str, Any]


def build(
    context: MethodContext,
    terms: tuple[Term, ...],
    student_loss: StudentLoss,
    student_capture: tuple[str, ...] = (),
    stateful: StatefulTerm | None = None,
) -> Method:
    """Builds a method that trains a generator, with a memory of past images if one is configured.

    Args:
        context: provides the generator and its optimiser, the batch size and the memory.
        terms, student_loss, student_capture, stateful: see `generative_method`.

    Raises:
        UserError: there are no terms, or the batch size does not suit the memory.
    """
    if not terms and stateful is None:
        raise UserError(
            "every weight of the generator's objective is 0; set one of --config.synthesis.bn_weight, "
            "class_weight, balance_weight, --config.curriculum.adv or alpha"
        )

    def of_batches(size: int) -> Method:
        return generative_method(
            generator=generator(context),
            optimiser=generator_optimiser(context),
            latent_dim=context.generator.latent_dim,
            batch_size=size,
            terms=terms,
            student_loss=student_loss,
            student_capture=student_capture,
            stateful=stateful,
            ema_decay=context.generator.ema_decay,
        )

    method = of_batches(context.distill.batch_size)
    if not context.memory.capacity:
        return method
    rows = replay.replayed_rows(context.distill.batch_size)
    return replay.with_memory(
        method,
        sample_rows=of_batches(rows).sample,
        slots=replay.slots_for(context.memory.capacity, rows),
        rows=rows,
        steps_per_epoch=context.distill.steps_per_epoch,
        every_epochs=context.memory.every_epochs,
    )


def generator(settings: MethodSettings) -> Generator:
    """Returns the generator of methods whose generator does not normalise its images."""
    g = settings.generator
    return Generator(
        image_shape=settings.data.image_shape,
        latent_dim=g.latent_dim,
        ngf=g.width,
        stages=g.stages,
        dtype=settings.dtype,
        size=g.size,
        initialisation=g.initialisation,
    )


def generator_optimiser(settings: MethodSettings) -> optax.GradientTransformation:
    """Returns Adam for the generator, at a constant learning rate or with a cosine over the epochs."""
    g, d = settings.generator, settings.distill
    adam = functools.partial(optax.adam, b1=g.beta1, b2=g.beta2)
    if g.schedule != "cosine":
        return adam(g.learning_rate)
    # The rounds of the warm-up are no part of the epochs.
    cosine = cosine_learning_rate(g.learning_rate, d.epochs, d.rounds_per_epoch * d.synthesis_steps)
    warmup = d.warmup_rounds * d.synthesis_steps
    return adam(lambda count: cosine(jnp.maximum(count - warmup, 0)))


def generative_method(
    *,
    generator: nn.Module,
    optimiser: optax.GradientTransformation,
    latent_dim: int,
    batch_size: int,
    terms: tuple[Term, ...],
    student_loss: StudentLoss,
    student_capture: tuple[str, ...] = (),
    stateful: StatefulTerm | None = None,
    ema_decay: float = 0.0,
) -> Method:
    """Returns a method whose state is a generator's: a `TrainState`, or `Averaged` if `ema_decay` is not 0.

    Args:
        generator: called as `generator(z, train)`, z `[B, latent_dim]`, images `[B, H, W, C]` in [0, 1].
        optimiser: the generator's.
        batch_size: images per synthesis step and per student step, over all devices.
        terms: the synthesis objective; leave out terms whose weight is a constant 0.
        student_loss: see `Method`.
        student_capture: see `Method`.
        stateful: a further term, which makes the `TrainState` a `CarryingState`.
        ema_decay: d in [0, 1), the decay of the average that images are sampled from; 0 samples from θ itself.
    """
    needs = {need for term in terms for need in term.needs} | set(stateful.needs if stateful else ())
    capture = tuple(sorted(needs - {STUDENT, STUDENT_FEATURES}))
    student_features = (FEATURES,) if STUDENT_FEATURES in needs else ()

    def init(key: jax.Array) -> TrainState:
        variables = generator.init(key, jnp.zeros((1, latent_dim)), train=False)
        state = TrainState.create(dict(variables), optimiser)
        if stateful is None:
            return state
        carried = stateful.init(jax.random.fold_in(key, 1))
        return CarryingState(state.params, state.batch_stats, state.opt_state, carried)

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
                images,
                teacher(images, capture=capture),
                student(images, capture=student_features) if {STUDENT, STUDENT_FEATURES} & needs else None,
            )
            values = {term.name: term.value(synthetic, axis) for term in terms}
            loss = sum(term.weight(step) * values[term.name] for term in terms)
            weights = {term.weight_name: term.weight(step) for term in terms if term.weight_name}
            changes = {}
            if stateful:
                assert isinstance(aux, CarryingState)
                values[stateful.name], carried = stateful.value(synthetic, aux.carried, step, axis)
                loss += stateful.weight(step) * values[stateful.name]
                changes = {"carried": jax.lax.stop_gradient(carried)}
            return loss, (generated.batch_stats, changes, {"synthesis_loss": loss, **values, **weights})

        gradients, (batch_stats, changes, metrics) = jax.grad(objective, has_aux=True)(aux.params)
        gradients = axis.mean(gradients)
        metrics["synthesis_gradient_norm"] = gradient_norm(gradients)
        return aux.update(gradients, batch_stats, optimiser).replace(**changes), metrics

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
        student_loss=lambda student, teacher, aux, *at: method.student_loss(student, teacher, aux.state, *at),
        preview=lambda aux, *arguments: method.preview(sampled(aux), *arguments),
    )
