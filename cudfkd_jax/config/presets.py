"""Functions for configuration files: they start from the defaults and change several settings at once."""

from typing import Any

from ml_collections import ConfigDict

from cudfkd_jax.config.access import flatten
from cudfkd_jax.config.defaults import get_config
from cudfkd_jax.config.methods import use_method
from cudfkd_jax.runtime.errors import UserError, choose

ARGUMENTS = ("teacher", "student", "method", "noisy", "released", "runlocal")
_BARE = ("noisy", "released", "runlocal")
_FEW = 10  # synthesis steps


def parse_arguments(text: str) -> dict[str, str]:
    """Parses the arguments after the colon of `--config=file.py:teacher=a,released`; bare words map to "".

    Raises:
        UserError: an argument is not in `ARGUMENTS`, lacks its value, or has one where it takes none.
    """
    arguments = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        choose("argument after the colon of --config", key, ARGUMENTS)
        if bool(value) == (key in _BARE):
            form = key if value else f"{key}=NAME"
            raise UserError(f"argument {part!r} after the colon of --config; write {form}")
        arguments[key] = value
    return arguments


def with_arguments(
    teacher: str, student: str, arguments: dict[str, str], *, noisy_accuracy: float = 0.0
) -> ConfigDict:
    """Returns the default configuration for a pair of networks, changed by arguments.

    Args:
        teacher, student: architectures, unless the arguments name others.
        arguments: as returned by `parse_arguments`.
        noisy_accuracy: test accuracy in percent at which `noisy` stops the teacher's training; 0: not offered.

    Raises:
        UserError: `noisy` is given but not offered, or the method is unknown.
    """
    config = get_config()
    config.teacher.arch = arguments.get("teacher", teacher)
    config.student.arch = arguments.get("student", student)
    use_method(config, arguments.get("method", config.method))
    if "released" in arguments:
        _released(config)
    if "noisy" in arguments:
        if not noisy_accuracy:
            raise UserError("no noisy teacher is defined here; give --config.teacher.stop_accuracy, in percent")
        config.teacher.stop_accuracy = noisy_accuracy
    return config


def run_locally(config: ConfigDict, *, student_steps: int, batch_size: int) -> None:
    """Shortens a configuration enough for an interactive run on a CPU."""
    train_for(config, epochs=1)
    config.generator.latent_dim = 256
    config.distill.epochs = 3
    scale_steps(config, student_steps=student_steps, synthesis_steps=student_steps // 2, batch_size=batch_size)
    config.evaluation.stability_from = 1
    config.log.samples_every_epochs = 1


def scale_steps(config: ConfigDict, *, student_steps: int, synthesis_steps: int, batch_size: int) -> None:
    """Sets the number of student steps per epoch and the batch size, for any method.

    Methods with one round per epoch also get `synthesis_steps`, unless they take but a few; the others keep their
    ratio of the two kinds.
    """
    d = config.distill
    if d.rounds_per_epoch == 1:
        d.student_steps = student_steps
        d.synthesis_steps = d.synthesis_steps if d.synthesis_steps <= _FEW else synthesis_steps
    else:
        d.rounds_per_epoch = max(student_steps // d.student_steps, 1)
    config.memory.capacity = config.memory.capacity * batch_size // d.batch_size
    config.synthesis.batch_size = 0
    d.batch_size = batch_size


def train_for(config: ConfigDict, **settings: Any) -> None:
    """Applies settings to all training with data: teacher, scratch and kd."""
    for section in (config.teacher, config.scratch, config.kd):
        section.update(settings)


def check_recipe(config: ConfigDict, where: str) -> None:
    """Rejects a method without its recipe, which would run with another method's settings.

    Args:
        config: names a method.
        where: the origin of the configuration; begins the message.

    Raises:
        UserError: the method is unknown, or every setting of its recipe is at its default.
    """
    changed = get_config()
    default, given = flatten(changed), flatten(config)
    use_method(changed, config.method)
    wanted = flatten(changed)
    recipe = [key for key, value in default.items() if key != "method" and wanted[key] != value]
    if recipe and all(given[key] == default[key] for key in recipe):
        raise UserError(
            f"{where}: method={config.method} has none of its recipe's settings; choose it by "
            f"defaults.with_arguments(teacher, student, {{'method': '{config.method}'}})"
        )


def _released(config: ConfigDict) -> None:
    """Makes a configuration follow the authors' released code where it differs from the paper."""
    config.curriculum.granularity = "batch"
    config.curriculum.lambda_max = 0.0
    config.curriculum.ramp = "released"
    config.curriculum.none_keeps_ramp = False
    config.released_js = True
