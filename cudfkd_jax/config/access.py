"""Access to a ConfigDict: dotted keys, special values and shared derived quantities."""

import functools
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from cudfkd_jax.models import generator
from cudfkd_jax.runtime.imports import is_torch_path
from cudfkd_jax.training.loops import Epoch

NO_DATA, FOLDER = "none", "folder"  # as data.source
AUTO = "auto"  # as compute_dtype, until `precision.settle`
# Settings that a folder of images can give, by dotted key, at the value with which it is asked to.
FROM_FOLDER: dict[str, Any] = {"data.image_shape": (), "data.num_classes": 0, "data.mean": (), "data.std": ()}
_STAND_IN_SIZE, _STAND_IN_CHANNELS, _STAND_IN_CLASSES, _STAND_IN_COLOUR = 224, 3, 2, 0.5
PROCESSES = "distributed."  # prefix of the settings that place a run on machines; not saved with the run


def get(config: ConfigDict, key: str) -> Any:
    """Returns the value at a dotted key."""
    return functools.reduce(lambda node, part: node[part], key.split("."), config)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns the configuration as a flat dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def kept(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings, by dotted key, that restart a run on any number of processes."""
    return {key: value for key, value in flatten(config).items() if not key.startswith(PROCESSES)}


def from_folder(config: ConfigDict) -> list[str]:
    """Returns the keys of the settings that are to come from the folder of images and are not there yet."""
    if config.data.source != FOLDER:
        return []
    return [key for key, unset in FROM_FOLDER.items() if get(config, key) == unset]


def with_stand_ins(config: ConfigDict) -> ConfigDict:
    """Returns the configuration or, where settings are to come from the folder, a copy with others for them."""
    missing = from_folder(config)
    if not missing:
        return config
    d = config.data
    # A shape given with other channels is refused by the check.
    counts = (*tuple(d.image_shape)[2:], len(d.mean), len(d.std))
    channels = int(next((count for count in counts if count in (1, 3)), _STAND_IN_CHANNELS))
    stand_ins = {
        "data.image_shape": (_STAND_IN_SIZE, _STAND_IN_SIZE, channels),
        "data.num_classes": _STAND_IN_CLASSES,
        "data.mean": (_STAND_IN_COLOUR,) * channels,
        "data.std": (_STAND_IN_COLOUR,) * channels,
    }
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict({key: stand_ins[key] for key in missing})
    return copy


def has_images(config: ConfigDict) -> bool:
    """Returns whether there are images to train or to test on."""
    return config.data.source != NO_DATA


def gives_teacher(config: ConfigDict) -> bool:
    """Returns whether the teacher comes with its weights: in a file, or in a PyTorch module."""
    return bool(config.teacher.checkpoint) or is_torch_path(config.teacher.module)


def distill_epoch(config: ConfigDict) -> Epoch:
    """Returns the schedule of steps in a data-free epoch."""
    d = config.distill
    return Epoch(d.rounds_per_epoch, d.synthesis_steps, d.student_steps, d.warmup_rounds)


def synthesis_batch_size(config: ConfigDict) -> int:
    """Returns the number of images per synthesis step, over all devices."""
    return config.synthesis.batch_size or config.distill.batch_size


def generator_stages(config: ConfigDict) -> int:
    """Returns the number of up-samplings of the generator."""
    return config.generator.stages or generator.suitable_stages(tuple(config.data.image_shape))


def compute_dtype(config: ConfigDict) -> Any:
    """Returns the dtype of convolutions and matrix products; None keeps that of parameters and inputs."""
    return jnp.bfloat16 if config.compute_dtype == "bfloat16" else None
