"""Weights from other Flax programs: `{'params', 'batch_stats'}` in msgpack files and Orbax folders."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.orbax import quietly

SUFFIXES = (".msgpack", ".flax")

_WRAPPERS = ("state", "model", "variables")
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")  # every Orbax folder has one of them


def find_orbax(folder: Path) -> Path | None:
    """Returns the folder if it is an Orbax checkpoint, or the newest step if it is a checkpoint manager's."""
    steps = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name), reverse=True)
    places = (place for path in (folder, *steps) for place in (path / "default", path))
    return next((place for place in places if any((place / name).exists() for name in _ORBAX)), None)


def read_variables(path: Path, expected: Any) -> dict[str, Any]:
    """Reads `{'params', 'batch_stats'}` from a msgpack file or an Orbax folder.

    Args:
        path: a file from `flax.serialization`, or a folder from `find_orbax`. Anything beside `params` and
            `batch_stats` (such as an optimiser's state) is ignored.
        expected: a tree of arrays or `jax.ShapeDtypeStruct` with the expected structure and shapes.

    Returns:
        NumPy arrays with the dtypes of `expected`: float16, bfloat16 and float64 are cast.

    Raises:
        UserError: the file cannot be read, or contains no weights, another network's weights or non-finite values.
    """
    read = _read_msgpack if path.is_file() else _read_orbax
    try:
        tree = read(path)
    except Exception as error:  # of msgpack, Orbax or TensorStore
        detail = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(f"{path} is damaged or no checkpoint of Flax ({detail}); copy or save it again") from error
    while isinstance(tree, Mapping) and "params" not in tree:
        inner = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping)), None)
        if inner is None:
            raise UserError(f"{path} holds no 'params' but {_keys(tree)}; save {{'params', 'batch_stats'}}")
        tree = inner
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}; save {{'params', 'batch_stats'}}")
    given = _flat({name: tree.get(name) or {} for name in ("params", "batch_stats")})
    wanted = _flat(expected)
    _check(given, wanted, path)
    arrays = {key: np.asarray(given[key]).astype(leaf.dtype) for key, leaf in wanted.items()}
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(arrays)


def _read_msgpack(path: Path) -> Any:
    return serialization.msgpack_restore(path.read_bytes())


def _read_orbax(path: Path) -> Any:
    alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="teacher")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)  # only the first process reads
    with quietly(), warnings.catch_warnings(action="ignore"):  # about devices missing here
        metadata = checkpointer.metadata(path.absolute()).item_metadata
        if metadata is None:
            raise ValueError("its metadata cannot be read")
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
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
        if not jnp.issubdtype(np.asarray(value).dtype, np.floating):
            raise UserError(f"{path}: {'/'.join(key)} is {np.asarray(value).dtype}; save float32 weights")
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"{path}: {'/'.join(key)} holds NaN or infinite values; choose a sound checkpoint")


def _keys(tree: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, list(tree)[:5])) or "nothing"
