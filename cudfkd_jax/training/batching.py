"""The number of student steps whose images and teacher outputs fit into device memory at once."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from cudfkd_jax.models.capture import Variables
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.devices import SINGLE, Devices
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.loops import Epoch

_SHARE = 0.25  # fraction of a device's memory
_LIVE = 4  # largest arrays alive at once: a block's input, its branch, a result, room for layouts


def batches_at_once(problem: Problem, teacher_variables: Variables, devices: Devices, epoch: Epoch) -> int:
    """Returns the largest divisor of `student_steps` whose batches fit; 1 if memory is unknown (CPU).

    The processes agree on what fits in all of them.

    Args:
        problem: its `distill_steps.student_batch` is traced, not computed.
        teacher_variables: one copy.
        devices: share each batch.
        epoch: gives the student steps per round.
    """
    memory = (devices.local[0].memory_stats() or {}).get("bytes_limit", 0)
    fitting = _fitting(problem, teacher_variables, devices, memory) if memory else 1
    fitting = -processes.largest(-min(fitting, epoch.student_steps))
    return max(n for n in range(1, fitting + 1) if epoch.student_steps % n == 0)


def _fitting(problem: Problem, teacher_variables: Variables, devices: Devices, memory: int) -> int:
    key = jax.random.key(0)
    aux = jax.eval_shape(problem.method.init, key)
    batch = functools.partial(distill_steps.student_batch, problem=problem, axis=SINGLE)
    traced = jax.make_jaxpr(batch)(aux, key, jnp.int32(0), teacher_variables)
    results = (variable.aval for equation in equations(traced.jaxpr) for variable in equation.outvars)
    needed = sum(map(_bytes, traced.out_avals)) + _LIVE * max(map(_bytes, results))
    return max(int(_SHARE * memory * len(devices.devices) / needed), 1)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields every equation of a `jaxpr`, including those inside calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def _bytes(shape: Any) -> int:
    return math.prod(shape.shape) * (shape.dtype.itemsize if hasattr(shape.dtype, "itemsize") else 8)
