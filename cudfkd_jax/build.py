"""From a checked configuration to data, devices and the problems that the stages solve."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from cudfkd_jax import checkpoint, curriculum, data, processes
from cudfkd_jax.batching import batches_at_once
from cudfkd_jax.build_method import POOLED, method
from cudfkd_jax.capture import Classifier, Variables
from cudfkd_jax.configuration import NO_DATA, distill_epoch, flatten, get, kept
from cudfkd_jax.errors import UserError
from cudfkd_jax.loops import Epoch, EpochFunction, distillation_steps, make_epoch_function
from cudfkd_jax.networks import Pair
from cudfkd_jax.parallel import Devices, local_devices
from cudfkd_jax.steps import Problem
from cudfkd_jax.supervised import Distillation, SupervisedProblem
from cudfkd_jax.train_state import sgd
from cudfkd_jax.trainer import Upkeep

# What may differ from process to process: paths, which are of its machine.
_OF_A_PROCESS = ("data.dir", "teacher.checkpoint")

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
        *("synthesis", "memory", "zskt", "adi", "cmi", "pre_dfkd", "evaluation"),
    ),
}
_NO_RESULT_KEYS = ("data.dir", "evaluation.batch_size", "evaluation.stability_from", "teacher.checkpoint")

# Settings added after runs had been recorded and named, each with what those runs computed. At that value a
# setting is not part of what identifies a run, so that earlier runs keep their names and resume.
_ADDED_LATER = {"synthesis.adversarial_mask": "agreement"}


def result_settings(config: ConfigDict, stage: str) -> dict[str, Any]:
    """Returns the settings, by dotted key, that affect a stage's results and so identify a run.

    Both the comparison with a run's `config.json` and the names of planned runs take theirs from here.
    """
    return {
        key: value
        for key, value in flatten(config).items()
        if key.split(".")[0] in _RESULT_KEYS[stage]
        and key not in _NO_RESULT_KEYS
        and not (key in _ADDED_LATER and value == _ADDED_LATER[key])
        and not (stage == "distill" and config.method not in POOLED and key in ("data.padding", "data.flip"))
    }


def connect(config: ConfigDict, say: Callable[[str], None]) -> None:
    """Joins the processes of the run, where the configuration asks for several.

    Raises:
        UserError: they do not find each other.
    """
    d = config.distributed
    if d.coordinator and d.process == 0 and d.processes > 1:
        say(f"waiting at {d.coordinator} for all {d.processes} processes")
    processes.connect(coordinator=d.coordinator, processes=d.processes, process=d.process, detect=d.detect)


def check_same(config: ConfigDict, stage: str) -> None:
    """Refuses processes of one run that were started with different settings.

    Raises:
        UserError: a setting differs; it is named with both values.
    """
    own = {
        key: str(value) for key, value in {"--stage": stage, **kept(config)}.items() if key not in _OF_A_PROCESS
    }
    first = processes.from_first(lambda: own)

    def compare() -> None:
        for key in own:
            if own[key] != first[key]:
                raise UserError(
                    f"{key} is {own[key]} here and {first[key]} in the first process; start all with the same"
                )

    processes.together(compare)


def devices(config: ConfigDict) -> Devices:
    """The devices of the run, of all its processes."""
    return local_devices(config.devices, bfloat16=config.compute_dtype == "bfloat16")


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


def problem(config: ConfigDict, pair: Pair) -> Problem:
    """What is minimised when a student is distilled without data."""
    d = config.distill
    learning_rate = curriculum.cosine_learning_rate(d.learning_rate, d.epochs, distill_epoch(config).steps)
    return Problem(
        method=method(config, pair),
        teacher=pair.teacher,
        student=pair.student,
        optimiser=_student_optimiser(config, learning_rate),
        learning_rate=learning_rate,
        fold=config.fold_bn,
    )


def distill_epochs(
    config: ConfigDict, problem: Problem, teacher_variables: Variables, devices: Devices
) -> EpochFunction:
    """What drives a data-free state to the end of its epoch; `teacher_variables` are one copy."""
    epoch, parts = distill_epoch(config), distillation_steps(problem)
    batches = config.batches_at_once or batches_at_once(problem, teacher_variables, devices, epoch)
    return make_epoch_function(config.loop, epoch, devices, parts, batches=batches)


def _student_optimiser(config: ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    d = config.distill
    if d.optimiser == "adam":
        optimiser = optax.chain(optax.add_decayed_weights(d.weight_decay), optax.adam(learning_rate))
    else:
        optimiser = sgd(learning_rate, momentum=d.momentum, weight_decay=d.weight_decay)
    return optax.chain(optax.clip_by_global_norm(d.clip_norm), optimiser) if d.clip_norm else optimiser


def supervised_epoch(config: ConfigDict, section: str, images: int) -> Epoch:
    """How the steps of an epoch over `images` training images follow each other.

    Raises:
        UserError: there are fewer images than one batch holds, or more steps than can be counted.
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
    """What does not change results, but those of a run whose numbers went wrong."""
    return Upkeep(
        evaluate_every=config.evaluation.every_epochs,
        checkpoint_seconds=config.checkpoint.every_seconds,
        keep=config.checkpoint.keep,
        tensorboard=config.log.tensorboard,
        on_nan=config.on_nan,
    )


def memory_settings(config: ConfigDict, part: str) -> dict[str, int]:
    """What decides how much memory a part of a run takes: the settings, by dotted key, that are not 0."""
    keys = [f"{part}.batch_size"]
    if part == "distill":
        keys += ["synthesis.batch_size", "memory.capacity", "generator.width", "generator.latent_dim"]
        keys += ["distill.epochs"] * (config.method in POOLED)  # all images of the run are kept
        keys += ["cmi.bank_rows", "cmi.head_width"] * (config.method == "cmi")
        keys += ["evaluation.synthetic_images"] * (config.data.source == NO_DATA)
    return {key: value for key in (*keys, "evaluation.batch_size") if (value := get(config, key))}


def root_key(config: ConfigDict, stage: str) -> jax.Array:
    """The key that all randomness of a stage comes from.

    Each stage has its own: networks of one family initialised from the same key share their first weights,
    and a student must not start from what its teacher started from.
    """
    return jax.random.fold_in(jax.random.key(config.seed), list(_RESULT_KEYS).index(stage))
