"""Checkpoints of run states: Orbax, atomic, with a checksum of every file.

A checkpoint is Orbax's folder `<name>` together with the manifest `<name>.sha256.json`, the digest of each of its
files, which is renamed into place last. Without a matching manifest the checkpoint counts as not written and Orbax
never opens it, because Orbax restores a flipped byte silently.

With several processes, only the first saves and restores. From one process of several, Orbax accepts only NumPy
arrays, which cannot hold random keys, so keys are stored as their bits.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from cudfkd_jax.runtime.errors import RunFailedError, UserError
from cudfkd_jax.storage.files import write_json
from cudfkd_jax.storage.orbax import quietly

Tree = TypeVar("Tree")

MOST_STEPS = 10**9  # of a run; names have nine digits
_NAME = re.compile(r"\d{9}")  # the number of steps; Orbax appends to it while it writes

# Otherwise Orbax would wait for the other processes.
_ALONE = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="first")


def save(folder: Path, step: int, state: object, *, keep: int) -> None:
    """Writes `state` as the checkpoint of `step` and removes all but the newest `keep` up to it.

    Args:
        folder: the folder of the checkpoints; created if needed.
        step: names the checkpoint; an existing intact one is left unchanged. Later ones are removed: a run that
            reaches `step` has skipped them as damaged.
        state: a pytree of arrays and typed random keys.
        keep: the number of checkpoints to keep, at least 1.

    Raises:
        RunFailedError: writing fails, for instance on a full disk; earlier checkpoints are kept.
    """
    path = folder.absolute() / f"{step:09d}"
    if is_intact(path):
        return
    host = to_host(state)
    try:
        shutil.rmtree(path, ignore_errors=True)
        _remove_others(folder, checkpoints(folder))  # make room for this one
        path.mkdir(parents=True)  # fails early; Orbax's threads would wait for minutes
        path.rmdir()
        with quietly(), ocp.StandardCheckpointer(multiprocessing_options=_ALONE) as checkpointer:
            checkpointer.save(path, host)
        write_json(_manifest(path), digests(path))
        _prune(folder, [other for other in checkpoints(folder) if other.name <= path.name][-keep:])
    except Exception as error:  # of Orbax or TensorStore, of many types
        raise RunFailedError(
            f"the checkpoint {path} cannot be written: {_reason(error)}; fix that (a full disk: make room), and "
            "rerun the same command to resume from the checkpoint before"
        ) from error


def restore_newest(folder: Path, like: Tree) -> tuple[Tree | None, list[Path]]:
    """Restores the newest intact checkpoint.

    Args:
        folder: the folder of the checkpoints; may be missing.
        like: a tree of arrays or `jax.ShapeDtypeStruct` with the saved structure.

    Returns:
        The state, None if there is no checkpoint, and the newer, damaged checkpoints that were skipped.

    Raises:
        UserError: checkpoints exist but none is intact, or Orbax cannot read an intact one.
    """
    newest, damaged = find_newest(folder)
    if newest is None:
        return None, []
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # not on the devices it was saved from
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), jax.eval_shape(_without_keys, like)
    )
    try:
        with quietly(), ocp.StandardCheckpointer(multiprocessing_options=_ALONE) as checkpointer:
            return with_keys(checkpointer.restore(newest.absolute(), abstract), like), damaged
    except Exception as error:  # of Orbax or TensorStore, of many types
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"{newest} has the files that its manifest names, and Orbax cannot read them ({detail}); move it away "
            "to go on from the one before"
        ) from error


def to_host(tree: Tree) -> Tree:
    """Converts the arrays of a tree to NumPy arrays, and its typed random keys to their bits."""
    return jax.device_get(_without_keys(tree))


def with_keys(tree: Tree, like: Tree) -> Tree:
    """Inverts `to_host`, except for the arrays' location; `like` provides the types."""
    return jax.tree.map(
        lambda x, known: jax.random.wrap_key_data(x) if _is_key(known) and not _is_key(x) else x, tree, like
    )


def find_newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """Returns the newest intact checkpoint and the newer, damaged ones, without restoring any.

    Raises:
        UserError: checkpoints exist but none is intact.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoints(folder)):
        if is_intact(path):
            return path, damaged
        damaged.append(path)
    if damaged:
        raise UserError(f"every checkpoint in {folder} is damaged; move the folder away to start again")
    return None, []


def checkpoints(folder: Path) -> list[Path]:
    """Returns the completely written checkpoints, oldest first, whether or not they are still intact."""
    manifests = sorted(folder.glob("*.sha256.json"))
    return [path.with_name(path.name.removesuffix(".sha256.json")) for path in manifests]


def is_intact(path: Path) -> bool:
    """Returns whether a checkpoint was written completely and every file still matches its digest."""
    try:
        return json.loads(_manifest(path).read_text()) == digests(path)
    except (OSError, ValueError):
        return False


def digests(path: Path) -> dict[str, str]:
    """Computes the SHA-256 of every file in a folder, by relative path."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): _sha256(file) for file in files}


def _prune(folder: Path, keep: list[Path]) -> None:
    for path in checkpoints(folder):
        if path not in keep:
            _manifest(path).unlink()
    _remove_others(folder, keep)


def _remove_others(folder: Path, keep: list[Path]) -> None:
    """Removes Orbax's folders except these, and remnants of interrupted saves."""
    names = {path.name for path in keep}
    for path in folder.glob("*"):
        if path.is_dir() and _NAME.match(path.name) and path.name not in names:
            shutil.rmtree(path)


def _reason(error: Exception) -> str:
    """Returns the operating system's message if it raised the error."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}" + (f" ({error.filename})" if error.filename else "")
    return " ".join(str(error).split())[:200]


def _without_keys(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _is_key(x: Any) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + ".sha256.json")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
