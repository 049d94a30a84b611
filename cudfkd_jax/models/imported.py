"""Networks by import path: `package.module:Name`, a linen class or a function that returns a module.

`nnx:package.module:Name` is the same for modules of Flax NNX, `torch:package.module:Name` a PyTorch module.
"""

import functools
import inspect
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from cudfkd_jax.models import bridged, torch_module
from cudfkd_jax.models.torch_module import TorchModule
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.runtime.imports import TORCH, import_object, imported

NNX = "nnx:"  # begins the paths of NNX modules


def import_network(path: str) -> nn.Module:
    """Imports `package.module:Name`: a linen module, or a class or function called without arguments.

    After `nnx:` it is an NNX module, or a class or function called with `rngs` if it takes them.

    Raises:
        UserError: the name does not exist, needs other arguments, or does not yield a module.
    """
    if path.startswith(NNX):
        found = import_object(path.removeprefix(NNX))
        if _is_linen(found):
            raise UserError(f"{path} is of Flax linen; name it {path.removeprefix(NNX)}")
        return as_linen(found, path)
    found = import_object(path)
    if isinstance(found, nn.Module):
        return as_linen(found, path)
    if is_nnx(found):
        raise UserError(f"{path} is of Flax NNX; name it {NNX}{path}")
    made = _make(found, path) if callable(found) else found
    if is_nnx(made):
        raise UserError(f"{path} gives a module of Flax NNX; name it {NNX}{path}")
    if not isinstance(made, nn.Module):
        remedy = f"write {TORCH}{path}" if torch_module.is_network(made) else "name a linen class"
        raise UserError(f"{path} gives a {type(made).__name__}, not a flax.linen.Module; {remedy}")
    return as_linen(made, path)


def is_nnx(network: Any) -> bool:
    """Returns whether an object is an NNX module, or a class of them."""
    nnx = imported("flax.nnx")
    kind = network if isinstance(network, type) else type(network)
    return nnx is not None and issubclass(kind, nnx.Module)


def _is_linen(network: Any) -> bool:
    return issubclass(network if isinstance(network, type) else type(network), nn.Module)


def as_linen(network: Any, name: str) -> nn.Module:
    """Returns a linen module that computes what a network computes.

    Args:
        network: a linen module; an NNX module, whose weights are those before training; or a class or function
            that returns one, called with `rngs` if it takes them.
        name: what messages call it.

    Raises:
        UserError: the function wants other arguments, fails, or returns something else.
    """
    if isinstance(network, nn.Module) and not bridged.is_to_linen(network):
        return network
    from cudfkd_jax.models import nnx_module

    if bridged.is_to_linen(network):
        return nnx_module.from_to_linen(network)
    if is_nnx(network) and not isinstance(network, type):
        return nnx_module.from_module(network)
    if not callable(network):
        raise UserError(f"{name} gives a {type(network).__name__}, not a flax.nnx.Module; name an NNX class")
    return nnx_module.from_factory(network, name)


def plain_variables(network: Any, variables: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables of a module as `as_linen(module)` takes them."""
    if not bridged.is_to_linen(network):
        return variables
    from cudfkd_jax.models import nnx_module

    return nnx_module.plain(variables)


def path_of(network: Any) -> str:
    """Returns the import path of a linen module's class, or of an NNX module's class or function."""
    if isinstance(network, nn.Module) and not bridged.is_to_linen(network):
        kind, prefix = type(network), ""
    else:
        function = network.nnx_class if isinstance(network, nn.Module) else network
        kind, prefix = (function if hasattr(function, "__qualname__") else type(function)), NNX
    return f"{prefix}{kind.__module__}:{kind.__qualname__}"


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
    if wanted == ["rngs"]:
        raise UserError(f"{path} wants rngs, as modules of Flax NNX do; name such a module {NNX}{path}")
    if wanted:
        raise UserError(
            f"{path} wants arguments ({', '.join(wanted)}); name a function without arguments that returns the "
            "module, or give them defaults"
        )
    try:
        return factory()
    except Exception as error:  # user code
        raise UserError(f"{path}() fails: {type(error).__name__}: {' '.join(str(error).split())}") from error
