"""The mode of NNX modules, also of those that `nnx.bridge.to_linen` has put into a linen module.

NNX keeps a module's mode in attributes, which linen does not know: a part from `to_linen` computes in the mode in
which its constructor leaves it, with NNX's defaults that of training.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import traverse_util

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.runtime.imports import imported

_FLAGS = ("train", "training")  # attributes of users' own modules


def is_to_linen(module: Any) -> bool:
    """Returns whether a module comes from `nnx.bridge.to_linen`."""
    nnx = imported("flax.nnx")  # which takes a moment to import, and whoever has such a module has it
    return nnx is not None and isinstance(module, nnx.bridge.ToLinen)


def set_mode(module: Any, *, train: bool, axis_name: str | None) -> None:
    """Sets the mode of an NNX module and its parts, and the axis over which BatchNorm shares its statistics."""
    from flax import nnx

    name = "train" if train else "eval"
    chosen = getattr(module, name)  # perhaps the user's own, or a flag
    (chosen if callable(chosen) else getattr(nnx.Module, name).__get__(module))()
    for _, layer in nnx.iter_modules(module):
        for flag in _FLAGS:
            if isinstance(vars(layer).get(flag), bool):
                setattr(layer, flag, train)
        if isinstance(layer, nnx.BatchNorm):
            layer.axis_name = axis_name


def set_mode_inside(module: nn.Module, *, train: bool, axis_name: str | None) -> None:
    """Does the same for a bound module from `nnx.bridge.to_linen`, and nothing for others.

    Raises:
        UserError: it has a list of modules, whose variables linen then names by numbers.
    """
    if not is_to_linen(module):
        return
    bridge: Any = module
    if isinstance(bridge.nnx_class, _InMode):  # called before
        return
    numbered = [path for path in traverse_util.flatten_dict(module.variables) if not all(map(_is_name, path))]
    if numbered:
        raise UserError(
            f"{bridge.nnx_class.__name__} has lists of modules ({'/'.join(map(str, numbered[0]))}), which "
            "nnx.bridge.to_linen names by numbers and files cannot hold; give the NNX module itself, without "
            "to_linen"
        )
    object.__setattr__(module, "nnx_class", _InMode(bridge.nnx_class, train, axis_name))


def _is_name(key: Any) -> bool:
    return isinstance(key, str)


@dataclasses.dataclass(frozen=True)
class _InMode:
    """Makes an NNX module, as `make` does, and sets its mode."""

    make: Callable[..., Any]
    train: bool
    axis_name: str | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.make(*args, **kwargs)
        set_mode(module, train=self.train, axis_name=self.axis_name)
        return module
