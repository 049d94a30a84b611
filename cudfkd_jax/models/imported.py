"""Networks by import path: `package.module:Name`, a linen class or a function that returns a module."""

import inspect
from typing import Any

import flax.linen as nn

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.runtime.imports import import_object


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
        raise UserError(f"{path} gives a {type(made).__name__}, not a flax.linen.Module; name a linen class")
    return made


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
