"""The processes of a run, on one machine or several: how they find each other, and what they tell each other.

Every process runs the same program on devices of its own. The first one alone reads and writes the folder of the
run and talks to the user; what it finds there the others learn by `from_first`, and an error of one process is an
error of all by `together`, so that none waits for another that has left.

All processes must call these functions in the same order. One process alone calls and computes nothing through
them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils

from cudfkd_jax.runtime.errors import RunFailedError, UserError

Result = TypeVar("Result")


def connect(*, coordinator: str, processes: int, process: int, detect: bool) -> None:
    """Joins the processes of a run; does nothing where they are joined already, or neither is asked for.

    JAX must not have been used for anything before.

    Args:
        coordinator: "host:port" of the first process; "": as detected.
        processes: how many there are; 0: as detected.
        process: which one this is, from 0; -1: as detected.
        detect: JAX looks in the environment (SLURM, Open MPI, its own variables) for what is not given.

    Raises:
        UserError: JAX does not find the others.
    """
    if jax.distributed.is_initialized() or not (coordinator or detect):
        return
    # Its handler would keep SIGTERM from ending a process that does not train.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes or None,
            None if process < 0 else process,
            cluster_detection_method=None if detect else "deactivate",
        )
    except (ValueError, RuntimeError, OSError) as error:
        advice = "start every process with srun or mpirun, or give" if detect else "check"
        raise UserError(
            f"the processes of the run do not find each other: {' '.join(str(error).split())[:200]}; {advice} "
            "--config.distributed.coordinator, processes and process"
        ) from error
    counts = [sum(d.process_index == n for d in jax.devices()) for n in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise UserError(f"the processes have {counts} devices; give each as many")


def count() -> int:
    """How many processes the run has."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes and talks."""
    return count() == 1 or jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """What `function()` returns in the first process, in all; it is called there alone.

    Args:
        function: returns dictionaries with names and lists of NumPy arrays, numbers, texts and None.

    Raises:
        UserError, RunFailedError: the function failed; in the first process its own error.
    """
    if count() == 1:
        return function()
    result = together(function if is_first() else lambda: None)
    content = _send(serialization.msgpack_serialize(result), source=0)
    return result if is_first() else serialization.msgpack_restore(content)


def together(function: Callable[[], Result]) -> Result:
    """`function()` in each process; where it fails in one, it fails in all.

    Raises:
        UserError, RunFailedError: it failed in another process, which is named; else its own error.
    """
    if count() == 1:
        return function()
    error: Exception | None = None
    try:
        result = function()
    except Exception as caught:
        error = caught
    kinds = multihost_utils.process_allgather(np.int32(_kind(error)))
    if not kinds.any():
        return result
    source = int(np.flatnonzero(kinds)[0])
    text = _send(_describe(error).encode(), source).decode()
    if error is not None:
        raise error
    raise _KINDS[kinds[source]](f"process {source}: {text}")


def largest(value: int) -> int:
    """The largest of the values, int32, that the processes give."""
    return value if count() == 1 else int(multihost_utils.process_allgather(np.int32(value)).max())


def gather(rows: np.ndarray) -> np.ndarray:
    """The rows `[n, ...]` of every process, one process after the other, `[n * count(), ...]`."""
    return rows if count() == 1 else multihost_utils.process_allgather(rows, tiled=True)


_KINDS: tuple[type[Exception], ...] = (Exception, UserError, RunFailedError)  # 0: no error


def _kind(error: Exception | None) -> int:
    return 0 if error is None else 1 if isinstance(error, UserError) else 2


def _describe(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | RunFailedError) else f"{type(error).__name__}: {text}"


def _send(content: bytes, source: int) -> bytes:
    """The bytes that one process has, in all; what the others give is left out."""
    mine = jax.process_index() == source
    high, low = multihost_utils.broadcast_one_to_all(
        np.array(divmod(len(content), 2**31), np.int32), mine
    ).tolist()
    length = high * 2**31 + low
    padded = np.zeros(1 << max(length - 1, 1).bit_length(), np.uint8)  # few lengths, few programs
    if mine:
        padded[:length] = np.frombuffer(content, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded, mine)[:length].tobytes()
