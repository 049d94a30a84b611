"""Weights from other Flax programs: `{'params', 'batch_stats'}` in msgpack files and Orbax folders.

In their place may be the state of an NNX module (`nnx_states.py`).

Orbax writes a tree into a folder with `_METADATA`. Checkpoints with named items and those of
`orbax.checkpoint.v1` hold one such folder per item; managers and `flax.training.checkpoints` hold one checkpoint
per step, whose name is the step after an optional prefix.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from cudfkd_jax.runtime.errors import UserError, unknown
from cudfkd_jax.storage import nnx_states
from cudfkd_jax.storage.files import check_is_itself
from cudfkd_jax.storage.orbax import quietly

SUFFIXES = (".msgpack", ".flax")

# Names under which programs save variables, the first present one is taken; "default" and "pytree" are Orbax's
_WRAPPERS = (
    *("default", "pytree", "state", "train_state", "model", "variables", "weights", "target"),
    *("ema", "model_ema", "ema_state"),
)
_TREE = ("_METADATA", "manifest.ocdbt")  # a folder with one of them holds a tree
_CHECKPOINT = (*_TREE, "_CHECKPOINT_METADATA")
_UNFINISHED = ".orbax-checkpoint-tmp"
_LEVELS = 4  # of wrappers, at most
_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # first bytes of a map that is not empty in msgpack


class FlaxVariables(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
        variables: `{'params', 'batch_stats'}`, NumPy arrays.
        notes: what was chosen, for the user.
    """

    variables: dict[str, Any]
    notes: tuple[str, ...]


def is_flax(path: Path) -> bool:
    """Returns whether a file is Flax's, by its suffix or else by its content."""
    if path.suffix in SUFFIXES:
        return True
    if path.suffix == ".safetensors":
        return False
    try:
        with path.open("rb") as stream:  # PyTorch's files begin otherwise
            return (stream.read(1) or b"\0")[0] in _MAPS
    except OSError:  # whoever reads it says so
        return False


def find_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint in a folder: the folder itself, or its newest step, a folder or a file; None without.

    Raises:
        OSError: a folder cannot be read.
    """
    if _has(folder, _CHECKPOINT):
        return folder
    steps = sorted((p for p in folder.iterdir() if _step(p) >= 0), key=_step, reverse=True)
    newest = next((p for p in steps if (_is_checkpoint(p) if p.is_dir() else is_flax(p))), None)
    return newest or (folder if _is_checkpoint(folder) else None)


def read_variables(path: Path, expected: Any, key: str = "") -> FlaxVariables:
    """Reads `{'params', 'batch_stats'}` from a msgpack file or an Orbax folder.

    Args:
        path: a file from `flax.serialization`, or a checkpoint from `find_checkpoint`. Anything beside `params`
            and `batch_stats` (such as an optimiser's state) is ignored.
        expected: a tree of arrays or `jax.ShapeDtypeStruct` with the expected structure and shapes.
        key: the item or the entry of the tree that holds the variables; "" takes the first of the usual ones.

    Returns:
        NumPy arrays with the dtypes of `expected`: float16, bfloat16 and float64 are cast.

    Raises:
        UserError: the file cannot be read, lacks the key, or contains no weights, another network's weights or
            non-finite values.
    """
    if path.is_file():
        check_is_itself(path)
    notes: list[str] = []
    tree = _damaged_unless(path, _read_msgpack if path.is_file() else _read_metadata)
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}; save {{'params', 'batch_stats'}}")
    state = None if _is_variables(tree) or _wrappers(tree) else nnx_states.find(tree, expected, key)
    place = _find_variables(tree, path, key, notes) if state is None else state
    if path.is_dir():
        items = place[:1] if place else tuple(expected)
        tree = _damaged_unless(path, lambda path: _read_orbax(path, items))
    for name in place:
        tree = tree[name]
    if state is not None:
        tree = nnx_states.collections(tree, expected)
    held = {name: tree.get(name) or {} for name in expected}
    given = _flat(nnx_states.without_values(held, expected))
    wanted = _flat(expected)
    _check(given, wanted, path)
    arrays = {name: np.asarray(given[name]).astype(leaf.dtype) for name, leaf in wanted.items()}
    variables = {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(arrays)
    return FlaxVariables(variables, tuple(notes))


def _step(path: Path) -> int:
    """Returns the step in the name of a manager's or of Flax's checkpoint; -1 for other names."""
    match = re.search(r"\d+$", path.name)
    return int(match[0]) if match and _UNFINISHED not in path.name else -1


def _has(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).exists() for name in names)


def _items(folder: Path) -> list[Path]:
    """Returns the folders of the items that hold trees."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and _UNFINISHED not in p.name and _has(p, _TREE))


def _is_checkpoint(folder: Path) -> bool:
    return _has(folder, _CHECKPOINT) or bool(_items(folder))


def _damaged_unless(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except Exception as error:  # of msgpack, Orbax or TensorStore
        detail = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(f"{path} is damaged or no checkpoint of Flax ({detail}); copy or save it again") from error


def _find_variables(tree: Mapping[Any, Any], path: Path, key: str, notes: list[str]) -> tuple[str, ...]:
    """Returns the keys that lead to the mapping with `params`, and notes what was chosen among several."""
    place: tuple[str, ...] = ()
    while key or not _is_variables(tree):
        found = _wrappers(tree)
        if key and key not in found:
            raise unknown("teacher.checkpoint_key", key, found)
        if not found:
            raise UserError(f"{path} holds no 'params' but {_keys(tree)}; save {{'params', 'batch_stats'}}")
        chosen = key or found[0]
        if len(found) > 1:
            others = ", ".join(name for name in found if name != chosen)
            notes.append(
                f"read {chosen!r} of {path.name}, which also has {others} (--config.teacher.checkpoint_key)"
            )
        tree, place, key = tree[chosen], (*place, chosen), ""
    return place


def _is_variables(tree: Any) -> bool:
    """Returns whether a mapping holds `params`, and these are not all variables, as in some train states."""
    params = tree.get("params")
    return "params" in tree and not (isinstance(params, Mapping) and isinstance(params.get("params"), Mapping))


def _wrappers(tree: Mapping[Any, Any], levels: int = _LEVELS) -> list[str]:
    """Returns the entries of a tree that lead to variables, the usual names first."""
    leading = [
        name
        for name, value in tree.items()
        if isinstance(name, str)
        and isinstance(value, Mapping)
        and (_is_variables(value) or (levels and _wrappers(value, levels - 1)))
    ]
    known = [name for name in ("params", *_WRAPPERS) if name in leading]
    return known + [name for name in leading if name not in known and _is_variables(tree[name])]


def _read_msgpack(path: Path) -> Any:
    return serialization.msgpack_restore(path.read_bytes())


def _read_metadata(path: Path) -> Any:
    """Returns the tree of an Orbax checkpoint without its arrays; named items are its entries."""
    with _checkpointer() as checkpointer:
        if _has(path, _TREE):
            return _metadata(checkpointer, path)
        return {item.name: _metadata(checkpointer, item) for item in _items(path)}


def _read_orbax(path: Path, items: Iterable[str]) -> Any:
    """Returns the arrays of a checkpoint; of named items, only these."""
    with _checkpointer() as checkpointer:
        if _has(path, _TREE):
            return _restore(checkpointer, path)
        return {name: _restore(checkpointer, path / name) for name in items if _has(path / name, _TREE)}


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="teacher")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with quietly(), warnings.catch_warnings(action="ignore"):  # about devices missing here
        yield ocp.Checkpointer(handler, multiprocessing_options=alone)  # only the first process reads


def _metadata(checkpointer: ocp.Checkpointer, path: Path) -> Any:
    metadata = checkpointer.metadata(path.absolute()).item_metadata
    if metadata is None:
        raise ValueError("its metadata cannot be read")
    return metadata.tree


def _restore(checkpointer: ocp.Checkpointer, path: Path) -> Any:
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _metadata(checkpointer, path))
    return checkpointer.restore(path.absolute(), restore_args=as_numpy)


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(serialization.to_state_dict(tree))


def _check(given: Mapping[Any, Any], wanted: Mapping[Any, Any], path: Path) -> None:
    def shape(value: Any) -> str:
        return "absent" if value is None else str(list(np.shape(value)))

    different = [
        f"{'/'.join(key)} is {shape(given.get(key))} and should be {shape(wanted.get(key))}"
        for key in sorted(given.keys() | wanted.keys())
        if key not in given or key not in wanted or np.shape(given[key]) != tuple(wanted[key].shape)
    ]
    if different:
        raise UserError(
            f"{path} holds weights of another network: {'; '.join(different[:3])} ({len(different)} differ); "
            "check --config.teacher.module or arch"
        )
    for key, value in given.items():
        floats = [jnp.issubdtype(dtype, jnp.floating) for dtype in (np.asarray(value).dtype, wanted[key].dtype)]
        if floats == [False, True]:
            raise UserError(f"{path}: {'/'.join(key)} is {np.asarray(value).dtype}; save float32 weights")
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"{path}: {'/'.join(key)} holds NaN or infinite values; choose a sound checkpoint")


def _keys(tree: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, list(tree)[:5])) or "nothing"
