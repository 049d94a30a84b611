"""The size of a classifier, and its measured latency on one device."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cudfkd_jax.evaluation.headline import size
from cudfkd_jax.models import count_parameters
from cudfkd_jax.runtime.memory import device_memory, out_of_memory
from cudfkd_jax.storage.weights import NetworkSpec

BATCH_SIZES = (1, 256)
_CALLS, _SECONDS = 30, 1.0  # at most, per batch size
_FEWEST = 3  # calls, where one takes less than _SECONDS
_LONGEST = 20.0  # seconds; a batch that would take longer, one image after the other, is not measured


def measure(net: NetworkSpec, variables: Any, device: jax.Device) -> dict[str, Any]:
    """Measures a network in float32, in evaluation mode, with images and weights on the device.

    Args:
        net: its description.
        variables: as of `net.abstract_variables()`.
        device: a local device.

    Returns:
        JSON-ready: `parameters`; `bytes`, the size of parameters and batch statistics; and `latency_ms`, by batch
        size, the median over calls after a first one, None where the batch does not fit or takes too long.
    """
    variables = jax.device_put(variables, device)
    latency: dict[str, float | None] = {}
    per_image = 0.0
    for batch_size in BATCH_SIZES:
        found = None if batch_size * per_image > _LONGEST else _seconds(net, variables, batch_size, device)
        per_image = per_image if found is None else found / batch_size
        latency[str(batch_size)] = None if found is None else 1000 * found
    return {
        "parameters": count_parameters(variables["params"]),
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(variables)),
        "latency_ms": latency,
    }


def _seconds(net: NetworkSpec, variables: Any, batch_size: int, device: jax.Device) -> float | None:
    """Returns the median time of a call; None where memory does not suffice."""
    network = jax.jit(lambda variables, images: net.classifier()(variables, images).value)
    shape = (batch_size, *net.image_shape)
    try:
        images = jax.device_put(jnp.full(shape, 0.5), device)
        compiled = network.lower(variables, images).compile()
        needed = compiled.memory_analysis()
        if needed and needed.temp_size_in_bytes > device_memory():  # a CPU would swap, or end this process
            return None
        times: list[float] = []
        for warm in (False, *[True] * _CALLS):
            begun = time.perf_counter()
            jax.block_until_ready(compiled(variables, images))
            times += [time.perf_counter() - begun] if warm else []
            if sum(times) > _SECONDS and (len(times) >= _FEWEST or times[-1] > _SECONDS):
                break
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None
    return statistics.median(times)


def describe(networks: Mapping[str, Mapping[str, Any]], device: str) -> str:
    """Formats measurements as a table and, of "student" beside "teacher", one line.

    Args:
        networks: the results of `measure`, each with its `arch`, by role.
        device: the name of the device.
    """
    heading = "".join(f"{f'ms, batch {batch_size}':>16}" for batch_size in BATCH_SIZES)
    lines = [f"{'':<8}{'parameters':>12}{'MB':>10}{heading}"]
    for role, found in networks.items():
        cells = "".join(f"{_milliseconds(found['latency_ms'][str(n)]):>16}" for n in BATCH_SIZES)
        lines.append(f"{role:<8}{found['parameters']:>12,}{found['bytes'] / 1e6:>10.2f}{cells}  {found['arch']}")
    return "\n".join([*lines, *_beside(networks), f"on {device}, float32"])


def _milliseconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _beside(networks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if "teacher" not in networks:
        return []
    teacher, student = networks["teacher"], networks["student"]
    parts = [size(teacher["parameters"], student["parameters"])]
    for batch_size in map(str, BATCH_SIZES):
        theirs, ours = teacher["latency_ms"][batch_size], student["latency_ms"][batch_size]
        if theirs and ours:
            parts.append(f"{theirs / ours:.1f}× as fast at batch {batch_size}")
    return [f"student: {', '.join(parts)}"]
