"""Trained networks on disk: `weights.msgpack` (Flax) and its description `net.json`.

Equal weights and descriptions give identical bytes, and loading executes no code.

Two files cannot be replaced in one operation, so new ones are written beside the old ones. Renaming the
description into place commits both: it contains the digest of its weights, and a reader finds these under either
name.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization, traverse_util
from jax.typing import DTypeLike

from cudfkd_jax.models import build_classifier
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.files import read_object, write_bytes, write_json

WEIGHTS, DESCRIPTION = "weights.msgpack", "net.json"
_NEXT_WEIGHTS, _NEXT_DESCRIPTION = "next.msgpack", "next.json"


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A description of a trained classifier.

    Attributes:
        arch: its name in `cudfkd_jax.models`, or the import path or name of its linen module.
        num_classes: number of logits.
        image_shape: `[H, W, C]` of its inputs.
        mean, std: per channel, for images in [0, 1]; inputs are normalised as (x − mean) / std.
        metrics: its metrics, under the names of `summary.json`.
        train_argument: the argument that sets its mode; see `capture.mode_arguments`.
    """

    arch: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics: dict[str, Any]
    train_argument: str = ""

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if not len(self.mean) == len(self.std) == self.image_shape[2] or not all(map(math.isfinite, numbers)):
            raise ValueError(f"mean={self.mean} and std={self.std} must hold {self.image_shape[2]} numbers each")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be greater than 0")

    def classifier(self, dtype: DTypeLike | None = None) -> Classifier:
        """Builds the network; `dtype` and errors as for `models.build_classifier`."""
        module = build_classifier(self.arch, self.num_classes, dtype)
        return Classifier(module, self.mean, self.std, self.train_argument)

    def abstract_variables(self) -> Any:
        """Returns the shapes and dtypes of the network's variables, as a tree of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(lambda: self.classifier().init(jax.random.key(0), self.image_shape))


class Trained(NamedTuple):
    """A trained classifier in memory; the variables are nested dictionaries of NumPy arrays."""

    net: NetworkSpec
    variables: dict[str, Any]
    sha256: str


def save_net(folder: Path, net: NetworkSpec, variables: Any) -> None:
    """Writes a network atomically: a concurrent reader, or one after a crash, finds the old or the new one."""
    stage_net(folder, net, variables)
    commit_net(folder)


def stage_net(folder: Path, net: NetworkSpec, variables: Any) -> None:
    """Writes a network beside the current one of its folder, which stays valid until `commit_net`."""
    (folder / _NEXT_DESCRIPTION).unlink(missing_ok=True)
    _end_commit(folder)
    content = _serialise(variables)
    write_bytes(folder / _NEXT_WEIGHTS, content)
    description = {**dataclasses.asdict(net), "sha256": _sha256(content)}
    write_json(folder / _NEXT_DESCRIPTION, description)


def commit_net(folder: Path) -> None:
    """Replaces the folder's network with the one that `stage_net` wrote; does nothing without one."""
    if (folder / _NEXT_DESCRIPTION).exists():
        (folder / _NEXT_DESCRIPTION).replace(folder / DESCRIPTION)
        (folder / _NEXT_WEIGHTS).replace(folder / WEIGHTS)


def settle_net(folder: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Completes or discards a commit that a crash interrupted.

    Args:
        folder: a network's folder, possibly empty.
        wanted: whether to commit a staged network with these `metrics`; otherwise it is removed.
    """
    staged = folder / _NEXT_DESCRIPTION
    if staged.exists():
        metrics = _read_description(staged).get("metrics")
        if isinstance(metrics, dict) and wanted(metrics):
            commit_net(folder)
        staged.unlink(missing_ok=True)
    _end_commit(folder)


def _end_commit(folder: Path) -> None:
    """Moves new weights into place if their description already is, and removes others."""
    path = folder / _NEXT_WEIGHTS
    if not path.exists():
        return
    if _sha256(path.read_bytes()) == _read_description(folder / DESCRIPTION).get("sha256"):
        path.replace(folder / WEIGHTS)
    else:
        path.unlink()


def _read_description(path: Path) -> dict[str, Any]:
    """Returns a file's JSON object, empty if the file is missing or damaged."""
    try:
        return read_object(path, "")
    except UserError:
        return {}


def digest(variables: Any) -> str:
    """Computes the SHA-256 of the bytes that `save_net` would write for these variables."""
    return _sha256(_serialise(variables))


def load_net(folder: Path) -> Trained:
    """Reads a network that `save_net` wrote.

    Raises:
        UserError: the folder contains no network, or a damaged one.
    """
    try:
        description, content = _read_pair(folder)
        sha256 = description.pop("sha256")
        net = network_spec(description)
    except OSError as error:
        raise UserError(f"no network in {folder}: {error.strerror} ({error.filename})") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{folder / DESCRIPTION} is damaged; restore it or train the network again") from error
    if _sha256(content) != sha256:
        raise UserError(f"{folder / WEIGHTS} is damaged (its SHA-256 differs); restore it or train again")
    try:
        variables = serialization.msgpack_restore(content)
        if not isinstance(variables, dict) or not _holds_arrays(variables):
            raise ValueError("not nested dictionaries of arrays")
    except Exception as error:  # msgpack, Flax and NumPy raise errors of many types
        raise UserError(f"{folder / WEIGHTS} does not hold a network's weights; restore it") from error
    return Trained(net, variables, sha256)


def pack(trained: Trained) -> dict[str, Any]:
    """Converts a network to dictionaries, lists, numbers, strings and arrays; `unpack` inverts it."""
    net = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(trained.net).items()}
    return {"net": net, "variables": trained.variables, "sha256": trained.sha256}


def unpack(packed: dict[str, Any]) -> Trained:
    """Inverts `pack`."""
    return Trained(network_spec(packed["net"]), packed["variables"], packed["sha256"])


def check_weights(variables: Any, expected: Any, where: Path) -> None:
    """Compares variables with a tree of `jax.ShapeDtypeStruct`.

    Raises:
        UserError: a weight is missing, unexpected or of another dtype or shape; the first few are named.
    """
    found, wanted = (
        {
            "/".join(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in traverse_util.flatten_dict(tree).items()
        }
        for tree in (variables, expected)
    )
    differences = [
        f"{name} is {found.get(name, 'missing')} and should be {wanted.get(name, 'absent')}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise UserError(
            f"the weights in {where} are not those of the network that its {DESCRIPTION} names: "
            f"{'; '.join(differences[:3])} ({len(differences)} differ); restore the folder"
        )


def network_spec(description: dict[str, Any]) -> NetworkSpec:
    """Returns the network that a description in JSON, whose tuples are lists, names by its fields."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    return NetworkSpec(**fields)


def _read_pair(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Returns the description and the weights that match its digest, or the file in their place if none match."""
    for _ in range(2):  # retry once if a run has replaced both in between
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        for path in (folder / _NEXT_WEIGHTS, folder / WEIGHTS):
            content = path.read_bytes() if path.exists() else b""
            if _sha256(content) == description["sha256"]:
                return description, content
    return description, (folder / WEIGHTS).read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _serialise(variables: Any) -> bytes:
    return serialization.msgpack_serialize(jax.tree.map(np.asarray, variables))


def _holds_arrays(tree: Any) -> bool:
    if isinstance(tree, dict):
        return all(isinstance(name, str) and _holds_arrays(child) for name, child in tree.items())
    return isinstance(tree, np.ndarray)
