"""Access to a ConfigDict: dotted keys, special values and shared derived quantities."""

import functools
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from cudfkd_jax.runtime.imports import is_torch_path
from cudfkd_jax.training.loops import Epoch

NO_DATA = "none"  # as data.source
AUTO = "auto"  # as compute_dtype, until `precision.settle`
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


def compute_dtype(config: ConfigDict) -> Any:
    """Returns the dtype of convolutions and matrix products; None keeps that of parameters and inputs."""
    return jnp.bfloat16 if config.compute_dtype == "bfloat16" else None
