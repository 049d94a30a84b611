"""The processes of a run, on one or several machines: initialisation and communication.

Every process runs the same program on its local devices. Only the first reads and writes the run's folder and
prints messages; `from_first` broadcasts what it reads, and `together` raises an error of one process in all, so
that none waits for a process that has exited.

All processes must call these functions in the same order. In a run of one process they do not communicate.
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
    """Connects the processes of a run; does nothing if connected already, or without coordinator and `detect`.

    Must precede any other use of JAX.

    Args:
        coordinator: "host:port" of the first process; "" detects it.
        processes: the number of processes; 0 detects it.
        process: the index of this process, from 0; -1 detects it.
        detect: whether JAX detects missing values from the environment (SLURM, Open MPI, JAX's own variables).

    Raises:
        UserError: JAX cannot connect the processes, or they have different numbers of devices.
    """
    if jax.distributed.is_initialized() or not (coordinator or detect):
        return
    # Its handler would keep SIGTERM from ending a process that is not training.
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
    """Returns the number of processes of the run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Returns whether this is the first process, which writes files and prints messages."""
    return count() == 1 or jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """Calls `function()` in the first process and returns its result in all.

    Args:
        function: returns dictionaries with string keys and lists of NumPy arrays, numbers, strings and None;
            arrays above a gigabyte in dictionaries alone.

    Raises:
        UserError, RunFailedError: the function failed; the first process raises the original error.
    """
    if count() == 1:
        return function()
    result = together(function if is_first() else lambda: None)
    content = _send(serialization.msgpack_serialize(result), source=0)
    return result if is_first() else serialization.msgpack_restore(content)


def together(function: Callable[[], Result]) -> Result:
    """Calls `function()` in each process and raises in all if it fails in any.

    Raises:
        UserError, RunFailedError: it failed in another process, which is named; a process that failed raises the
            original error.
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
    """Returns the largest of the processes' values, int32."""
    return value if count() == 1 else int(multihost_utils.process_allgather(np.int32(value)).max())


def gather(rows: np.ndarray) -> np.ndarray:
    """Concatenates the rows `[n, ...]` of all processes in process order, `[n * count(), ...]`."""
    return rows if count() == 1 else multihost_utils.process_allgather(rows, tiled=True)


_KINDS: tuple[type[Exception], ...] = (Exception, UserError, RunFailedError)  # 0: no error


def _kind(error: Exception | None) -> int:
    return 0 if error is None else 1 if isinstance(error, UserError) else 2


def _describe(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | RunFailedError) else f"{type(error).__name__}: {text}"


def _send(content: bytes, source: int) -> bytes:
    """Broadcasts the bytes of one process; the others' `content` is ignored."""
    mine = jax.process_index() == source
    high, low = multihost_utils.broadcast_one_to_all(
        np.array(divmod(len(content), 2**31), np.int32), mine
    ).tolist()
    length = high * 2**31 + low
    padded = np.zeros(1 << max(length - 1, 1).bit_length(), np.uint8)  # few lengths mean few compiled programs
    if mine:
        padded[:length] = np.frombuffer(content, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded, mine)[:length].tobytes()
