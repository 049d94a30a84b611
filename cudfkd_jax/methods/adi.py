"""ADI: Adaptive DeepInversion, which optimises the pixels of a batch of images.

H. Yin, P. Molchanov, J. M. Alvarez, Z. Li, A. Mallya, D. Hoiem, N. K. Jha, J. Kautz, "Dreaming to Distill:
Data-free Knowledge Transfer via DeepInversion", CVPR 2020. For a batch x `[B, H, W, C]` of normalised pixels with
random class targets y `[B]`, and x̃ the batch after one random roll and flip:

    synthesis  min_x  α_bn·L_bn(x̃) + α_c·CE(f_t(x̃), y) − α_adv·JS(f_t(x̃)/T, f_s(x̃)/T) + α_tv·TV(x)
    student    min    1/B Σ_i D(f_t(x_i), f_s(x_i)) on crops and flips of all images made so far

A round starts from x ~ N(0, 1). After each step x is clipped to the normalised range of pixels in [0, 1]. The
iterate with the lowest loss of the round enters a pool of uint8 images, as it was evaluated (before the step and
without jitter). Gradients of the competition term −JS flow through both networks.

As in the benchmark release of Fang et al. (2021), and unlike the paper's own code on CIFAR-10: Adam at 0.1 with
betas (0.5, 0.99), TV of absolute values instead of Euclidean norms, no L2 prior on the pixels, and one batch per
round rather than a data set synthesised beforehand. The first iterates are N(0, 1), unclipped.

Unlike that release: the best iterate is kept (there it shares storage with the pixels, so the last one is
returned); JS is exact (there P, Q and their mean are clamped to [0.01, 0.99]; neither has T²); stored pixels are
rounded to 256 levels, not truncated; the student's images are drawn from the pool with replacement, not in
shuffled passes; targets are not sorted, so that the last rows of a batch follow the same distribution.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from cudfkd_jax.methods import benchmark
from cudfkd_jax.methods.base import Method, MethodSpec
from cudfkd_jax.methods.context import MethodContext, MethodSettings
from cudfkd_jax.methods.memory.pool import Best, ImagePool
from cudfkd_jax.methods.memory.ring import Ring
from cudfkd_jax.methods.setting import number
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.models.train_state import TrainState, gradient_norm
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.inversion import InversionLoss
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.runtime.errors import require


class InversionState(struct.PyTreeNode):
    """The state of ADI.

    Attributes:
        pixels: the normalised pixels `[B, H, W, C]` as `params`, with their optimiser state.
        targets: int32 `[B]`, the target classes.
        best: the best pixels of the round so far.
        pool: stored images; see `ImagePool`.
    """

    pixels: TrainState
    targets: jax.Array
    best: Best
    pool: Ring


@dataclasses.dataclass(frozen=True)
class Settings:
    """The section `adi`."""

    learning_rate: float = number(0.1, above=0)  # Adam, on the pixels
    beta1: float = number(0.5, least=0, below=1)  # of Adam
    beta2: float = number(0.99, least=0, below=1)  # of Adam
    tv_weight: float = number(1e-3, least=0)  # total variation


def build(context: MethodContext) -> Method:
    """Builds ADI."""
    s, own = context.synthesis, context.own
    divergence = losses.js_divergence_released if context.released_js else competition
    return inversion_method(
        pool=ImagePool.of_run(context),
        num_classes=context.data.num_classes,
        mean=context.data.mean,
        std=context.data.std,
        optimiser=optax.adam(own.learning_rate, b1=own.beta1, b2=own.beta2),
        inversion=InversionLoss(
            s.bn_weight,
            s.class_weight,
            s.adversarial_weight,
            functools.partial(divergence, temperature=s.adversarial_temperature),
        ),
        tv_weight=own.tv_weight,
        student_loss=context.student_loss(),
    )


def check(settings: MethodSettings) -> None:
    """Rejects ADI without its main term."""
    weight = settings.synthesis.bn_weight
    require("synthesis.bn_weight", weight, weight > 0, "must be > 0")


def inversion_method(
    *,
    pool: ImagePool,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    optimiser: optax.GradientTransformation,
    inversion: InversionLoss,
    tv_weight: float,
    student_loss: StudentLoss,
) -> Method:
    """Returns ADI; each synthesis step of a round is one Adam step on the same batch.

    Args:
        pool: batch sizes, pool size and the student's augmentation; `pool.flip` also allows mirroring the batch
            while it is optimised.
        num_classes: targets are drawn uniformly from the classes.
        mean, std: the teacher's normalisation of images in [0, 1], one value per channel.
        optimiser: the pixels' optimiser.
        inversion: the loss of the jittered batch; its `bn_weight` must not be 0, and the teacher needs BatchNorm
            layers.
        tv_weight: weight of `total_variation` on normalised pixels; 0 skips it.
        student_loss: see `Method`.
    """
    shape = (pool.batch_size, *pool.image_shape)
    center, scale = np.asarray(mean), np.asarray(std)

    def fresh(key: jax.Array, images: Ring) -> InversionState:
        pixels_key, targets_key = jax.random.split(key)
        pixels = jax.random.normal(pixels_key, shape)
        targets = jax.random.randint(targets_key, shape[:1], 0, num_classes)
        return InversionState(
            TrainState.create({"params": pixels}, optimiser), targets, Best.start(pixels), images
        )

    def init(key: jax.Array) -> InversionState:
        return fresh(key, pool.create())

    def begin(
        aux: InversionState, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis
    ) -> InversionState:
        return fresh(key, aux.pool)

    def synthesise(
        aux: InversionState,
        teacher: FrozenClassifier,
        student: FrozenClassifier,
        key: jax.Array,
        step: jax.Array,
        axis: Axis,
    ) -> tuple[InversionState, Metrics]:
        def objective(pixels: jax.Array) -> tuple[jax.Array, Metrics]:
            # Undo the normalisation: the networks normalise their inputs.
            images = axis.shard(jitter(key, pixels, flip=pool.flip)) * scale + center
            loss, metrics, _ = inversion(images, axis.shard(aux.targets), teacher, student, axis)
            if tv_weight:
                metrics["tv_loss"] = total_variation(pixels)
                loss += tv_weight * metrics["tv_loss"]
            return loss, metrics

        pixels = aux.pixels.params
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(pixels)
        gradient = axis.mean(gradient)  # per device: its own rows' loss and the whole batch's total variation
        updated = aux.pixels.update(gradient, {}, optimiser)
        clipped = jnp.clip(updated.params, (0 - center) / scale, (1 - center) / scale)
        metrics |= {"synthesis_loss": loss, "synthesis_gradient_norm": gradient_norm(gradient)}
        best = aux.best.offer(loss, pixels)
        return aux.replace(pixels=updated.replace(params=clipped), best=best), metrics

    def finish(
        aux: InversionState, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis
    ) -> InversionState:
        return aux.replace(pool=pool.push(aux.pool, aux.best.value * scale + center))

    def sample(aux: InversionState, teacher: FrozenClassifier, key: jax.Array, axis: Axis) -> jax.Array:
        return pool.sample(aux.pool, key, axis)

    def preview(aux: InversionState, key: jax.Array, count: int) -> jax.Array:
        return pool.preview(aux.pool, key, count)

    return Method(init, synthesise, sample, student_loss, preview, begin, finish)


def competition(teacher_logits: jax.Array, student_logits: jax.Array, temperature: float) -> jax.Array:
    """Computes JS(softmax(z_t/T), softmax(z_s/T)) without T²: 1 − R_compete of Yin et al.

    Args:
        teacher_logits: `[B, C]`.
        student_logits: `[B, C]`.
        temperature: T > 0.

    Returns:
        `[B]` in [0, ln 2].
    """
    return losses.js_divergence(teacher_logits, student_logits, temperature) / temperature**2


def total_variation(images: jax.Array) -> jax.Array:
    """Computes the anisotropic total variation: Σ over four directions of mean |difference of neighbours|.

    The directions are across, down and both diagonals. Each mean is over the batch, the channels and all
    neighbouring pairs in that direction, so the value does not grow with the number or size of the images.

    Args:
        images: `[B, H, W, C]`, H and W at least 2.

    Returns:
        `[]`, non-negative.
    """
    pairs = (
        (images[:, :, :-1], images[:, :, 1:]),
        (images[:, :-1], images[:, 1:]),
        (images[:, 1:, :-1], images[:, :-1, 1:]),
        (images[:, :-1, :-1], images[:, 1:, 1:]),
    )
    return sum((jnp.mean(jnp.abs(a - b)) for a, b in pairs), start=jnp.asarray(0.0))


def jitter(key: jax.Array, images: jax.Array, *, flip: bool) -> jax.Array:
    """Rolls the whole batch by up to 1/8 of its height and width, wrapping round, and may mirror it.

    Args:
        key: the random key; shifts are uniform, and the batch is mirrored with probability 1/2.
        images: `[B, H, W, C]`.
        flip: whether the batch may be mirrored left to right.
    """
    down_key, across_key, flip_key = jax.random.split(key, 3)
    height, width = images.shape[1:3]
    down = jax.random.randint(down_key, (), -(height // 8), height // 8 + 1)
    across = jax.random.randint(across_key, (), -(width // 8), width // 8 + 1)
    images = jnp.roll(jnp.roll(images, down, axis=1), across, axis=2)
    return jnp.where(jax.random.bernoulli(flip_key), images[:, :, ::-1], images) if flip else images


SPEC = MethodSpec(
    name="adi",
    label="ADI",
    build=build,
    recipe={
        "distill": {
            **benchmark.KL,
            "rounds_per_epoch": 1,
            "synthesis_steps": 1000,
            "student_steps": 400,
            "temperature": 20.0,
        },
        "synthesis": {
            "bn_weight": 10.0,
            "class_weight": 1.0,
            "adversarial_weight": 1.0,
            "adversarial_temperature": 3.0,
        },
    },
    settings=Settings,
    check=check,
    needs_batch_norm=True,
    pooled=True,
)
