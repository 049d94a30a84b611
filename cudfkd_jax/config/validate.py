"""Checks of a configuration, made before anything is compiled or written."""

import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cudfkd_jax import data
from cudfkd_jax.config import budget, methods, networks
from cudfkd_jax.config.access import AUTO, NO_DATA, distill_epoch, flatten, generator_stages, get, with_stand_ins
from cudfkd_jax.methods import METHODS, cudfkd, generative, setting
from cudfkd_jax.methods.base import MethodSpec
from cudfkd_jax.models import generator, torch_module
from cudfkd_jax.models.capture import mode_arguments
from cudfkd_jax.models.torch_module import TorchModule
from cudfkd_jax.objectives import curriculum, student
from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.runtime.errors import UserError, choose, require
from cudfkd_jax.storage import checkpoint
from cudfkd_jax.training import loops, trainer

_POSITIVE = (
    *(f"{section}.{key}" for section in ("teacher", "scratch", "kd") for key in ("epochs", "batch_size")),
    *(f"{section}.learning_rate" for section in ("teacher", "scratch", "kd", "generator", "distill")),
    *(f"distill.{key}" for key in ("epochs", "rounds_per_epoch", "synthesis_steps", "student_steps")),
    *("distill.batch_size", "distill.temperature", "kd.temperature", "synthesis.adversarial_temperature"),
    *("generator.latent_dim", "generator.width"),
    *("curriculum.lambda_0", "data.num_classes", "checkpoint.keep"),
    *("memory.every_epochs", "evaluation.every_epochs", "evaluation.batch_size", "evaluation.synthetic_images"),
)
_NOT_NEGATIVE = (
    *(f"{section}.{key}" for section in ("teacher", "scratch", "kd") for key in ("warmup_epochs", "weight_decay")),
    *("distill.momentum", "distill.weight_decay", "distill.clip_norm", "generator.beta1", "generator.beta2"),
    *(
        "curriculum.lambda_slope",
        "curriculum.lambda_max",
        "curriculum.alpha",
        "curriculum.adv",
        "curriculum.k_begin",
    ),
    *(f"synthesis.{key}_weight" for key in ("adversarial", "bn", "class", "balance", "activation")),
    *("synthesis.batch_size", "generator.stages", "generator.ema_decay", "memory.capacity"),
    *("distill.warmup_rounds", "distill.learning_rate_end"),
    *("data.padding", "devices", "checkpoint.every_seconds", "log.samples_every_epochs"),
    *("log.majorise_minimise_updates", "batches_at_once"),
    *("evaluation.stability_from", "teacher.stop_accuracy", "seed"),
)
_BELOW_ONE = ("distill.momentum", "generator.beta1", "generator.beta2", "generator.ema_decay")

_BATCHES = (
    *(f"{section}.batch_size" for section in ("teacher", "scratch", "kd", "distill", "synthesis", "evaluation")),
    "evaluation.synthetic_images",
)
_LARGEST_IMAGE = 1024  # pixels, height and width; the networks here are for small images
_AT_MOST = {
    "generator.stages": 10,
    "data.padding": _LARGEST_IMAGE,
}

_CHOICES: dict[str, Sequence[str]] = {
    "loop": loops.LOOPS,
    "on_nan": trainer.ON_NAN,
    "compute_dtype": ("float32", "bfloat16", AUTO),
    "data.source": (*data.SOURCES, NO_DATA),
    "data.class_order": data.CLASS_ORDERS,
    "generator.size": generator.SIZES,
    "generator.schedule": generative.SCHEDULES,
    "generator.initialisation": generator.INITIALISATIONS,
    "distill.loss": student.STUDENT_LOSSES,
    "distill.optimiser": ("sgd", "adam"),
    "synthesis.adversarial_loss": student.DIVERGENCES,
    "synthesis.adversarial_mask": cudfkd.MASKS,
    "curriculum.strategy": curriculum.STRATEGIES,
    "curriculum.granularity": student.GRANULARITIES,
    "curriculum.ramp": curriculum.ALPHA_SCHEDULES,
}
# Settings that only some methods read (`MethodSpec.reads`), with the values at which they have no effect.
_READ_BY_SOME: dict[str, Any] = {
    "synthesis.adversarial_mask": "agreement",
    "generator.schedule": "constant",
    "generator.ema_decay": 0.0,
    "memory.capacity": 0,
    "log.majorise_minimise_updates": 0,
}


def check(config: ConfigDict) -> None:
    """Checks every value that needs no data, weights or compilation to check.

    Settings that are to come from the data's folder are checked when they are there, by `from_folder.settle`.

    Raises:
        UserError: a value is out of range; the message names the key, the value and the remedy.
    """
    config = with_stand_ins(config)
    chosen = methods.spec(config)
    for key, valid in _CHOICES.items():
        choose(key, get(config, key), valid)
    for key in _POSITIVE:
        require(key, get(config, key), get(config, key) > 0, "must be greater than 0")
    for key in _NOT_NEGATIVE:
        require(key, get(config, key), get(config, key) >= 0, "must not be negative")
    for key in _BELOW_ONE:
        require(key, get(config, key), get(config, key) < 1, "must be less than 1")
    for key, value in flatten(config).items():
        if isinstance(value, float):
            _check_number(key, value)
        elif isinstance(value, int):  # counts are int32 in the steps, and a seed has 32 bits
            require(key, value, value < 2**31, "must be less than 2**31")
    for key, limit in _AT_MOST.items():
        require(key, get(config, key), get(config, key) <= limit, f"must be at most {limit}")
    for method in {**METHODS, chosen.name: chosen}.values():
        if method.settings:
            setting.check(method.name, method.settings(**config[method.name]))
    _check_length(config)
    budget.seconds(config.distill.budget)
    for section in ("teacher", "scratch", "kd"):
        s = config[section]
        require(
            f"{section}.warmup_epochs",
            s.warmup_epochs,
            s.warmup_epochs < s.epochs,
            "must be less than epochs",
        )
    base, end = config.distill.learning_rate, config.distill.learning_rate_end
    require("distill.learning_rate_end", end, end <= base, f"must be at most distill.learning_rate={base}")
    require("kd.weight", config.kd.weight, 0 <= config.kd.weight <= 1, "must lie in [0, 1]")
    if config.batches_at_once and config.distill.student_steps % config.batches_at_once:
        raise UserError(
            f"batches_at_once={config.batches_at_once} does not divide distill.student_steps="
            f"{config.distill.student_steps}; set --config.batches_at_once to a divisor, or 0"
        )
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
    _check_additions(config, chosen)
    _check_image(config)
    chosen.check(methods.method_settings(config))
    if config.data.class_order != AUTO and config.data.source != "folder":
        raise UserError(
            f"data.class_order={config.data.class_order} is for data.source=folder; leave it {AUTO} for "
            f"data.source={config.data.source}"
        )
    _check_batches(config)
    if config.data.source == NO_DATA:
        check_normalisation(config)
    for role in ("teacher", "student"):
        network = networks.classifier(config, networks.described(config, role))
        mode_arguments(network.module, train=False, train_argument=network.train_argument)
        if role == "student":
            check_trainable(network.module)


def check_trainable(module: Any) -> None:
    """Raises `UserError` if a student is a PyTorch module, which is only run in evaluation mode."""
    if isinstance(module, TorchModule) or torch_module.is_network(module):
        name = getattr(module, "label", type(module).__name__)
        raise UserError(
            f"student {name} is a PyTorch module, which can be a teacher only; name a student with "
            "--config.student.arch, or a Flax module with --config.student.module"
        )


def _check_additions(config: ConfigDict, chosen: MethodSpec) -> None:
    """Rejects settings that the method does not read."""
    for key, neutral in _READ_BY_SOME.items():
        if (value := get(config, key)) != neutral and key not in chosen.reads:
            can = ", ".join(spec.name for spec in METHODS.values() if key in spec.reads)
            raise UserError(f"{key}={value} is for {can}; leave it {neutral} for {config.method}")


def check_normalisation(config: ConfigDict) -> None:
    """Checks, where no test image can show it, that mean and std are of images in [0, 1].

    Raises:
        UserError: they look like those of images in 0..255 or of other ranges.
    """
    for key, holds in (("mean", lambda value: 0 <= value <= 1), ("std", lambda value: 0 < value <= 1)):
        value = tuple(config.data[key])
        if not all(map(holds, value)):
            raise UserError(
                f"data.{key}={value} without test images; expected numbers in [0, 1], as the images are. Divide "
                f"those of images in 0..255 by 255, and set --config.data.{key}"
            )


def check_devices(config: ConfigDict, sections: Sequence[str]) -> None:
    """Rejects more devices than are available, and batches of these sections that devices cannot share evenly."""
    available = len(local_devices().local)
    if config.devices > available:
        raise UserError(f"devices={config.devices} but only {available} are here; set --config.devices")
    count = len(local_devices(config.devices).devices)
    sizes = {f"{section}.batch_size": config[section].batch_size for section in sections}
    if "distill" in sections:
        sizes |= methods.shared_sizes(config)
    for key, size in sizes.items():
        if size % count:
            raise UserError(
                f"{key}={size} cannot be divided by {count} devices; set --config.{key.split()[0]} to a multiple, "
                "or --config.devices"
            )


def check_processes(config: ConfigDict) -> None:
    """Checks the settings that connect the processes of a run, before they connect.

    Raises:
        UserError: a setting is missing or out of range.
    """
    d = config.distributed
    host, _, port = d.coordinator.rpartition(":")
    if d.coordinator and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"distributed.coordinator={d.coordinator} is not host:port; set --config.distributed.coordinator"
        )
    require("distributed.processes", d.processes, d.processes >= 0, "must not be negative")
    if d.processes and d.process >= d.processes:
        raise UserError(
            f"distributed.process={d.process} of distributed.processes={d.processes}: they are counted from 0; "
            "set --config.distributed.process"
        )
    given = {"coordinator": bool(d.coordinator), "processes": d.processes > 0, "process": d.process >= 0}
    missing = [name for name, is_given in given.items() if not is_given]
    if not d.detect and 0 < len(missing) < len(given):
        raise UserError(
            f"distributed.{missing[0]} is missing; give --config.distributed.coordinator, processes and process, "
            "or --config.distributed.detect under SLURM or Open MPI"
        )


def check_one_process(config: ConfigDict, what: str) -> None:
    """Rejects several processes for a task that runs in one.

    Raises:
        UserError: the configuration asks for several.
    """
    if config.distributed.detect or config.distributed.coordinator:
        raise UserError(f"{what} takes one process; leave out --config.distributed")


def check_dtype_settled(config: ConfigDict, what: str) -> None:
    """Rejects a dtype that depends on the machine, for tasks that identify runs before they start.

    Raises:
        UserError: `compute_dtype` is "auto".
    """
    if config.compute_dtype == AUTO:
        raise UserError(
            f"{what} needs a dtype that is the same on every machine; set --config.compute_dtype to float32 or "
            "bfloat16"
        )


def _check_number(key: str, value: float) -> None:
    """Rejects values that are neither 0 nor normal numbers in float32, in which steps compute."""
    require(key, value, math.isfinite(value), "must be a finite number")
    least, most = 2.0**-126, 2.0**127
    require(key, value, value == 0 or least <= abs(value) <= most, f"must be 0 or from {least:.2g} to {most:.2g}")


def _check_length(config: ConfigDict) -> None:
    """Rejects data-free runs with too many steps to count; `build.supervised_epoch` checks those with data."""
    epoch, epochs = distill_epoch(config), config.distill.epochs
    rounds, warmup = epochs * epoch.rounds, epoch.warmup_rounds
    steps = (rounds + warmup) * epoch.synthesis_steps + rounds * epoch.student_steps
    if steps >= checkpoint.MOST_STEPS:
        raise UserError(
            f"distill.epochs={epochs} of rounds_per_epoch={epoch.rounds} with "
            f"synthesis_steps={epoch.synthesis_steps} and student_steps={epoch.student_steps} are {steps:.3g} "
            f"steps and must be less than {checkpoint.MOST_STEPS:.0e}; lower --config.distill.epochs"
        )
    if (every := config.memory.every_epochs) * epoch.steps >= 2**31:
        raise UserError(
            f"memory.every_epochs={every} of {epoch.steps} steps are more than can be counted; "
            "lower --config.memory.every_epochs"
        )


def _check_batches(config: ConfigDict) -> None:
    """Rejects batches so large that XLA's CPU compiler crashes instead of running out of memory."""
    shape = tuple(config.data.image_shape)
    for key in _BATCHES:
        size, numbers = get(config, key), get(config, key) * math.prod(shape)
        require(key, size, numbers < 2**31, f"images of data.image_shape={shape} must be less than 2**31 numbers")


def _check_image(config: ConfigDict) -> None:
    shape, d = tuple(config.data.image_shape), config.data
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape) or shape[2] not in (1, 3):
        raise UserError(
            f"data.image_shape={shape} must be (height, width, channels) with 1 or 3 channels; "
            "set --config.data.image_shape"
        )
    if max(shape[:2]) > _LARGEST_IMAGE:
        raise UserError(
            f"data.image_shape={shape} must be at most {_LARGEST_IMAGE} pixels high and wide; "
            "set --config.data.image_shape"
        )
    for key in ("mean", "std"):
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in d[key])
        if len(d[key]) != shape[2] or not numbers:
            raise UserError(
                f"data.{key}={tuple(d[key])} must have one number for each of {shape[2]} channels; "
                f"set --config.data.{key}"
            )
        for value in d[key]:
            _check_number(f"data.{key}", float(value))
    require("data.std", tuple(d.std), all(value > 0 for value in d.std), "must be greater than 0")
    require("data.num_classes", d.num_classes, d.num_classes > 1, "must be at least 2")
    generator.check_stages(shape, generator_stages(config))
