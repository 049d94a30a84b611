"""FastDFKD: batches of images in a few steps, from a generator that learns to be adapted.

G. Fang, K. Mo, X. Wang, J. Song, S. Bei, H. Zhang, M. Song, "Up to 100× Faster Data-Free Knowledge Distillation",
AAAI 2022. A round copies the meta generator θ̂ to θ, draws latents z `[B, nz]` ~ N(0, 1) and random class targets y
`[B]`, and adapts both in n steps; x' is x = G_θ(z), cropped from a zero-padded image and mirrored:

    synthesis  min_{θ,z}  α_bn·L_bn(x') + α_c·CE(f_t(x'), y) − α_adv·KL[agree](f_t(x'), f_s(x'))
    meta       θ̂ ← θ̂ − Adam(Σ over the n steps of ∇_θ)    (first-order MAML), lr n·lr_g
    student    min        1/B Σ_i D(f_t(x_i), f_s(x_i)) on crops and flips of all images made so far

L_bn has a memory of earlier rounds: the statistics that a layer aligns are (1 − ρ) times the batch's plus ρ times
their average over the rounds. The images of the step with the lowest loss enter a pool of uint8 images. The first
rounds are a warm-up without student steps; the adversarial term begins with the last of them. Before one round the
first layer of θ̂ is drawn anew. The optimisers of θ and z begin anew in each round, that of θ̂ does not.

In the released code, stored images are truncated to 256 levels and not rounded, and the student takes the pool in
shuffled passes, not with replacement.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.methods import benchmark, generative
from cudfkd_jax.methods.base import Method, MethodSpec, Recipe, RecipeContext
from cudfkd_jax.methods.context import MethodContext, MethodSettings
from cudfkd_jax.methods.memory.pool import Best, ImagePool
from cudfkd_jax.methods.memory.ring import Ring
from cudfkd_jax.methods.setting import number
from cudfkd_jax.models.capture import BN, BNStatistics, apply
from cudfkd_jax.models.classifier import Classifier, FrozenClassifier
from cudfkd_jax.models.train_state import TrainState, gradient_norm
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.runtime.errors import UserError

Statistics = tuple[tuple[jax.Array, jax.Array], ...]  # mean and variance of each BatchNorm layer's input

# Published learning rates of generator and latents by the number of synthesis steps.
LEARNING_RATES = {2: (5e-3, 0.015), 5: (3e-3, 0.01), 10: (2e-3, 0.01)}


class FastState(struct.PyTreeNode):
    """The state of FastDFKD.

    Attributes:
        meta: the meta generator.
        fast: the adapted generator and the latents `[B, nz]`, under one optimiser.
        slope: the sum of the round's gradients by the adapted generator's parameters.
        targets: int32 `[B]`, the target classes.
        best: images `[B, H, W, C]` of the round's best iterate so far.
        seen: the statistics of the newest synthesis step.
        remembered: their average over the rounds.
        rounds: int32, the number of rounds begun.
        pool: stored images; see `ImagePool`.
    """

    meta: TrainState
    fast: TrainState
    slope: Any
    targets: jax.Array
    best: Best
    seen: Statistics
    remembered: Statistics
    rounds: jax.Array
    pool: Ring


@dataclasses.dataclass(frozen=True)
class Settings:
    """The section `fastdfkd`."""

    learning_rate: float = number(0.0, least=0)  # lr_g, Adam; 0: as published for 2, 5 and 10 synthesis steps
    latents_learning_rate: float = number(0.0, least=0)  # lr_z, Adam; 0: likewise
    bn_memory: float = number(0.9, least=0, below=1)  # ρ
    reset_round: int = number(140, least=0)  # before which the first layer is drawn anew, counted from 1; 0: never


def learning_rates(own: Settings, synthesis_steps: int) -> tuple[float, float]:
    """Returns lr_g and lr_z.

    Raises:
        UserError: one of them is not given, and none is published for this number of steps.
    """
    given = own.learning_rate, own.latents_learning_rate
    if all(given):
        return given
    if synthesis_steps not in LEARNING_RATES:
        raise UserError(
            f"distill.synthesis_steps={synthesis_steps} has no published learning rates; expected one of "
            f"{', '.join(map(str, LEARNING_RATES))}. Set --config.distill.synthesis_steps, or both "
            "--config.fastdfkd.learning_rate and --config.fastdfkd.latents_learning_rate"
        )
    published = LEARNING_RATES[synthesis_steps]
    return given[0] or published[0], given[1] or published[1]


def check(settings: MethodSettings) -> None:
    """Rejects a number of synthesis steps without learning rates, and the setting of those of other generators."""
    learning_rates(settings.own, settings.distill.synthesis_steps)
    rate = settings.generator.learning_rate
    if rate != benchmark.LARGE_GENERATOR["learning_rate"]:
        raise UserError(
            f"generator.learning_rate={rate} is not read by fastdfkd; leave it out and set "
            "--config.fastdfkd.learning_rate"
        )


def build(context: MethodContext) -> Method:
    """Builds FastDFKD, without its BN term if the teacher has no BatchNorm.

    Raises:
        UserError: the objective of the images has no term.
    """
    s, g, d = context.synthesis, context.generator, context.distill
    weights = Weights(context.bn_weight, s.class_weight, s.adversarial_weight)
    if not any(dataclasses.astuple(weights)):
        raise UserError(
            "every weight of the objective of the images is 0; set one of --config.synthesis.class_weight, "
            "adversarial_weight and, for a teacher with BatchNorm, bn_weight"
        )
    lr_g, lr_z = learning_rates(context.own, d.synthesis_steps)
    adam = functools.partial(optax.adam, b1=g.beta1, b2=g.beta2)
    return meta_method(
        pool=ImagePool.of_run(context),
        num_classes=context.data.num_classes,
        generator=generative.generator(context),
        latent_dim=g.latent_dim,
        optimiser=optax.partition({"generator": adam(lr_g), "latents": adam(lr_z)}, _KINDS),
        meta_optimiser=adam(d.synthesis_steps * lr_g),
        weights=weights,
        temperature=s.adversarial_temperature,
        warmup_rounds=d.warmup_rounds,
        settings=context.own,
        statistics=statistics_of(context.teacher, context.data.image_shape) if context.bn_weight else (),
        student_loss=context.student_loss(),
    )


_KINDS = {"generator": "generator", "latents": "latents"}  # of the parameters, by optimiser


@dataclasses.dataclass(frozen=True)
class Weights:
    """α_bn, α_c and α_adv."""

    bn: float
    classes: float
    adversarial: float


def statistics_of(teacher: Classifier, image_shape: tuple[int, int, int]) -> Any:
    """Returns the shapes of the teacher's `Statistics`, by abstract evaluation."""

    def statistics(key: jax.Array) -> Statistics:
        images = jnp.zeros((1, *image_shape))
        return _statistics(teacher(teacher.init(key, image_shape), images, capture=(BN,)).bn)

    return jax.eval_shape(statistics, jax.random.key(0))


def meta_method(
    *,
    pool: ImagePool,
    num_classes: int,
    generator: nn.Module,
    latent_dim: int,
    optimiser: optax.GradientTransformation,
    meta_optimiser: optax.GradientTransformation,
    weights: Weights,
    temperature: float,
    warmup_rounds: int,
    settings: Settings,
    statistics: Any,
    student_loss: StudentLoss,
) -> Method:
    """Returns FastDFKD; all synthesis steps of a round optimise the same batch.

    Args:
        pool: batch sizes, pool size, and the augmentation of the student's and of the synthetic images.
        num_classes: targets are drawn uniformly from the classes.
        generator: called as `generator(z, train)`, z `[B, latent_dim]`, images `[B, H, W, C]` in [0, 1].
        latent_dim: nz.
        optimiser: of `{"generator": …, "latents": …}`, reset each round.
        meta_optimiser: of the meta generator.
        weights: of the terms; one of weight 0 is not computed.
        temperature: of the adversarial term.
        warmup_rounds: rounds without student steps.
        settings: ρ and the round of the reset.
        statistics: shapes of `Statistics`; empty without BatchNorm.
        student_loss: see `Method`.
    """
    batch_size = pool.batch_size
    zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype))

    def fresh(meta: TrainState, key: jax.Array) -> dict[str, Any]:
        """Returns the parts of the state that a round begins with."""
        latents_key, targets_key = jax.random.split(key)
        # Copied, because a step donates the buffers of the whole state and may donate each only once.
        params = jax.tree.map(jnp.copy, meta.params)
        batch_stats = jax.tree.map(jnp.copy, meta.batch_stats)
        latents = jax.random.normal(latents_key, (batch_size, latent_dim))
        adapted = {"params": {"generator": params, "latents": latents}, "batch_stats": batch_stats}
        return {
            "fast": TrainState.create(adapted, optimiser),
            "slope": zeros(params),
            "targets": jax.random.randint(targets_key, (batch_size,), 0, num_classes),
            "best": Best.start(jnp.zeros((batch_size, *pool.image_shape))),
        }

    def init(key: jax.Array) -> FastState:
        generator_key, key = jax.random.split(key)
        variables = generator.init(generator_key, jnp.zeros((1, latent_dim)), train=False)
        meta = TrainState.create(dict(variables), meta_optimiser)
        return FastState(
            meta=meta,
            seen=zeros(statistics),
            remembered=zeros(statistics),
            rounds=jnp.zeros((), jnp.int32),
            pool=pool.create(),
            **fresh(meta, key),
        )

    def begin(aux: FastState, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis) -> FastState:
        reset_key, key = jax.random.split(key)
        rounds, meta = aux.rounds + 1, aux.meta
        if settings.reset_round:
            due = rounds == settings.reset_round
            drawn = draw_first_layer(meta.params, reset_key)
            meta = meta.replace(params=jax.tree.map(functools.partial(jnp.where, due), drawn, meta.params))
        return aux.replace(meta=meta, rounds=rounds, **fresh(meta, key))

    def synthesise(
        aux: FastState,
        teacher: FrozenClassifier,
        student: FrozenClassifier,
        key: jax.Array,
        step: jax.Array,
        axis: Axis,
    ) -> tuple[FastState, Metrics]:
        memory = settings.bn_memory * (aux.rounds > 1)
        adversarial = weights.adversarial * (aux.rounds >= warmup_rounds)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params["generator"], "batch_stats": aux.fast.batch_stats}
            generated = apply(generator, variables, axis.shard(params["latents"]), train=True, axis=axis)
            images = axis.gather(generated.value)  # augmented and stored as a whole
            augmented = axis.shard(random_crop_flip(key, images, padding=pool.padding, flip=pool.flip))
            outputs = teacher(augmented, capture=(BN,) if weights.bn else ())
            terms: dict[str, tuple[Any, jax.Array]] = {}
            if weights.bn:
                aligned = bn_alignment_with_memory(outputs.bn, aux.remembered, memory)
                terms["bn_loss"] = weights.bn, aligned
            if weights.classes:
                loss = losses.cross_entropy(outputs.value, axis.shard(aux.targets))
                terms["class_loss"] = weights.classes, axis.mean(jnp.mean(loss))
            if weights.adversarial:
                loss = losses.masked_adversarial(outputs.value, student(augmented).value, temperature)
                terms["adversarial_loss"] = adversarial, -axis.mean(jnp.mean(loss))
            loss = sum((weight * value for weight, value in terms.values()), start=jnp.asarray(0.0))
            metrics = {name: value for name, (_, value) in terms.items()}
            return loss, (generated.batch_stats, images, _statistics(outputs.bn), metrics)

        evaluated = jax.value_and_grad(objective, has_aux=True)(aux.fast.params)
        (loss, (batch_stats, images, seen, metrics)), gradients = evaluated
        gradients = axis.mean(gradients)
        metrics |= {"synthesis_loss": loss, "synthesis_gradient_norm": gradient_norm(gradients)}
        return aux.replace(
            fast=aux.fast.update(gradients, batch_stats, optimiser),
            slope=jax.tree.map(jnp.add, aux.slope, gradients["generator"]),
            best=aux.best.offer(loss, images),
            seen=seen,
        ), metrics

    def finish(
        aux: FastState, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis
    ) -> FastState:
        memory = settings.bn_memory * (aux.rounds > 1)
        return aux.replace(
            meta=aux.meta.update(aux.slope, aux.meta.batch_stats, meta_optimiser),
            remembered=jax.tree.map(lambda old, new: memory * old + (1 - memory) * new, aux.remembered, aux.seen),
            pool=pool.push(aux.pool, aux.best.value),
        )

    def sample(aux: FastState, teacher: FrozenClassifier, key: jax.Array, axis: Axis) -> jax.Array:
        return pool.sample(aux.pool, key, axis)

    def preview(aux: FastState, key: jax.Array, count: int) -> jax.Array:
        return pool.preview(aux.pool, key, count)

    return Method(init, synthesise, sample, student_loss, preview, begin, finish)


def bn_alignment_with_memory(
    layers: tuple[BNStatistics, ...], remembered: Statistics, memory: jax.Array
) -> jax.Array:
    """Computes `losses.bn_alignment` of (1 − ρ) times the batch's statistics plus ρ times the remembered ones.

    Args:
        layers: statistics at the input of each BatchNorm layer of the teacher.
        remembered: means and variances, one pair per layer.
        memory: ρ, a scalar.
    """

    def mixed(new: jax.Array, old: jax.Array) -> jax.Array:
        return (1 - memory) * new + memory * old

    pairs = zip(layers, remembered, strict=True)
    return losses.bn_alignment(
        layer._replace(mean=mixed(layer.mean, mean), var=mixed(layer.var, var)) for layer, (mean, var) in pairs
    )


def draw_first_layer(params: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """Returns a generator's parameters with weights of the linear layer and of its BatchNorm from N(0, 0.02).

    Biases are 0. The scale of BatchNorm is around 0, as in the release, not around 1.
    """
    linear, norm = params["linear"], params["bn0"]
    kernel_key, scale_key = jax.random.split(key)

    def drawn(key: jax.Array, like: jax.Array) -> jax.Array:
        return 0.02 * jax.random.normal(key, like.shape, like.dtype)

    return params | {
        "linear": {"kernel": drawn(kernel_key, linear["kernel"]), "bias": jnp.zeros_like(linear["bias"])},
        "bn0": {"scale": drawn(scale_key, norm["scale"]), "bias": jnp.zeros_like(norm["bias"])},
    }


def _statistics(layers: tuple[BNStatistics, ...]) -> Statistics:
    return tuple((layer.mean, layer.var) for layer in layers)


_WEIGHTS = {"resnet": (1.33, 0.5), "vgg": (1.0, 0.5), "wrn": (1.1, 0.4)}  # α_adv and α_c, by teacher


def recipe(context: RecipeContext) -> Recipe:
    """Returns the release's settings; other teachers take those of ResNet-34."""
    found = (weights for family, weights in _WEIGHTS.items() if context.teacher.startswith(family))
    adversarial, classes = next(found, _WEIGHTS["resnet"])
    return {
        "generator": {**benchmark.LARGE_GENERATOR, "size": "small"},
        "distill": {
            **benchmark.KL,
            "warmup_rounds": 20,
            "rounds_per_epoch": 1,
            "synthesis_steps": 5,
            "student_steps": 400,
            "temperature": 20.0,
            "learning_rate": 0.2,
            "learning_rate_end": 2e-4,
        },
        "synthesis": {
            "batch_size": 256,
            "bn_weight": 10.0,
            "class_weight": classes,
            "adversarial_weight": adversarial,
            "adversarial_temperature": 1.0,
        },
    }


SPEC = MethodSpec(
    name="fastdfkd",
    label="FastDFKD",
    build=build,
    recipe=recipe,
    settings=Settings,
    check=check,
    pooled=True,
)
