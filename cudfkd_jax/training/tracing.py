"""Traces that an initial state, which needs the metrics of every step, and the steps share."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from cudfkd_jax.runtime.devices import Axis

Result = TypeVar("Result")


def traced_once(function: Callable[..., Result], problem: Any, axis: Axis) -> Callable[..., Result]:
    """Returns `function(*arguments, problem=problem, axis=axis)`, traced once for arguments of the same shapes.

    Its operations become those of the caller, as if it had been called directly.

    Args:
        function: pure.
        problem: constants, told apart by identity.
        axis: the devices.
    """
    return _traced(function, problem, axis)


@functools.lru_cache(maxsize=16)  # the newest few problems; a trace holds as much memory as its program text
def _traced(function: Callable[..., Any], problem: Any, axis: Axis) -> Callable[..., Any]:
    return jax.jit(functools.partial(function, problem=problem, axis=axis), inline=True)
