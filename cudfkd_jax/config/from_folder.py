"""The settings that a folder of images gives, filled in before the run's identity is computed.

Shape and number of classes are those of the folder. Mean and standard deviation are those of its training images,
only where a network is trained on them: a teacher from elsewhere has its own, which images cannot show.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cudfkd_jax import data
from cudfkd_jax.config import validate
from cudfkd_jax.config.access import FOLDER, from_folder, gives_teacher
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir

_SHAPE = "data.image_shape"
_OF_TRAINING = ("data.mean", "data.std")
_DIGITS = 4


def settle(config: ConfigDict, folder: Path | None = None, say: Callable[[str], None] = lambda text: None) -> None:
    """Fills in, in place, the settings that are to come from the data's folder, and checks the configuration.

    Args:
        config: checked.
        folder: the run's workdir; a run already in it keeps its settings, as does one with the teacher of a run.
        say: receives the settings, for the user.

    Raises:
        UserError: the folder cannot give them, or a setting does not fit them.
    """
    if not from_folder(config):
        return
    found = processes.from_first(lambda: _find(config, folder, say))
    config.update_from_flattened_dict(_with_tuples(found))
    processes.together(lambda: validate.check(config))


def _find(config: ConfigDict, folder: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    missing, checkpoint = from_folder(config), config.teacher.checkpoint
    if folder:
        workdir.check_writable(folder)
    places = [*([folder] if folder else []), *([Path(checkpoint).expanduser()] if checkpoint else [])]
    recorded = next(filter(None, map(_recorded, places)), None)
    found = recorded or _of_folder(config, missing)
    found = {key: list(found[key]) if isinstance(found[key], tuple) else found[key] for key in missing}
    if not recorded:
        values = _with_tuples(found).items()
        shown = ", ".join(f"{key.removeprefix('data.')} {value}" for key, value in values)
        say(f"data: {shown}, from {config.data.dir}")
    return found


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    """Converts lists, which processes exchange and files hold, to the tuples of a configuration."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _recorded(folder: Path) -> dict[str, Any] | None:
    """Returns the settings of the run in a folder; None without a run."""
    return next(map(workdir.read_settings, workdir.begun_stages(folder).values()), None)


def _of_folder(config: ConfigDict, missing: Sequence[str]) -> dict[str, Any]:
    """Reads the settings from the folder: from its names and some headers and, for mean and std, all of train/."""
    d = config.data
    for key in _OF_TRAINING:
        if key in missing and gives_teacher(config):
            origin = config.teacher.checkpoint or config.teacher.module
            raise UserError(
                f"{key} is () and the teacher comes from {origin}; expected the mean and std of its training, "
                "for torchvision's networks (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225). Set "
                "--config.data.mean and --config.data.std"
            )
    if d.resize and _SHAPE in missing:
        raise UserError(
            "data.resize is True and data.image_shape is (); expected a size to bring the images to. Set "
            "--config.data.image_shape='(224, 224, 3)'"
        )
    found = data.survey(d.dir, sizes=_SHAPE in missing)
    settings = {_SHAPE: found.image_shape, "data.num_classes": found.num_classes}
    whole = config.copy_and_resolve_references()
    whole.update_from_flattened_dict({key: value for key, value in settings.items() if key in missing})
    validate.check(whole)
    if set(missing) & set(_OF_TRAINING):
        d = whole.data
        settings["data.mean"], settings["data.std"] = _mean_and_std(
            d.dir, tuple(d.image_shape), d.num_classes, d.class_order, d.resize
        )
    return settings


@functools.lru_cache(maxsize=1)  # plans of many runs ask again
def _mean_and_std(
    directory: str, image_shape: tuple[int, int, int], num_classes: int, class_order: str, resize: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    dataset = data.load(
        FOLDER,
        name="",
        directory=directory,
        image_shape=image_shape,
        num_classes=num_classes,
        splits=("train",),
        class_order=class_order,
        resize=resize,
    )
    mean, std = data.mean_and_std(dataset.splits["train"].images)
    return tuple(mean.round(_DIGITS).tolist()), tuple(std.round(_DIGITS).tolist())
