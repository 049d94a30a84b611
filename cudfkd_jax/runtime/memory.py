"""Out-of-memory errors of a device or the machine: predicted, or recognised and reported in one line."""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from cudfkd_jax.runtime.errors import OutOfMemoryError, UserError

_LONGEST = 120  # characters; XLA's message continues with a list of buffers
# XLA's status, and its messages under other statuses.
_OF_A_DEVICE = re.compile(r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY|failed to allocate", re.IGNORECASE)


def check_fits(part: str, state: Any, settings: Mapping[str, int]) -> None:
    """Checks that the device can hold the state of a part of a run, not counting its steps.

    Args:
        part: the part's name, for the message.
        state: a tree of arrays or `jax.ShapeDtypeStruct`.
        settings: the settings that determine the part's memory.

    Raises:
        UserError: the state does not fit; the message names the settings.
    """
    wanted = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    held = device_memory()
    if wanted > held:
        raise UserError(
            f"{part}: the networks and what is kept beside them take {wanted / 2**30:.4g} GiB and the device has "
            f"{held / 2**30:.4g}; choose smaller networks, or lower one of --config.{', '.join(_shown(settings))}"
        )


def out_of_memory(error: BaseException) -> str:
    """Describes an out-of-memory error in one short line; "" for any other error."""
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
    """Converts an out-of-memory error in its body to one that names the settings to lower.

    Args:
        part: the part's name, for the message.
        settings: the settings that determine the part's memory; only the last one may change when a run resumes.

    Raises:
        OutOfMemoryError: memory ran out.
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


def device_memory() -> int:
    """Returns the memory of one device in bytes, or the machine's if the device is a CPU."""
    found = jax.local_devices()[0].memory_stats() or {}
    return int(found.get("bytes_limit", 0)) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _shown(settings: Mapping[str, int]) -> list[str]:
    return [f"{key} ({value})" for key, value in settings.items()]
