"""MB-DFKD: data-free knowledge distillation with a memory bank of past synthetic images.

K. Binici, N. T. Pham, T. Mitra, K. Leman, "Preventing Catastrophic Forgetting and Distribution Mismatch in
Knowledge Distillation via Synthetic Data", WACV 2022. For x = G_θ(z), B images, C classes, p̄ the batch mean of
softmax(z_t), φ the teacher's features before its last layer:

    generator   L_oh(x) + 5 · Σ_c p̄_c log10(p̄_c + ε) − 0.1 · mean |φ| + 1 − JS(x)
    JS          1/(B·C) Σ_i JS(softmax(z_t(x_i)/3), softmax(z_s(x_i)/3)),  no gradient through the teacher
    student     1/B' Σ_i mean_c |z_t(x_i) − z_s(x_i)|  on B' = B + B/8 images: new ones and a slot of the memory

with ε = 1e-8, which keeps an absent class out of log 0; the code has none.

After epochs 0, 5, 10, ... B/8 images enter a ring of 10 slots; see `memory.replay`. The settings follow a third
party's code, and so does the mean over all B·C elements, which weakens JS by a factor C. Differences from it and
from PRE-DFKD's released code, and why:

* there JS is computed from probabilities clamped to [0.01, 0.99] and then itself clamped to [0, 1]. Classes below
  1 %, nearly all of 100 classes, get no gradient; the exact divergence is therefore the default here, and the
  clamped one (`released_js`) an option;
* the student is in evaluation mode while the generator trains, as in every method here;
* while the memory is empty, the last B/8 images are new ones, so that all batches have the same size.

As in PRE-DFKD's release, whose generator is never put into evaluation mode, images for the student are
normalised with the statistics of their own batch: at a learning rate of 0.02, running averages updated once per
round lag far behind the generator.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cudfkd_jax.methods.base import Method, MethodSpec, Recipe
from cudfkd_jax.methods.context import MethodContext, MethodSettings
from cudfkd_jax.methods.generative import generative_method, generator_optimiser
from cudfkd_jax.methods.memory.replay import Sample, replayed_rows, slots_for, with_memory
from cudfkd_jax.models.capture import apply
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.models.vae import NormalisedGenerator
from cudfkd_jax.objectives import losses, terms
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import STUDENT, Synthetic, Term
from cudfkd_jax.runtime.devices import SINGLE, Axis

_TEMPERATURE = 3.0  # of JS


def build(context: MethodContext) -> Method:
    """Builds MB-DFKD."""
    rows = replayed_rows(context.distill.batch_size)
    return mb_dfkd_method(
        generator=normalised_generator(context, spectral_norm=False),
        optimiser=generator_optimiser(context),
        latent_dim=context.generator.latent_dim,
        batch_size=context.distill.batch_size,
        terms=terms_of(context),
        student_loss=context.student_loss(),
        slots=slots_for(context.memory.capacity, rows),
        steps_per_epoch=context.distill.steps_per_epoch,
        every_epochs=context.memory.every_epochs,
    )


def normalised_generator(settings: MethodSettings, *, spectral_norm: bool) -> NormalisedGenerator:
    """Returns the generator of MB-DFKD and PRE-DFKD."""
    d, g = settings.data, settings.generator
    return NormalisedGenerator(
        image_shape=d.image_shape,
        latent_dim=g.latent_dim,
        mean=d.mean,
        std=d.std,
        width=g.width,
        stages=g.stages,
        spectral_norm=spectral_norm,
        dtype=settings.dtype,
    )


def terms_of(settings: MethodSettings) -> tuple[Term, ...]:
    """Returns `synthesis_terms` with the configured weights."""
    s = settings.synthesis
    return synthesis_terms(
        class_weight=s.class_weight,
        balance_weight=s.balance_weight,
        feature_weight=s.activation_weight,
        adversarial_weight=s.adversarial_weight,
        released_js=settings.released_js,
    )


def mb_dfkd_method(
    *,
    generator: nn.Module,
    optimiser: optax.GradientTransformation,
    latent_dim: int,
    batch_size: int,
    terms: tuple[Term, ...],
    student_loss: StudentLoss,
    slots: int,
    steps_per_epoch: int,
    every_epochs: int,
) -> Method:
    """Returns MB-DFKD, whose state is a generator's `TrainState` in a `replay.Remembering`.

    Args:
        generator: called as `generator(z, train)`, z `[B, latent_dim]`; see `models.vae`.
        optimiser: the generator's.
        batch_size: B, images per synthesis step and new images per student step, over all devices.
        terms: the synthesis objective, `synthesis_terms`.
        student_loss: see `Method`; the paper's is L1 on logits.
        slots: slots of the ring; each holds B/8 images.
        steps_per_epoch: student steps per epoch.
        every_epochs: images are stored after epoch 0 and every `every_epochs` epochs from then on.

    Raises:
        UserError: the batch size is not a multiple of 8, or another number is not positive.
    """
    rows = replayed_rows(batch_size)
    method = generative_method(
        generator=generator,
        optimiser=optimiser,
        latent_dim=latent_dim,
        batch_size=batch_size,
        terms=terms,
        student_loss=student_loss,
    )

    def preview(aux: TrainState, key: jax.Array, count: int) -> jax.Array:
        return draw_images(generator, aux, jax.random.normal(key, (count, latent_dim)), SINGLE)

    return with_memory(
        method._replace(sample=_sampler(generator, latent_dim, batch_size), preview=preview),
        sample_rows=_sampler(generator, latent_dim, rows),
        slots=slots,
        rows=rows,
        steps_per_epoch=steps_per_epoch,
        every_epochs=every_epochs,
    )


def synthesis_terms(
    *,
    class_weight: float,
    balance_weight: float,
    feature_weight: float,
    adversarial_weight: float,
    released_js: bool,
) -> tuple[Term, ...]:
    """Returns the generator's objective of MB-DFKD and PRE-DFKD, without terms of weight 0.

    Args:
        class_weight: weight of L_oh.
        balance_weight: weight of Σ p̄ log10(p̄ + 1e-8); the metric reports the natural logarithm.
        feature_weight: weight of −mean |φ|.
        adversarial_weight: weight of 1 − JS.
        released_js: takes the clamped JS of the released code.
    """
    chosen = (
        (class_weight, terms.class_term(class_weight)),
        (balance_weight, terms.balance_term(balance_weight / math.log(10))),
        (feature_weight, terms.feature_term(feature_weight)),
        (adversarial_weight, disagreement_term(adversarial_weight, released_js=released_js)),
    )
    return tuple(term for weight, term in chosen if weight)


def disagreement_term(weight: float, *, released_js: bool) -> Term:
    """Returns 1 − JS at T = 3, JS in [0, 1] averaged over images and classes, without the teacher's gradient."""

    def value(synthetic: Synthetic, axis: Axis) -> jax.Array:
        assert synthetic.student is not None
        teacher = jax.lax.stop_gradient(synthetic.teacher.value)
        student = synthetic.student.value
        if released_js:
            distances = losses.js_divergence_released(teacher, student, _TEMPERATURE)
        else:
            distances = losses.js_divergence(teacher, student, _TEMPERATURE) / _TEMPERATURE**2
        js = axis.mean(jnp.mean(distances)) / teacher.shape[-1]
        return 1 - jnp.clip(js, 0, 1)  # JS of clamped probabilities may be negative

    return Term("adversarial_loss", value, optax.constant_schedule(weight), (STUDENT,))


def draw_images(generator: nn.Module, state: TrainState, z: jax.Array, axis: Axis) -> jax.Array:
    """Generates images from this device's latents, normalised with the statistics of the batch on all devices.

    Args:
        generator: see `mb_dfkd_method`.
        state: the generator's state, left unchanged.
        z: `[B / axis.size, latent_dim]`.
        axis: the devices that share the batch.

    Returns:
        `[B / axis.size, H, W, C]`.
    """
    return apply(generator, state.variables, z, train=True, axis=axis).value


def _sampler(generator: nn.Module, latent_dim: int, count: int) -> Sample:
    def sample(aux: TrainState, teacher: FrozenClassifier, key: jax.Array, axis: Axis) -> jax.Array:
        return draw_images(generator, aux, axis.shard(jax.random.normal(key, (count, latent_dim))), axis)

    return sample


# The settings of a third party's code, which PRE-DFKD shares.
SHARED_RECIPE: Recipe = {
    "generator": {"latent_dim": 1000, "learning_rate": 0.02, "beta1": 0.9, "beta2": 0.999},
    "distill": {"epochs": 400, "rounds_per_epoch": 36, "batch_size": 1024, "loss": "l1", "weight_decay": 5e-4},
    "synthesis": {"class_weight": 1.0, "balance_weight": 5.0, "activation_weight": 0.1, "adversarial_weight": 1.0},
}

SPEC = MethodSpec(
    name="mb_dfkd",
    label="MB-DFKD",
    build=build,
    recipe={**SHARED_RECIPE, "memory": {"capacity": 1280, "every_epochs": 5}},
    reads=("generator.schedule", "memory.capacity"),
    replays=True,
)
