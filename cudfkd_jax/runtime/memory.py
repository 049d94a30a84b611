"""Running out of memory, of a device or of the machine: foreseen, or recognised and told in one line."""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from cudfkd_jax.runtime.errors import OutOfMemoryError, UserError

_LONGEST = 120  # characters; XLA goes on to list its buffers
# XLA's status, and what it says under another one.
_OF_A_DEVICE = re.compile(r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY|failed to allocate", re.IGNORECASE)


def check_fits(part: str, state: Any, settings: Mapping[str, int]) -> None:
    """Refuses a part of a run whose state alone, without any step, is more than the device holds.

    Args:
        part: of the run.
        state: a tree of arrays or `jax.ShapeDtypeStruct`.
        settings: those that decide how much memory the part takes.

    Raises:
        UserError: it does not fit; the settings are named.
    """
    wanted = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    held = _device_memory()
    if wanted > held:
        raise UserError(
            f"{part}: the networks and what is kept beside them take {wanted / 2**30:.4g} GiB and the device has "
            f"{held / 2**30:.4g}; choose smaller networks, or lower one of --config.{', '.join(_shown(settings))}"
        )


def out_of_memory(error: BaseException) -> str:
    """What ran out, in one short line; "" where the error is of another kind."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        what = "out of memory on this machine"
    elif isinstance(error, jax.errors.JaxRuntimeError) and _OF_A_DEVICE.search(text):
        what = "out of memory on the device"
    else:
        return ""
    return f"{what} ({text[:_LONGEST]})" if text else what


@contextlib.contextmanager
def enough_memory(part: str, settings: Mapping[str, int]) -> Iterator[None]:
    """Says what to lower where memory runs out inside.

    Args:
        part: of the run.
        settings: those that decide how much it takes; the last one alone may change while a run goes on.

    Raises:
        OutOfMemoryError: it did.
    """
    try:
        yield
    except Exception as error:
        if not (what := out_of_memory(error)):
            raise
        *others, last = _shown(settings)
        named = ", ".join(others)
        raise OutOfMemoryError(
            f"{part}: {what}; lower one of --config.{named} in another --workdir, or {last} in this one"
        ) from error


def _shown(settings: Mapping[str, int]) -> list[str]:
    return [f"{key} ({value})" for key, value in settings.items()]


def _device_memory() -> int:
    """Bytes of one device; of the machine, where the device is its CPU."""
    found = jax.local_devices()[0].memory_stats() or {}
    return int(found.get("bytes_limit", 0)) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
