"""Translation between this package's weights and their PyTorch names, in both directions.

The networks' modules carry PyTorch's dotted names (see `models/layers.py`), so that a weight's path joined by
dots is its PyTorch name except for the last part, and the translation is mechanical:

    kernel [h, w, in, out]  weight [out, in, h, w]     convolution        mean  running_mean
    kernel [in, out]        weight [out, in]           linear layer       var   running_var
    scale                   weight                     BatchNorm          bias  bias
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from cudfkd_jax.models import MODELS, build_classifier, torch_module
from cudfkd_jax.models.torch_module import TorchModule
from cudfkd_jax.runtime.errors import UserError

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_STEMS, _HEADS = ("conv1.weight", "block0.0.weight"), ("linear.bias", "fc.bias", "classifier.bias")
# Parts of names in the release and in torchvision.
_SYNONYMS = {"shortcut": "downsample", "downsample": "shortcut", "linear": "fc", "fc": "linear"}
_LISTED = 3  # differences of each kind
_REPDISTILLER_POOLS_AT = 64  # pixels of height at which its VGG pools after the fourth block; ours from there on

Path_ = tuple[str, ...]  # of a weight in a tree of variables


class Network(NamedTuple):
    """The properties of a network inferred from its state dict."""

    arch: str
    num_classes: int


def to_variables(state_dict: Mapping[str, np.ndarray], expected: Any, where: Path) -> dict[str, Any]:
    """Converts a state dict to variables `{'params', 'batch_stats'}`.

    Args:
        state_dict: in the network's names; of ResNets also with the release's `shortcut` and `linear` for
            torchvision's `downsample` and `fc`, or the other way round.
        expected: a tree of arrays or `jax.ShapeDtypeStruct` with the expected structure and shapes.
        where: the file, for error messages.

    Raises:
        UserError: weights are missing, unexpected or of another shape; they are listed, each with the nearest name
            of the other side.
    """
    wanted = {_torch_name(path): path for path in _flat(expected)}
    given = _in_names_of(wanted, state_dict)
    _compare(_torch_shapes(expected), given, where, "check --config.teacher.arch")
    return traverse_util.unflatten_dict({path: _from_torch(path, given[name]) for name, path in wanted.items()})


def to_module_variables(
    state_dict: Mapping[str, np.ndarray], module: TorchModule, expected: Any, where: Path
) -> dict[str, Any]:
    """Converts a state dict of a PyTorch module's own names to variables `{'params', 'batch_stats'}`.

    Args:
        state_dict: without a prefix that all its names share; integer buffers are ignored for the module's own.
        module: the wrapped module.
        expected: the tree of shapes that its `init` returns.
        where: the file, for error messages.

    Raises:
        UserError: as `to_variables`.
    """
    weights, others = torch_module.names(module)
    prefix = _shared_prefix((*weights, *others))
    given = {prefix + name: value for name, value in state_dict.items() if prefix + name not in others}
    _compare(torch_module.shapes(weights, expected), given, where, "give the weights of --config.teacher.module")
    return torch_module.to_variables(given, expected)


def _shared_prefix(names: Collection[str]) -> str:
    """Returns the leading parts that all names share, such as `net.`, as `torch_files` takes them off."""
    shared = ""
    while len(first := {name.removeprefix(shared).partition(".")[0] for name in names}) == 1:
        longer = f"{shared}{first.pop()}."
        if not all(name.startswith(longer) for name in names):
            break
        shared = longer
    return shared


def _compare(
    shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, np.ndarray], where: Path, remedy: str
) -> None:
    missing = [name for name in shapes if name not in given]
    unexpected = [name for name in given if name not in shapes]
    reshaped = [
        f"{name} is {list(given[name].shape)} and should be {list(shape)}"
        for name, shape in shapes.items()
        if name in given and given[name].shape != shape
    ]
    kinds = {
        "missing": [f"{name}{_nearest(name, unexpected)}" for name in missing],
        "unexpected": [f"{name}{_nearest(name, missing)}" for name in unexpected],
        "of another shape": reshaped,
    }
    if any(kinds.values()):
        differences = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)
        raise UserError(f"{where} holds weights of another network; {differences}; {remedy}")


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts the `{'params', 'batch_stats'}` of one of this package's networks to the release's state dict."""
    return {
        _torch_name(path): np.ascontiguousarray(_to_torch(path, np.asarray(leaf)))
        for path, leaf in _flat(variables).items()
    }


def infer(state_dict: Mapping[str, np.ndarray]) -> Network | None:
    """Infers the network from its weights' names and shapes; None if this package has no such network."""
    stem = next((state_dict[name] for name in _STEMS if name in state_dict), None)
    head = next((state_dict[name] for name in _HEADS if name in state_dict), None)
    if stem is None or stem.ndim != 4 or head is None or head.ndim != 1 or not len(head):
        return None
    image = jax.ShapeDtypeStruct((1, 32, 32, stem.shape[1]), np.float32)  # no weight depends on height or width
    for arch in _candidates(state_dict, stem.shape[2:]):
        module = build_classifier(arch, len(head))
        expected = jax.eval_shape(lambda x, m=module: m.init(jax.random.key(0), x, train=False), image)
        shapes = _torch_shapes(expected)
        given = _in_names_of(shapes, state_dict)
        if {name: value.shape for name, value in given.items()} == shapes:
            return Network(arch, len(head))
    return None


def caution(arch: str, image_shape: tuple[int, int, int]) -> str | None:
    """Returns a sentence where the same weights compute something else in the networks with these names."""
    if not arch.startswith("vgg") or image_shape[0] <= _REPDISTILLER_POOLS_AT:
        return None
    return (
        f"{arch} pools images {image_shape[0]} high after its fourth block, and RepDistiller's VGG only those "
        f"{_REPDISTILLER_POOLS_AT} high: with the same weights the logits differ"
    )


def _candidates(state_dict: Mapping[str, np.ndarray], stem: tuple[int, ...]) -> list[str]:
    blocks = [name for name in state_dict if re.fullmatch(r"block1\.layer\.\d+\.conv1\.weight", name)]
    if blocks:
        width = state_dict[blocks[0]].shape[:1] or (16,)
        return [f"wrn{6 * len(blocks) + 4}_{max(1, width[0] // 16)}"]
    family = "vgg" if "classifier.bias" in state_dict else "resnet"
    return [arch for arch in MODELS if arch.startswith(family) and arch.endswith("_imagenet") == (stem == (7, 7))]


def _flat(tree: Any) -> dict[Path_, Any]:
    return traverse_util.flatten_dict(dict(tree))


def _torch_name(path: Path_) -> str:
    """Converts `('params', 'layer1.0', 'conv1', 'kernel')` to `layer1.0.conv1.weight`."""
    return ".".join((*path[1:-1], _LEAVES[path[-1]]))


def _torch_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        _torch_name(path): _to_torch(path, np.broadcast_to(0.0, leaf.shape)).shape
        for path, leaf in _flat(tree).items()
    }


def _from_torch(path: Path_, value: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return np.ascontiguousarray(value)


def _to_torch(path: Path_, value: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value


def _in_names_of(wanted: Iterable[str], state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Exchanges torchvision's `downsample` and `fc` and the release's `shortcut` and `linear` where wanted."""
    wanted, renamed = set(wanted), {}
    for name, value in state_dict.items():
        new = ".".join(_SYNONYMS.get(part, part) for part in name.split("."))
        fits = name not in wanted and new in wanted and new not in state_dict
        renamed[new if fits else name] = value
    return renamed


def _nearest(name: str, among: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, among, n=1)
    return f" (nearest: {near[0]})" if near else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
