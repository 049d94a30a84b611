"""The distillation method of a configuration."""

from collections.abc import Callable, Mapping

import optax
from ml_collections import ConfigDict

from cudfkd_jax.config.access import NO_DATA, compute_dtype, distill_epoch, synthesis_batch_size
from cudfkd_jax.config.networks import Pair
from cudfkd_jax.config.optimisers import generator_optimiser
from cudfkd_jax.methods import adi, cmi, cudfkd, dafl, dfad, dfq, generative, mb_dfkd, pre_dfkd, zskt
from cudfkd_jax.methods.base import Method
from cudfkd_jax.methods.memory import replay
from cudfkd_jax.methods.memory.generative_memory import GenerativeMemory
from cudfkd_jax.methods.memory.pool import ImagePool
from cudfkd_jax.models.capture import has_batch_norm
from cudfkd_jax.models.generator import Generator
from cudfkd_jax.models.vae import Encoder, NormalisedGenerator
from cudfkd_jax.objectives import contrastive, curriculum, losses, student
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import SampleLoss, Term
from cudfkd_jax.runtime.errors import UserError

GENERATIVE = ("cudfkd", "dafl", "zskt", "dfad", "dfq")  # methods that support a memory and weight averaging
GENERATOR_SCHEDULES = ("constant", "cosine")
NEEDS_BN = ("dfq", "adi")  # methods defined by the teacher's BatchNorm statistics
POOLED = ("adi", "cmi")  # methods whose student trains on crops and flips of an image pool
_REPLAYED_SHARE = 8  # student batch size per replayed image
_HELD_OUT_SHARE = 16  # pooled batch size per held-out image, where only synthetic images can measure agreement


def method(config: ConfigDict, pair: Pair) -> Method:
    """Builds the distillation method, without its BN term if the teacher has no BatchNorm.

    Raises:
        UserError: the method requires BatchNorm, or settings are incompatible.
    """
    if config.method in NEEDS_BN and not has_batch_norm(pair.teacher_variables):
        raise UserError(
            f"method={config.method} aligns the teacher's BatchNorm statistics and this teacher has none; choose "
            "another method"
        )
    return _METHODS[config.method](config, pair)


def shared_sizes(config: ConfigDict) -> dict[str, int]:
    """Returns the batch sizes, besides `distill.batch_size`, that devices share, by the setting behind each."""
    sizes = {"synthesis.batch_size": synthesis_batch_size(config)} if config.method in POOLED else {}
    if config.method in ("mb_dfkd", "pre_dfkd") or config.memory.capacity:
        sizes["distill.batch_size // 8"] = _replayed_rows(config)
    return sizes


def alpha_adv(config: ConfigDict) -> optax.Schedule | None:
    """Returns α_adv(t) as a schedule of the student step; None if it is always 0."""
    c = config.curriculum
    flat = c.strategy == "none" and not c.none_keeps_ramp
    kind = "constant" if flat or c.alpha == 0 else c.ramp
    if kind == "constant" and c.adv == 0:
        return None
    return curriculum.adversarial_schedule(
        kind,
        initial=c.adv,
        slope=c.alpha,
        k_begin=c.k_begin,
        k_end=c.k_end,
        epochs=config.distill.epochs,
        steps_per_epoch=distill_epoch(config).steps,
    )


def lambda_t(config: ConfigDict) -> optax.Schedule:
    """Returns λ(t) as a schedule of the student step."""
    c = config.curriculum
    return curriculum.lambda_schedule(c.lambda_0, c.lambda_slope, c.lambda_max or None)


def generator(config: ConfigDict) -> Generator:
    """Builds the generator for methods whose generator does not normalise its images."""
    g = config.generator
    return Generator(
        image_shape=tuple(config.data.image_shape),
        latent_dim=g.latent_dim,
        ngf=g.width,
        stages=g.stages,
        dtype=compute_dtype(config),
        size=g.size,
        initialisation=g.initialisation,
    )


def _cudfkd(config: ConfigDict, pair: Pair) -> Method:
    c, s = config.curriculum, config.synthesis
    terms = cudfkd.synthesis_terms(
        alpha_adv=alpha_adv(config),
        adversarial_loss=s.adversarial_loss,
        adversarial_mask=s.adversarial_mask,
        adversarial_temperature=s.adversarial_temperature,
        released_js=config.released_js,
        bn_weight=_bn_weight(config, pair),
        class_weight=s.class_weight,
        balance_weight=s.balance_weight,
        temperature=config.distill.temperature,
    )
    student_loss = student.self_paced_student_loss(
        sample_loss=sample_loss(config),
        strategy=c.strategy,
        granularity=c.granularity,
        lambda_t=lambda_t(config),
    )
    return _generative(config, terms, student_loss)


def _dafl(config: ConfigDict, pair: Pair) -> Method:
    s = config.synthesis
    terms = dafl.synthesis_terms(
        class_weight=s.class_weight, activation_weight=s.activation_weight, balance_weight=s.balance_weight
    )
    return _generative(config, terms, _student_loss(config))


def _zskt(config: ConfigDict, pair: Pair) -> Method:
    # The weight is relative to a KL divergence averaged over the classes; here the divergence is their sum.
    attention_weight = config.zskt.attention_weight * config.data.num_classes
    student_loss = zskt.attention_student_loss(sample_loss=sample_loss(config), attention_weight=attention_weight)
    made = _generative(config, zskt.synthesis_terms(), student_loss)
    return made._replace(student_capture=zskt.student_capture(attention_weight))


def _dfad(config: ConfigDict, pair: Pair) -> Method:
    return _generative(config, dfad.synthesis_terms(), _student_loss(config))


def _dfq(config: ConfigDict, pair: Pair) -> Method:
    s = config.synthesis
    terms = dfq.synthesis_terms(
        adversarial_weight=s.adversarial_weight,
        bn_weight=s.bn_weight,
        class_weight=s.class_weight,
        balance_weight=s.balance_weight,
    )
    return _generative(config, terms, _student_loss(config))


def _adi(config: ConfigDict, pair: Pair) -> Method:
    s, a = config.synthesis, config.adi
    return adi.inversion_method(
        pool=_pool(config),
        num_classes=config.data.num_classes,
        mean=config.data.mean,
        std=config.data.std,
        optimiser=optax.adam(a.learning_rate, b1=a.beta1, b2=a.beta2),
        bn_weight=s.bn_weight,
        class_weight=s.class_weight,
        adversarial_weight=s.adversarial_weight,
        adversarial_temperature=s.adversarial_temperature,
        tv_weight=a.tv_weight,
        adversarial_divergence=losses.js_divergence_released if config.released_js else None,
        student_loss=_student_loss(config),
    )


def _cmi(config: ConfigDict, pair: Pair) -> Method:
    s, c = config.synthesis, config.cmi
    return cmi.contrastive_method(
        pool=_pool(config),
        num_classes=config.data.num_classes,
        generator=generator(config),
        latent_dim=config.generator.latent_dim,
        optimiser=generator_optimiser(config),
        head_optimiser=optax.adam(c.head_learning_rate),
        head_width=c.head_width,
        bn_weight=_bn_weight(config, pair),
        class_weight=s.class_weight,
        adversarial_weight=s.adversarial_weight,
        adversarial_temperature=s.adversarial_temperature,
        contrastive_weight=c.contrastive_weight,
        contrastive_temperature=c.contrastive_temperature,
        features=c.features,
        feature_dim=contrastive.feature_dim(pair.teacher, tuple(config.data.image_shape), c.features),
        bank_rows=c.bank_rows,
        bank_draws=c.bank_draws,
        student_loss=_student_loss(config),
    )


def _mb_dfkd(config: ConfigDict, pair: Pair) -> Method:
    rows = _replayed_rows(config)
    return mb_dfkd.mb_dfkd_method(
        generator=_normalised_generator(config, spectral_norm=False),
        optimiser=generator_optimiser(config),
        latent_dim=config.generator.latent_dim,
        batch_size=config.distill.batch_size,
        terms=_mb_dfkd_terms(config),
        student_loss=_student_loss(config),
        slots=replay.slots_for(config.memory.capacity, rows),
        steps_per_epoch=distill_epoch(config).steps,
        every_epochs=config.memory.every_epochs,
    )


def _pre_dfkd(config: ConfigDict, pair: Pair) -> Method:
    d, g, p, s = config.data, config.generator, config.pre_dfkd, config.synthesis
    memory = GenerativeMemory(
        encoder=Encoder(g.latent_dim, d.mean, d.std, g.width, compute_dtype(config)),
        decoder=_normalised_generator(config, spectral_norm=False),
        optimiser=optax.adam(p.memory_learning_rate),
        rows=_replayed_rows(config),
        class_weight=s.class_weight,
        balance_weight=s.balance_weight,
        learning_rate=p.latent_learning_rate,
        kl_weight=p.kl_weight,
    )
    return pre_dfkd.pre_dfkd_method(
        generator=_normalised_generator(config, spectral_norm=True),
        optimiser=generator_optimiser(config),
        latent_dim=g.latent_dim,
        batch_size=config.distill.batch_size,
        terms=_mb_dfkd_terms(config),
        student_loss=_student_loss(config),
        memory=memory,
        memory_steps=p.memory_steps,
    )


_METHODS: Mapping[str, Callable[[ConfigDict, Pair], Method]] = {
    "cudfkd": _cudfkd,
    "dafl": _dafl,
    "zskt": _zskt,
    "dfad": _dfad,
    "dfq": _dfq,
    "adi": _adi,
    "cmi": _cmi,
    "mb_dfkd": _mb_dfkd,
    "pre_dfkd": _pre_dfkd,
}


def _replayed_rows(config: ConfigDict) -> int:
    batch_size = config.distill.batch_size
    if batch_size % _REPLAYED_SHARE:
        raise UserError(
            f"distill.batch_size={batch_size} has no {_REPLAYED_SHARE}th part to remember; set "
            f"--config.distill.batch_size to a multiple of {_REPLAYED_SHARE}"
        )
    return batch_size // _REPLAYED_SHARE


def _generative(config: ConfigDict, terms: tuple[Term, ...], student_loss: StudentLoss) -> Method:
    """Builds a method that trains a generator, with a memory of past images if one is configured."""
    if not terms:
        raise UserError(
            "every weight of the generator's objective is 0; set one of --config.synthesis.bn_weight, "
            "class_weight, balance_weight, --config.curriculum.adv or alpha"
        )

    def of_batches(size: int) -> Method:
        return generative.generative_method(
            generator=generator(config),
            optimiser=generator_optimiser(config),
            latent_dim=config.generator.latent_dim,
            batch_size=size,
            terms=terms,
            student_loss=student_loss,
            ema_decay=config.generator.ema_decay,
        )

    made = of_batches(config.distill.batch_size)
    if not config.memory.capacity:
        return made
    rows = _replayed_rows(config)
    return replay.with_memory(
        made,
        sample_rows=of_batches(rows).sample,
        slots=replay.slots_for(config.memory.capacity, rows),
        rows=rows,
        steps_per_epoch=distill_epoch(config).steps,
        every_epochs=config.memory.every_epochs,
    )


def _normalised_generator(config: ConfigDict, *, spectral_norm: bool) -> NormalisedGenerator:
    d, g = config.data, config.generator
    return NormalisedGenerator(
        image_shape=tuple(d.image_shape),
        latent_dim=g.latent_dim,
        mean=d.mean,
        std=d.std,
        width=g.width,
        stages=g.stages,
        spectral_norm=spectral_norm,
        dtype=compute_dtype(config),
    )


def _mb_dfkd_terms(config: ConfigDict) -> tuple[Term, ...]:
    s = config.synthesis
    return mb_dfkd.synthesis_terms(
        class_weight=s.class_weight,
        balance_weight=s.balance_weight,
        feature_weight=s.activation_weight,
        adversarial_weight=s.adversarial_weight,
        released_js=config.released_js,
    )


def _pool(config: ConfigDict) -> ImagePool:
    """Builds a pool that holds all images of the run."""
    batch_size, without_data = synthesis_batch_size(config), config.data.source == NO_DATA
    return ImagePool(
        image_shape=tuple(config.data.image_shape),
        slots=config.distill.epochs * config.distill.rounds_per_epoch,
        batch_size=batch_size,
        student_batch_size=config.distill.batch_size,
        held_out=-(-batch_size // _HELD_OUT_SHARE) if without_data else 0,
        padding=config.data.padding,
        flip=config.data.flip,
    )


def sample_loss(config: ConfigDict) -> SampleLoss:
    """Returns D of Eq. 6, the student's loss per image."""
    d = config.distill
    return student.student_divergence(d.loss, d.temperature, released_js=config.released_js)


def _student_loss(config: ConfigDict) -> StudentLoss:
    return student.plain_student_loss(sample_loss(config))


def _bn_weight(config: ConfigDict, pair: Pair) -> float:
    return config.synthesis.bn_weight if has_batch_norm(pair.teacher_variables) else 0.0
