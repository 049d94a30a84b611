"""Networks by import path: `package.module:Name`, a linen class or a function that returns a module."""

import difflib
import importlib
import inspect
from typing import Any

import flax.linen as nn

from cudfkd_jax.runtime.errors import UserError


def is_import_path(name: str) -> bool:
    """Returns whether a network's name is an import path."""
    return ":" in name


def import_network(path: str) -> nn.Module:
    """Imports `package.module:Name`: a linen module, or a class or function called without arguments.

    Raises:
        UserError: the name does not exist, needs arguments, or does not yield a linen module.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # user code may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{path}: cannot import {module_name!r} ({reason}); write "
            "package.module:Name, and start where the package is installed or in the folder that holds it"
        ) from error
    if not hasattr(found, name):
        near = difflib.get_close_matches(name, dir(found), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"{path}: {module_name} holds no {name!r}{hint}; check the name")
    found = getattr(found, name)
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
