"""CMI: contrastive model inversion, which fits a new generator and its latents for each batch of images.

G. Fang, J. Song, X. Wang, C. Shen, X. Wang, M. Song, "Contrastive Model Inversion for Data-Free Knowledge
Distillation", IJCAI 2021. For x = G_θ(z), z `[B, nz]` with random class targets y `[B]`, a global view x^g (random
crop of a zero-padded image, and flip) and a local one x^l (resized crop of 1/4 to all of the area, and flip):

    synthesis  min_{θ,z,h}  α_bn·L_bn(x^g) + α_c·CE(f_t(x^g), y) − α_adv·KL[agree](f_t(x^g), f_s(x^g))
                            + α_cr·(mean over the batch + mean over the bank) InfoNCE(h(φ(x^l)), h(φ(x^g)))
    student    min          1/B Σ_i D(f_t(x_i), f_s(x_i)) on crops and flips of all images made so far

φ(x) `[B, D]` are channel means within the teacher, h the projection head (`objectives.contrastive`), KL[agree] the
masked divergence of `losses.masked_adversarial`. Each round starts with a new θ and z; h and its optimiser state
persist. The iterate with the lowest loss of the round is kept, as evaluated (before the step): its images x enter
a pool of uint8 images, its raw features [φ(x^l), φ(x^g)] `[B, 2D]` a bank of negatives for later rounds.

Unlike the authors' release: the bank is sampled without replacement at every fill level (there, when it has just
become full, nothing is drawn and the loss becomes NaN); the local view is interpolated with pixel centres at
half-integers, and its box may be as large as the image (a mean area of 0.584, there 0.551); stored images are
rounded to 256 levels, not truncated; the student's images are drawn from the pool with replacement, not in
shuffled passes; targets are not sorted, so that the last rows of a batch follow the same distribution; the pool
starts empty. The generator's module initialises θ; the release takes N(0, 0.02). Some of its scripts crash as
published because they omit `--curr_option none`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from cudfkd_jax.data.augment import random_crop_flip, random_resized_crop
from cudfkd_jax.methods import benchmark, generative
from cudfkd_jax.methods.base import Method, MethodSpec, Recipe, RecipeContext
from cudfkd_jax.methods.context import MethodContext
from cudfkd_jax.methods.memory.pool import Best, ImagePool
from cudfkd_jax.methods.memory.ring import Ring
from cudfkd_jax.methods.setting import choice, number
from cudfkd_jax.models.capture import apply
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.models.train_state import TrainState, gradient_norm
from cudfkd_jax.objectives import contrastive, losses
from cudfkd_jax.objectives.contrastive import FEATURES, Head, Views, contrastive_loss, instance_features
from cudfkd_jax.objectives.inversion import InversionLoss
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.runtime.errors import UserError


class ContrastiveState(struct.PyTreeNode):
    """The state of CMI.

    Attributes:
        synthesis: the generator's parameters and the latents `[B, nz]`, under one optimiser.
        targets: int32 `[B]`, the target classes.
        head: the projection head.
        best: images `[B, H, W, C]` and features `[B, 2D]` of the round's best iterate so far.
        pool: stored images; see `ImagePool`.
        bank: features of stored iterates, one batch per slot.
    """

    synthesis: TrainState
    targets: jax.Array
    head: TrainState
    best: Best
    pool: Ring
    bank: Ring


@dataclasses.dataclass(frozen=True)
class Settings:
    """The section `cmi`."""

    contrastive_weight: float = number(0.8, above=0)  # of the contrastive loss
    contrastive_temperature: float = number(0.1, above=0)  # of the contrastive loss
    features: str = choice("bn", tuple(FEATURES))  # channel means at every BatchNorm input or ResNet "stages"
    head_width: int = number(256, above=0)  # of the projection head
    head_learning_rate: float = number(1e-3, above=0)  # Adam
    bank_rows: int = number(40960, above=0)  # stored image features from which negatives are drawn
    bank_draws: int = number(4096, above=0)  # per step


def build(context: MethodContext) -> Method:
    """Builds CMI, without its BN term if the teacher has no BatchNorm."""
    s, own = context.synthesis, context.own
    return contrastive_method(
        pool=ImagePool.of_run(context),
        num_classes=context.data.num_classes,
        generator=generative.generator(context),
        latent_dim=context.generator.latent_dim,
        optimiser=generative.generator_optimiser(context),
        head_optimiser=optax.adam(own.head_learning_rate),
        inversion=InversionLoss(
            context.bn_weight,
            s.class_weight,
            s.adversarial_weight,
            functools.partial(losses.masked_adversarial, temperature=s.adversarial_temperature),
        ),
        settings=own,
        feature_dim=contrastive.feature_dim(context.teacher, context.data.image_shape, own.features),
        student_loss=context.student_loss(),
    )


def recipe(context: RecipeContext) -> Recipe:
    """Returns the release's settings; a ResNet's features are those of its stages.

    All BatchNorm inputs of a ResNet would give the head many millions of parameters.
    """
    return {
        "generator": {**benchmark.LARGE_GENERATOR, "size": "small", "initialisation": "normal"},
        "distill": {
            **benchmark.KL,
            "rounds_per_epoch": 1,
            "synthesis_steps": 200,
            "student_steps": 400,
            "batch_size": 128,
            "temperature": 20.0,
        },
        "synthesis": {
            "batch_size": 256,
            "bn_weight": 1.0,
            "class_weight": 1.0,
            "adversarial_weight": 0.5,
            "adversarial_temperature": 1.0,
        },
        "cmi": {"features": "stages"} if context.teacher.startswith("resnet") else {},
    }


def contrastive_method(
    *,
    pool: ImagePool,
    num_classes: int,
    generator: nn.Module,
    latent_dim: int,
    optimiser: optax.GradientTransformation,
    head_optimiser: optax.GradientTransformation,
    inversion: InversionLoss,
    settings: Settings,
    feature_dim: int,
    student_loss: StudentLoss,
) -> Method:
    """Returns CMI; all synthesis steps of a round optimise the same batch.

    Args:
        pool: batch sizes, pool size and the student's augmentation, which also produces global views;
            `pool.flip` also allows mirroring local views.
        num_classes: targets are drawn uniformly from the classes.
        generator: called as `generator(z, train)`, z `[B, latent_dim]`, images `[B, H, W, C]` in [0, 1].
        latent_dim: nz.
        optimiser: optimiser of the generator and the latents, reset each round.
        head_optimiser: optimiser of the projection head.
        inversion: the loss of the global view.
        settings: α_cr = `contrastive_weight`, τ = `contrastive_temperature`, φ = `features`, the head and the
            bank; while the bank holds fewer than `bank_draws` rows, all of them are drawn.
        feature_dim: D, see `contrastive.feature_dim`.
        student_loss: see `Method`.

    Raises:
        UserError: at construction, if `bank_rows` is not a multiple of the batch size or below `bank_draws`.
    """
    batch_size, features = pool.batch_size, settings.features
    _check_bank(settings.bank_rows, settings.bank_draws, batch_size)
    head = Head(settings.head_width)

    def fresh(key: jax.Array, head_state: TrainState, images: Ring, bank: Ring) -> ContrastiveState:
        generator_key, latents_key, targets_key = jax.random.split(key, 3)
        z = jax.random.normal(latents_key, (batch_size, latent_dim))
        variables = generator.init(generator_key, z[:1], train=False)
        params = {"generator": variables["params"], "latents": z}
        trained = {"params": params, "batch_stats": variables.get("batch_stats", {})}
        best = Best.start((jnp.zeros((batch_size, *pool.image_shape)), jnp.zeros((batch_size, 2 * feature_dim))))
        targets = jax.random.randint(targets_key, (batch_size,), 0, num_classes)
        return ContrastiveState(TrainState.create(trained, optimiser), targets, head_state, best, images, bank)

    def init(key: jax.Array) -> ContrastiveState:
        head_key, key = jax.random.split(key)
        head_state = TrainState.create(dict(head.init(head_key, jnp.zeros((1, feature_dim)))), head_optimiser)
        bank = Ring.create(settings.bank_rows // batch_size, batch_size, (2 * feature_dim,), float)
        return fresh(key, head_state, pool.create(), bank)

    def begin(
        aux: ContrastiveState, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis
    ) -> ContrastiveState:
        return fresh(key, aux.head, aux.pool, aux.bank)

    def synthesise(
        aux: ContrastiveState,
        teacher: FrozenClassifier,
        student: FrozenClassifier,
        key: jax.Array,
        step: jax.Array,
        axis: Axis,
    ) -> tuple[ContrastiveState, Metrics]:
        bank_key, views_key = jax.random.split(key)
        rows, drawn = aux.bank.draw_distinct(bank_key, settings.bank_draws)
        past = Views(*jnp.split(rows, 2, axis=-1))

        def objective(params, head_params):
            variables = {"params": params["generator"], "batch_stats": aux.synthesis.batch_stats}
            generated = apply(generator, variables, axis.shard(params["latents"]), train=True, axis=axis)
            images = axis.gather(generated.value)  # views and the stored iterate need the whole batch
            global_view, local_view = (axis.shard(view) for view in _views(views_key, images, pool))
            loss, metrics, seen = inversion(
                global_view, axis.shard(aux.targets), teacher, student, axis, capture=(FEATURES[features],)
            )
            seen_locally = teacher(local_view, capture=(FEATURES[features],))
            batch = Views(*(axis.gather(instance_features(s, features)) for s in (seen_locally, seen)))

            metrics["contrastive_loss"] = contrastive_loss(
                functools.partial(head.apply, {"params": head_params}),
                batch,
                past,
                drawn,
                settings.contrastive_temperature,
            )
            loss += settings.contrastive_weight * metrics["contrastive_loss"]
            return loss, (generated.batch_stats, metrics, (images, jnp.concatenate(batch, axis=-1)))

        state = aux.synthesis
        (loss, (batch_stats, metrics, made)), gradients = jax.value_and_grad(objective, (0, 1), has_aux=True)(
            state.params, aux.head.params
        )
        gradients = axis.mean(gradients)
        metrics |= {"synthesis_loss": loss, "synthesis_gradient_norm": gradient_norm(gradients)}
        return aux.replace(
            synthesis=state.update(gradients[0], batch_stats, optimiser),
            head=aux.head.update(gradients[1], {}, head_optimiser),
            best=aux.best.offer(loss, made),
        ), metrics

    def finish(
        aux: ContrastiveState, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis
    ) -> ContrastiveState:
        images, seen = aux.best.value
        return aux.replace(pool=pool.push(aux.pool, images), bank=aux.bank.push(seen))

    def sample(aux: ContrastiveState, teacher: FrozenClassifier, key: jax.Array, axis: Axis) -> jax.Array:
        return pool.sample(aux.pool, key, axis)

    def preview(aux: ContrastiveState, key: jax.Array, count: int) -> jax.Array:
        return pool.preview(aux.pool, key, count)

    return Method(init, synthesise, sample, student_loss, preview, begin, finish)


def _views(key: jax.Array, images: jax.Array, pool: ImagePool) -> tuple[jax.Array, jax.Array]:
    """Returns the global and the local view of each image."""
    global_key, box_key, flip_key = jax.random.split(key, 3)
    local_view = random_resized_crop(box_key, images)
    return (
        random_crop_flip(global_key, images, padding=pool.padding, flip=pool.flip),
        random_crop_flip(flip_key, local_view, padding=0, flip=pool.flip),
    )


def _check_bank(rows: int, draws: int, batch_size: int) -> None:
    if rows < batch_size or rows % batch_size:
        raise UserError(
            f"bank_rows={rows} does not hold whole synthetic batches of batch_size={batch_size}; set bank_rows "
            f"to a multiple, such as {max(rows // batch_size, 1) * batch_size}"
        )
    if not 0 < draws <= rows:
        raise UserError(f"bank_draws={draws} of bank_rows={rows} cannot be drawn; choose 1 to {rows}")


SPEC = MethodSpec(
    name="cmi",
    label="CMI",
    build=build,
    recipe=recipe,
    settings=Settings,
    pooled=True,
    memory_settings=("bank_rows", "head_width"),
)
