"""The only reader of the configuration: checks it, and turns it into networks, data, methods and problems."""

import difflib
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cudfkd_jax import curriculum, data, loops, models
from cudfkd_jax.capture import Classifier, has_batch_norm, mode_arguments
from cudfkd_jax.errors import UserError
from cudfkd_jax.loops import Epoch
from cudfkd_jax.methods import METHODS, cudfkd, generative, student
from cudfkd_jax.methods.base import Method
from cudfkd_jax.models.generator import Generator
from cudfkd_jax.parallel import Devices, local_devices
from cudfkd_jax.steps import Problem
from cudfkd_jax.supervised import Distillation, SupervisedProblem
from cudfkd_jax.train_state import sgd
from cudfkd_jax.trainer import Upkeep
from cudfkd_jax.weights import Net

_POSITIVE = (
    *(f"{section}.{key}" for section in ("teacher", "scratch", "kd") for key in ("epochs", "batch_size")),
    *(f"{section}.learning_rate" for section in ("teacher", "scratch", "kd", "generator", "distill")),
    *(f"distill.{key}" for key in ("epochs", "rounds_per_epoch", "synthesis_steps", "student_steps")),
    *("distill.batch_size", "distill.temperature", "kd.temperature", "synthesis.adversarial_temperature"),
    *("generator.latent_dim", "generator.width", "generator.stages"),
    *("curriculum.lambda_0", "data.num_classes", "checkpoint.keep"),
    *("evaluation.every_epochs", "evaluation.batch_size", "evaluation.synthetic_images"),
)
_NOT_NEGATIVE = (
    *(f"{section}.{key}" for section in ("teacher", "scratch", "kd") for key in ("warmup_epochs", "weight_decay")),
    *("distill.momentum", "distill.weight_decay", "generator.beta1", "generator.beta2"),
    *(
        "curriculum.lambda_slope",
        "curriculum.lambda_max",
        "curriculum.alpha",
        "curriculum.adv",
        "curriculum.k_begin",
    ),
    *("synthesis.bn_weight", "synthesis.class_weight", "synthesis.balance_weight"),
    *("data.padding", "devices", "checkpoint.every_seconds", "log.samples_every_epochs"),
    *("evaluation.stability_from", "teacher.stop_accuracy", "seed"),
)
_BELOW_ONE = ("distill.momentum", "generator.beta1", "generator.beta2")
NO_DATA = "none"  # as data.source

_CHOICES: dict[str, Sequence[str]] = {
    "method": METHODS,
    "loop": loops.LOOPS,
    "compute_dtype": ("float32", "bfloat16"),
    "data.source": (*data.SOURCES, NO_DATA),
    "distill.loss": student.STUDENT_LOSSES,
    "synthesis.adversarial_loss": student.DIVERGENCES,
    "curriculum.strategy": curriculum.STRATEGIES,
    "curriculum.granularity": student.GRANULARITIES,
    "curriculum.ramp": curriculum.ALPHA_SCHEDULES,
}
# What each stage's results depend on. The teacher enters the others by its weights.
_RESULT_KEYS = {
    "teacher": ("seed", "compute_dtype", "data", "teacher"),
    "scratch": ("seed", "compute_dtype", "data", "student", "scratch"),
    "kd": ("seed", "compute_dtype", "data", "student", "kd"),
    "distill": (
        *(
            "seed",
            "compute_dtype",
            "data",
            "method",
            "released_js",
            "student",
            "generator",
            "distill",
            "curriculum",
        ),
        *("synthesis", "evaluation"),
    ),
}
_NO_RESULT_KEYS = ("data.dir", "evaluation.batch_size", "evaluation.stability_from", "teacher.checkpoint")


def check(config: ConfigDict) -> None:
    """Checks every value that can be checked without data, weights or a compilation.

    Raises:
        UserError: a value is out of range; the key, the value and the remedy are named.
    """
    for key, valid in _CHOICES.items():
        choose(key, get(config, key), valid)
    for key in _POSITIVE:
        _require(key, get(config, key), get(config, key) > 0, "must be greater than 0")
    for key in _NOT_NEGATIVE:
        _require(key, get(config, key), get(config, key) >= 0, "must not be negative")
    for key in _BELOW_ONE:
        _require(key, get(config, key), get(config, key) < 1, "must be less than 1")
    for key, value in flatten(config).items():
        if isinstance(value, float):
            _require(key, value, math.isfinite(value), "must be a finite number")
        elif isinstance(value, int):  # counts are int32 in the steps, and a random key is made of 32 bits
            _require(key, value, value < 2**31, "must be less than 2**31")
    for section in ("teacher", "scratch", "kd"):
        s = config[section]
        _require(
            f"{section}.warmup_epochs",
            s.warmup_epochs,
            s.warmup_epochs < s.epochs,
            "must be less than epochs",
        )
    _require("kd.weight", config.kd.weight, 0 <= config.kd.weight <= 1, "must lie in [0, 1]")
    c = config.curriculum
    if not c.k_begin < c.k_end <= 1:
        raise UserError(
            f"curriculum.k_begin={c.k_begin} and curriculum.k_end={c.k_end}: choose 0 <= k_begin < k_end <= 1"
        )
    if c.lambda_max and c.lambda_max < c.lambda_0:
        raise UserError(
            f"curriculum.lambda_max={c.lambda_max} is below curriculum.lambda_0={c.lambda_0}; raise it, "
            "or give 0 for no limit"
        )
    _check_image(config)
    for role in ("teacher", "student"):
        network = classifier(config, described(config, role))
        mode_arguments(network.module, train=False, train_argument=network.train_argument)
    s = config.synthesis
    if not (s.bn_weight or s.class_weight or s.balance_weight or alpha_adv(config)):
        raise UserError(
            "every weight of the generator's objective is 0; set one of --config.synthesis.bn_weight, "
            "class_weight, balance_weight, --config.curriculum.adv or alpha"
        )


def check_devices(config: ConfigDict, sections: Sequence[str]) -> None:
    """Refuses more devices than there are, and batches of these sections that they cannot share evenly."""
    available = len(jax.local_devices())
    if config.devices > available:
        raise UserError(f"devices={config.devices} but only {available} are here; set --config.devices")
    count = config.devices or available
    for section in sections:
        batch_size = config[section].batch_size
        if batch_size % count:
            raise UserError(
                f"{section}.batch_size={batch_size} cannot be divided by {count} devices; "
                f"set --config.{section}.batch_size to a multiple, or --config.devices"
            )


def choose(key: str, value: str, valid: Sequence[str]) -> None:
    """Refuses a value that is not among the valid ones, which are listed with the nearest first."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"unknown {key} {value!r}{hint}; valid: {', '.join(valid)}")


def get(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(lambda node, part: node[part], key.split("."), config)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """The configuration by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def result_settings(config: ConfigDict, stage: str) -> dict[str, Any]:
    """The settings, by dotted key, that change what a stage comes to."""
    return {
        key: value
        for key, value in flatten(config).items()
        if key.split(".")[0] in _RESULT_KEYS[stage]
        and key not in _NO_RESULT_KEYS
        and not (stage == "distill" and key in ("data.padding", "data.flip"))
    }


def devices(config: ConfigDict) -> Devices:
    """The local devices of the run."""
    return local_devices(config.devices)


def dataset(config: ConfigDict, splits: Sequence[str]) -> data.Dataset:
    """Loads these splits of the data, and only these."""
    d = config.data
    return data.load(
        d.source,
        name=d.name,
        directory=d.dir,
        image_shape=tuple(d.image_shape),
        num_classes=d.num_classes,
        splits=splits,
    )


def described(config: ConfigDict, role: str) -> Net:
    """The description of the "teacher" or "student" of this configuration, without metrics."""
    d, named = config.data, config[role]
    arch = named.module or named.arch
    return Net(arch, d.num_classes, tuple(d.image_shape), tuple(d.mean), tuple(d.std), {}, named.train_argument)


def classifier(config: ConfigDict, net: Net) -> Classifier:
    """The network that a description names."""
    module = models.build_classifier(net.arch, net.num_classes, _dtype(config))
    return Classifier(module, net.mean, net.std, net.train_argument)


class Pair(NamedTuple):
    """The two networks of a data-free run."""

    teacher: Classifier
    teacher_net: Net
    teacher_variables: Any  # arrays, or where only shapes are asked for `jax.ShapeDtypeStruct`
    student: Classifier
    student_net: Net


def pair(config: ConfigDict, teacher: Net, variables: Any) -> Pair:
    """The configuration's student and a teacher of these variables."""
    student_net = described(config, "student")
    return Pair(classifier(config, teacher), teacher, variables, classifier(config, student_net), student_net)


def check_teacher(config: ConfigDict, net: Net, where: Path) -> None:
    """Refuses a teacher whose classes, images or architecture are not the configuration's."""
    for key, wanted, found in (
        ("data.num_classes", config.data.num_classes, net.num_classes),
        ("data.image_shape", tuple(config.data.image_shape), net.image_shape),
        ("teacher.arch", config.teacher.module or config.teacher.arch, net.arch),
    ):
        if wanted != found:
            raise UserError(
                f"the teacher in {where} has {key.split('.')[1]} {found} and the configuration {wanted}; "
                f"name another --config.teacher.checkpoint or set --config.{key}"
            )


def distill_epoch(config: ConfigDict) -> Epoch:
    """How the steps of a data-free epoch follow each other."""
    d = config.distill
    return Epoch(d.rounds_per_epoch, d.synthesis_steps, d.student_steps)


def problem(config: ConfigDict, networks: Pair) -> Problem:
    """What is minimised when a student is distilled without data."""
    d = config.distill
    learning_rate = curriculum.cosine_learning_rate(d.learning_rate, d.epochs, distill_epoch(config).steps)
    return Problem(
        method=method(config, networks),
        teacher=networks.teacher,
        student=networks.student,
        optimiser=sgd(learning_rate, momentum=d.momentum, weight_decay=d.weight_decay),
        learning_rate=learning_rate,
    )


def method(config: ConfigDict, networks: Pair) -> Method:
    """The distillation method; without its BN term where the teacher has no BatchNorm."""
    has_bn = has_batch_norm(networks.teacher_variables)
    g, d, c, s = config.generator, config.distill, config.curriculum, config.synthesis
    return generative.generative_method(
        generator=Generator(tuple(config.data.image_shape), g.latent_dim, g.width, g.stages, _dtype(config)),
        optimiser=optax.adam(g.learning_rate, b1=g.beta1, b2=g.beta2),
        latent_dim=g.latent_dim,
        batch_size=d.batch_size,
        terms=cudfkd.synthesis_terms(
            alpha_adv=alpha_adv(config),
            adversarial_divergence=student.divergence(s.adversarial_loss, released_js=config.released_js),
            adversarial_temperature=s.adversarial_temperature,
            bn_weight=s.bn_weight if has_bn else 0.0,
            class_weight=s.class_weight,
            balance_weight=s.balance_weight,
            temperature=d.temperature,
        ),
        student_loss=student.self_paced_student_loss(
            sample_loss=student.student_divergence(d.loss, d.temperature, released_js=config.released_js),
            strategy=c.strategy,
            granularity=c.granularity,
            lambda_t=curriculum.lambda_schedule(c.lambda_0, c.lambda_slope, c.lambda_max or None),
        ),
    )


def alpha_adv(config: ConfigDict) -> optax.Schedule | None:
    """α_adv(t) as a schedule of the student step; None where it is constantly 0."""
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


def supervised_epoch(config: ConfigDict, section: str, images: int) -> Epoch:
    """How the steps of an epoch over `images` training images follow each other.

    Raises:
        UserError: there are fewer images than one batch holds.
    """
    batch_size = config[section].batch_size
    if images < batch_size:
        raise UserError(f"{section}.batch_size={batch_size} is more than the {images} training images; lower it")
    return Epoch(rounds=images // batch_size, synthesis_steps=0, student_steps=1)


def supervised_problem(
    config: ConfigDict, section: str, network: Classifier, epoch: Epoch, teacher: Classifier | None
) -> SupervisedProblem:
    """What is minimised when a network is trained on data; `section` is "teacher", "scratch" or "kd"."""
    s = config[section]
    steps = s.epochs * epoch.steps
    learning_rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if s.warmup_epochs else s.learning_rate,
        peak_value=s.learning_rate,
        warmup_steps=round(s.warmup_epochs * epoch.steps),
        decay_steps=steps,
    )
    return SupervisedProblem(
        network=network,
        optimiser=sgd(learning_rate, momentum=0.9, weight_decay=s.weight_decay, nesterov=True),
        learning_rate=learning_rate,
        batch_size=s.batch_size,
        padding=config.data.padding,
        flip=config.data.flip,
        distillation=Distillation(teacher, s.temperature, s.weight) if section == "kd" and teacher else None,
    )


def upkeep(config: ConfigDict) -> Upkeep:
    """What does not change results."""
    return Upkeep(
        evaluate_every=config.evaluation.every_epochs,
        checkpoint_seconds=config.checkpoint.every_seconds,
        keep=config.checkpoint.keep,
        tensorboard=config.log.tensorboard,
    )


def root_key(config: ConfigDict, stage: str) -> jax.Array:
    """The key that all randomness of a stage comes from.

    Each stage has its own: networks of one family initialised from the same key share their first weights,
    and a student must not start from what its teacher started from.
    """
    return jax.random.fold_in(jax.random.key(config.seed), list(_RESULT_KEYS).index(stage))


def _dtype(config: ConfigDict) -> Any:
    return jnp.bfloat16 if config.compute_dtype == "bfloat16" else None


def _require(key: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f"{key}={value} {rule}; set --config.{key}")


def _check_image(config: ConfigDict) -> None:
    shape, d = tuple(config.data.image_shape), config.data
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape) or shape[2] not in (1, 3):
        raise UserError(
            f"data.image_shape={shape} must be (height, width, channels) with 1 or 3 channels; "
            "set --config.data.image_shape"
        )
    for key in ("mean", "std"):
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in d[key])
        if len(d[key]) != shape[2] or not numbers:
            raise UserError(
                f"data.{key}={tuple(d[key])} must have one number for each of {shape[2]} channels; "
                f"set --config.data.{key}"
            )
    _require("data.std", tuple(d.std), all(value > 0 for value in d.std), "must be greater than 0")
    _require("data.num_classes", d.num_classes, d.num_classes > 1, "must be at least 2")
    _require("generator.stages", config.generator.stages, config.generator.stages <= 10, "must be at most 10")
    factor = 2**config.generator.stages
    if shape[0] % factor or shape[1] % factor:
        raise UserError(
            f"generator.stages={config.generator.stages} needs a height and width divisible by {factor}, and "
            f"data.image_shape is {shape}; lower --config.generator.stages"
        )
