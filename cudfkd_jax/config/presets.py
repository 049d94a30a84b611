"""What configuration files call: the defaults, and functions that change several at once."""

from typing import Any

from ml_collections import ConfigDict

from cudfkd_jax.config.defaults import get_config
from cudfkd_jax.config.recipes import RECIPES
from cudfkd_jax.runtime.errors import UserError, choose

ARGUMENTS = ("teacher", "student", "method", "noisy", "released", "runlocal")
_BARE = ("noisy", "released", "runlocal")


def parse_arguments(text: str) -> dict[str, str]:
    """Splits what stands after the colon of `--config=file.py:teacher=a,released`; a bare word gets "".

    Raises:
        UserError: an argument is not in `ARGUMENTS`.
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
    """The default configuration for a pair of networks, each unless the arguments name another.

    Args:
        teacher, student: architectures.
        arguments: as `parse_arguments` returns them.
        noisy_accuracy: test accuracy in percent at which `noisy` ends the teacher's training; 0: not offered.

    Raises:
        UserError: `noisy` is asked for and not offered.
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
    """Shortens a configuration to what a CPU does while somebody waits."""
    train_for(config, epochs=1)
    config.generator.latent_dim = 256
    config.distill.epochs = 3
    scale_steps(config, student_steps=student_steps, synthesis_steps=student_steps // 2, batch_size=batch_size)
    config.evaluation.stability_from = 1
    config.log.samples_every_epochs = 1


def scale_steps(config: ConfigDict, *, student_steps: int, synthesis_steps: int, batch_size: int) -> None:
    """Gives the epochs of any method so many student steps, and all its batches this size.

    Methods with one round an epoch get so many synthesis steps in it; the others keep their ratio of both kinds.
    """
    d = config.distill
    if d.rounds_per_epoch == 1:
        d.update(student_steps=student_steps, synthesis_steps=synthesis_steps)
    else:
        d.rounds_per_epoch = max(student_steps // d.student_steps, 1)
    config.memory.capacity = config.memory.capacity * batch_size // d.batch_size
    config.synthesis.batch_size = 0
    d.batch_size = batch_size


def train_for(config: ConfigDict, **settings: Any) -> None:
    """Gives these settings to each training with data: teacher, scratch and kd."""
    for section in (config.teacher, config.scratch, config.kd):
        section.update(settings)


def use_method(config: ConfigDict, method: str) -> None:
    """Chooses a method together with its recipe.

    Raises:
        UserError: there is no such method.
    """
    choose("method", method, tuple(RECIPES))
    config.method = method
    config.update(RECIPES[method])
    if method == "cmi" and config.teacher.arch.startswith("resnet"):
        config.cmi.features = "stages"  # the inputs of all BatchNorm layers would make a head of many millions
    if method == "zskt":
        # The original clips the gradient of KL/K + 250 · attention at 5; the objective here is K times that. A
        # reference, so that it follows the number of classes, whoever sets that later.
        config.distill.clip_norm = 5.0 * config.data.get_ref("num_classes").to_float()


def check_recipe(config: ConfigDict, where: str) -> None:
    """Refuses a method that was named without its recipe, with which another method's settings would run.

    Args:
        config: that has a method's name.
        where: it comes from; begins the message.

    Raises:
        UserError: every setting of the recipe is at its default.
    """
    default = get_config()
    recipe = {
        (section, key): default[section][key]
        for section, settings in RECIPES.get(config.method, {}).items()
        for key, value in settings.items()
        if value != default[section][key]
    }
    if recipe and all(config[section][key] == value for (section, key), value in recipe.items()):
        raise UserError(
            f"{where}: method={config.method} has none of its recipe's settings; choose it by "
            f"defaults.with_arguments(teacher, student, {{'method': '{config.method}'}})"
        )


def _released(config: ConfigDict) -> None:
    """Makes a configuration behave as the authors' released code where that differs from the paper."""
    config.curriculum.granularity = "batch"
    config.curriculum.lambda_max = 0.0
    config.curriculum.ramp = "released"
    config.curriculum.none_keeps_ramp = False
    config.released_js = True
