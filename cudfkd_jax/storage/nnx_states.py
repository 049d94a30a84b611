"""Variables of Flax NNX in the trees that programs save, sorted into linen's collections.

`nnx.state(model)` nests all variables by the attributes of the module, whatever their kind, each under "value" or,
as `nnx.to_pure_dict` gives them, without. Random streams are in it, too, and are left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import serialization, traverse_util

_VALUES = ("value", "raw_value")
_LEVELS = 3  # of items and entries around a state, at most
_STREAMS = ("count", "key")  # the variables of a random stream


def find(tree: Any, expected: Any, key: str = "") -> tuple[str, ...] | None:
    """Returns the keys that lead to a state with variables of a module; None if there are none.

    Args:
        tree: nested mappings; the leaves are not looked at.
        expected: the module's variables `{collection: nested}`.
        key: the item or entry to look in; "" looks in all.
    """
    wanted = {path[1:] for path in _flat(expected)}
    return _find(tree, wanted, key, _LEVELS)


def _find(tree: Any, wanted: set[tuple[str, ...]], key: str, levels: int) -> tuple[str, ...] | None:
    if not isinstance(tree, Mapping):
        return None
    if not key and wanted & {_bare(path) for path in _flat(tree)}:
        return ()
    for name in [key] if key else list(tree):
        found = _find(tree.get(name), wanted, "", levels - 1) if levels else None
        if found is not None:
            return (name, *found)
    return None


def collections(state: Any, expected: Any) -> dict[str, Any]:
    """Sorts a state into the collections of `expected`; what is in none of them goes to "params"."""
    places = {path[1:]: path[0] for path in _flat(expected)}
    flat = {}
    for path, leaf in _flat(state).items():
        bare = _bare(path)
        if bare in places or not _is_stream(bare, leaf):
            flat[(places.get(bare, "params"), *bare)] = leaf
    return traverse_util.unflatten_dict(flat)


def without_values(tree: Any, expected: Any) -> Any:
    """Returns variables by collection, each of which may be under "value"."""
    wanted = _flat(expected)
    flat = {(path if path in wanted else _bare(path)): leaf for path, leaf in _flat(tree).items()}
    return traverse_util.unflatten_dict(flat)


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    flat = traverse_util.flatten_dict(serialization.to_state_dict(tree))
    return {tuple(map(str, path)): leaf for path, leaf in flat.items()}


def _bare(path: tuple[str, ...]) -> tuple[str, ...]:
    return path[:-1] if path[-1] in _VALUES else path


def _is_stream(path: tuple[str, ...], leaf: Any) -> bool:
    return path[-1] in _STREAMS and not np.issubdtype(getattr(leaf, "dtype", np.float32), np.floating)
