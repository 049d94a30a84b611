"""Run states on disk: Orbax, atomically, with a checksum of every file.

A checkpoint is the folder `<name>` that Orbax wrote together with `<name>.sha256.json`, the digest of each of
its files, which is renamed into place last. Without a manifest that agrees the checkpoint counts as not written
and Orbax never opens it, because Orbax itself restores a flipped byte without a word.

Of several processes the first one alone saves and restores. Orbax takes arrays of one of several processes only as
NumPy's, which have no random keys, so keys are stored as their bits.
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
_NAME = re.compile(r"\d{9}")  # how many steps; Orbax appends to it while it writes

# Otherwise Orbax would wait for the other processes.
_ALONE = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="first")


def save(folder: Path, step: int, state: object, *, keep: int) -> None:
    """Writes `state` as the checkpoint of `step` and removes all but the newest `keep` up to it.

    Args:
        folder: of the checkpoints; made if needed.
        step: names the checkpoint; an intact one that is there already is left as it is. Later ones are
            removed: a run that comes to `step` has passed them over as damaged.
        state: a pytree of arrays and typed random keys.
        keep: at least 1.

    Raises:
        RunFailedError: it cannot be written, on a full disk for instance; the checkpoints before it stay.
    """
    path = folder.absolute() / f"{step:09d}"
    if is_intact(path):
        return
    host = to_host(state)
    try:
        shutil.rmtree(path, ignore_errors=True)
        _remove_others(folder, checkpoints(folder))  # room for this one
        path.mkdir(parents=True)  # where that fails, Orbax's threads would wait for it for minutes
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
    """The newest intact checkpoint, and the newer ones that are damaged.

    Args:
        folder: of the checkpoints; may be missing.
        like: a tree of arrays or `jax.ShapeDtypeStruct` with the structure that was saved.

    Returns:
        The state, None where there is no checkpoint at all, and the damaged checkpoints that were passed over.

    Raises:
        UserError: there are checkpoints and none is intact, or an intact one is not what Orbax writes.
    """
    newest, damaged = find_newest(folder)
    if newest is None:
        return None, []
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # whatever devices it was saved from
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
    """The tree with NumPy arrays for arrays, and for typed random keys with their bits."""
    return jax.device_get(_without_keys(tree))


def with_keys(tree: Tree, like: Tree) -> Tree:
    """The tree that `to_host` was given, up to where its arrays are; `like` has its types."""
    return jax.tree.map(
        lambda x, known: jax.random.wrap_key_data(x) if _is_key(known) and not _is_key(x) else x, tree, like
    )


def find_newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest intact checkpoint, and the newer ones that are damaged; reads but restores nothing.

    Raises:
        UserError: there are checkpoints and none is intact.
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
    """The checkpoints that were written to their end, oldest first, whether or not they are still intact."""
    manifests = sorted(folder.glob("*.sha256.json"))
    return [path.with_name(path.name.removesuffix(".sha256.json")) for path in manifests]


def is_intact(path: Path) -> bool:
    """Whether a checkpoint was written to its end and every file still has its digest."""
    try:
        return json.loads(_manifest(path).read_text()) == digests(path)
    except (OSError, ValueError):
        return False


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its path there."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): _sha256(file) for file in files}


def _prune(folder: Path, keep: list[Path]) -> None:
    for path in checkpoints(folder):
        if path not in keep:
            _manifest(path).unlink()
    _remove_others(folder, keep)


def _remove_others(folder: Path, keep: list[Path]) -> None:
    """Removes Orbax's folders but these, and what an interrupted save left of them."""
    names = {path.name for path in keep}
    for path in folder.glob("*"):
        if path.is_dir() and _NAME.match(path.name) and path.name not in names:
            shutil.rmtree(path)


def _reason(error: Exception) -> str:
    """What the operating system said, where it is what failed."""
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
