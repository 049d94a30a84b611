"""Builds data, devices, training problems and trainer options from a checked configuration."""

from collections.abc import Callable, Sequence

import optax
from ml_collections import ConfigDict

from cudfkd_jax import data
from cudfkd_jax.config import methods
from cudfkd_jax.config.access import NO_DATA, distill_epoch, get
from cudfkd_jax.config.networks import Pair
from cudfkd_jax.config.optimisers import student_optimiser
from cudfkd_jax.evaluation.summary import RunDescription
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.optimisers import cosine_learning_rate, sgd
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.devices import Devices, local_devices
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import checkpoint
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.loops import Epoch
from cudfkd_jax.training.supervised_steps import Distillation, SupervisedProblem
from cudfkd_jax.training.trainer import TrainerOptions


def connect(config: ConfigDict, say: Callable[[str], None]) -> None:
    """Connects the processes of the run, if the configuration asks for several.

    Raises:
        UserError: they cannot connect.
    """
    d = config.distributed
    if d.coordinator and d.process == 0 and d.processes > 1:
        say(f"waiting at {d.coordinator} for all {d.processes} processes")
    processes.connect(coordinator=d.coordinator, processes=d.processes, process=d.process, detect=d.detect)


def devices(config: ConfigDict) -> Devices:
    """Returns the devices of the run, across all its processes."""
    return local_devices(config.devices, bfloat16=config.compute_dtype == "bfloat16")


def dataset(
    config: ConfigDict, splits: Sequence[str], say: Callable[[str], None] = lambda text: None
) -> data.Dataset:
    """Loads only these splits of the data; `say` receives what the user should know of the reading."""
    d = config.data
    found = data.load(
        d.source,
        name=d.name,
        directory=d.dir,
        image_shape=tuple(d.image_shape),
        num_classes=d.num_classes,
        splits=splits,
        class_order=d.class_order,
        resize=d.resize,
    )
    for note in found.notes:
        say(note)
    return found


def problem(config: ConfigDict, pair: Pair) -> Problem:
    """Builds the problem of distilling a student without data."""
    d = config.distill
    steps = distill_epoch(config).steps
    learning_rate = cosine_learning_rate(d.learning_rate, d.epochs, steps, end=d.learning_rate_end)
    return Problem(
        method=methods.method(config, pair),
        teacher=pair.teacher,
        student=pair.student,
        optimiser=student_optimiser(config, learning_rate),
        learning_rate=learning_rate,
        fold=config.fold_bn,
    )


def supervised_epoch(config: ConfigDict, section: str, images: int) -> Epoch:
    """Returns the schedule of steps in an epoch over `images` training images.

    Raises:
        UserError: `images` is less than the batch size, or the run has too many steps to count.
    """
    batch_size = config[section].batch_size
    if images < batch_size:
        raise UserError(f"{section}.batch_size={batch_size} is more than the {images} training images; lower it")
    epoch, epochs = Epoch(rounds=images // batch_size, synthesis_steps=0, student_steps=1), config[section].epochs
    if epochs * epoch.steps >= checkpoint.MOST_STEPS:
        raise UserError(
            f"{section}.epochs={epochs} of {epoch.steps} steps are more than can be counted; "
            f"lower --config.{section}.epochs"
        )
    return epoch


def supervised_problem(
    config: ConfigDict, section: str, network: Classifier, epoch: Epoch, teacher: Classifier | None
) -> SupervisedProblem:
    """Builds the problem of training a network on data; `section` is "teacher", "scratch" or "kd"."""
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


def description(config: ConfigDict, classes: Sequence[str]) -> RunDescription:
    """Returns what a summary repeats: settings, and the class names in label order."""
    return RunDescription(
        dataset=config.data.name,
        seed=config.seed,
        compute_dtype=config.compute_dtype,
        method=config.method,
        stability_from=config.evaluation.stability_from,
        classes=tuple(classes),
    )


def trainer_options(config: ConfigDict) -> TrainerOptions:
    """Returns the trainer's options."""
    return TrainerOptions(
        evaluate_every=config.evaluation.every_epochs,
        checkpoint_seconds=config.checkpoint.every_seconds,
        keep=config.checkpoint.keep,
        tensorboard=config.log.tensorboard,
        on_nan=config.on_nan,
    )


def memory_settings(config: ConfigDict, part: str) -> dict[str, int]:
    """Returns the non-zero settings, by dotted key, that determine the memory use of a part of a run."""
    keys = [f"{part}.batch_size"]
    if part == "distill":
        keys += ["synthesis.batch_size", "memory.capacity", "generator.width", "generator.latent_dim"]
        method = methods.spec(config)
        keys += ["distill.epochs"] * method.pooled  # all images of the run are kept
        keys += [f"{method.name}.{key}" for key in method.memory_settings]
        keys += ["evaluation.synthetic_images"] * (config.data.source == NO_DATA)
    return {key: value for key in (*keys, "evaluation.batch_size") if (value := get(config, key))}
