"""Objects by import path: `package.module:name`."""

import difflib
import importlib
import sys
from typing import Any

from cudfkd_jax.runtime.errors import UserError

TORCH = "torch:"  # before the path of a PyTorch network


def is_import_path(name: str) -> bool:
    """Returns whether a name is an import path."""
    return ":" in name


def is_torch_path(name: str) -> bool:
    """Returns whether a name is the import path of a PyTorch network, `torch:package.module:name`."""
    return name.startswith(TORCH)


def imported(name: str) -> Any:
    """Returns a module that somebody has imported already; None if nobody has."""
    return sys.modules.get(name)


def import_object(path: str) -> Any:
    """Imports `package.module:name`.

    Raises:
        UserError: the module cannot be imported or has no such name.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{path}: cannot import {module_name!r} ({reason}); write "
            "package.module:Name, and start where the package is installed or in the folder that holds it"
        ) from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"{path}: {module_name} holds no {name!r}{hint}; check the name")
    return getattr(module, name)
