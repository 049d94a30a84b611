"""Networks by import path: `package.module:Name`, a linen class or a function that returns a module.

`torch:package.module:Name` is a PyTorch module instead.
"""

import functools
import inspect
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from cudfkd_jax.models import torch_module
from cudfkd_jax.models.torch_module import TorchModule
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.runtime.imports import TORCH, import_object


def import_network(path: str) -> nn.Module:
    """Imports `package.module:Name`: a linen module, or a class or function called without arguments.

    Raises:
        UserError: the name does not exist, needs arguments, or does not yield a linen module.
    """
    found = import_object(path)
    if isinstance(found, nn.Module):
        return found
    made = _make(found, path) if callable(found) else found
    if not isinstance(made, nn.Module):
        remedy = f"write {TORCH}{path}" if torch_module.is_network(made) else "name a linen class"
        raise UserError(f"{path} gives a {type(made).__name__}, not a flax.linen.Module; {remedy}")
    return made


def import_torch_network(path: str, num_classes: int, dtype: DTypeLike | None = None) -> TorchModule:
    """Imports `torch:package.module:Name`: a PyTorch module, or a class or function called without arguments.

    Raises:
        UserError: as `import_network`; torchax is not installed, or the module cannot be frozen.
    """
    return torch_module.wrap(_torch_network(path), num_classes, path, dtype)


@functools.cache  # one network per path: a function may draw its weights at random
def _torch_network(path: str) -> Any:
    found = import_object(path.removeprefix(TORCH))
    return _make(found, path) if callable(found) and not torch_module.is_network(found) else found


def _make(factory: Any, path: str) -> Any:
    wanted = [
        p.name
        for p in inspect.signature(factory).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if wanted:
        raise UserError(
            f"{path} wants arguments ({', '.join(wanted)}); name a function without arguments that returns the "
            "module, or give them defaults"
        )
    try:
        return factory()
    except Exception as error:  # user code
        raise UserError(f"{path}() fails: {type(error).__name__}: {' '.join(str(error).split())}") from error
