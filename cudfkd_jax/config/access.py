"""Reading a ConfigDict: dotted keys, choices, and what several readers derive from it."""

import functools
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from cudfkd_jax.training.loops import Epoch

NO_DATA = "none"  # as data.source
AUTO = "auto"  # as compute_dtype, until `precision.settle`
PROCESSES = "distributed."  # begins the settings that say where a run takes place, which is not kept with it


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


def kept(config: ConfigDict) -> dict[str, Any]:
    """The settings, by dotted key, that a run is started with again, on as many processes as may be."""
    return {key: value for key, value in flatten(config).items() if not key.startswith(PROCESSES)}


def distill_epoch(config: ConfigDict) -> Epoch:
    """How the steps of a data-free epoch follow each other."""
    d = config.distill
    return Epoch(d.rounds_per_epoch, d.synthesis_steps, d.student_steps)


def synthesis_batch_size(config: ConfigDict) -> int:
    """Images of a synthesis step, over all devices."""
    return config.synthesis.batch_size or config.distill.batch_size


def compute_dtype(config: ConfigDict) -> Any:
    """The dtype of convolutions and matrix products; None for that of parameters and inputs."""
    return jnp.bfloat16 if config.compute_dtype == "bfloat16" else None
