"""Reading and writing of PyTorch weight files: the only module that imports torch or safetensors.

Files are loaded with `weights_only=True`, so that no code from a file is executed.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.files import write_bytes

StateDict = dict[str, np.ndarray]  # float32 arrays by PyTorch name

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
_COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm; does not affect the layer's output
_REMEDY = "save the network's state_dict() with torch.save"


def read_state_dict(path: Path) -> StateDict:
    """Reads a `.safetensors` file or, under any other suffix, a file from `torch.save`.

    Returns:
        The tensors as float32 arrays (float16, bfloat16 and float64 are cast), without their wrapper
        (`{'state_dict': ...}` and the like), a prefix common to all names (DataParallel's `module.`) and
        `num_batches_tracked`.

    Raises:
        UserError: the file cannot be read, is not a state dict, contains code or non-finite values, or the package
            that reads it is not installed.
    """
    if path.suffix == ".onnx":
        raise UserError(
            f"{path} is an ONNX file, a graph that need not hold the network's weights by name; "
            f"{_REMEDY} where it was exported, and give that file"
        )
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not tensors:
        raise UserError(f"{path} holds no weights; {_REMEDY}")
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values; choose a sound checkpoint")
    return _without_prefixes(tensors)


def write_state_dict(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict as `.safetensors` or with `torch.save`, with a zero counter for each BatchNorm.

    The counters make the names exactly those of PyTorch's `state_dict()`.

    Raises:
        UserError: the package that writes the format is not installed.
    """
    complete = dict(state_dict)
    for name in state_dict:
        if name.endswith(".running_var"):
            complete[name.removesuffix("running_var") + _COUNTER] = np.zeros((), np.int64)
    if path.suffix == ".safetensors":
        write_bytes(path, _safetensors(path).save(complete))
    else:
        torch, buffer = _torch(path), io.BytesIO()
        torch.save({name: torch.from_numpy(value.copy()) for name, value in complete.items()}, buffer)
        write_bytes(path, buffer.getvalue())


def _read_safetensors(path: Path) -> StateDict:
    library = _safetensors(path)
    try:
        tensors = library.load_file(path)
    except Exception as error:  # from Rust, or from NumPy for a dtype it lacks
        detail = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path} is damaged or no safetensors file ({detail}); copy or save it again") from error
    for name, value in tensors.items():
        if not (jnp.issubdtype(value.dtype, np.floating) or name.endswith(_COUNTER)):
            raise _not_real(path, name, value.dtype)
    return {name: value.astype(np.float32) for name, value in tensors.items() if not name.endswith(_COUNTER)}


def _read_torch(path: Path) -> StateDict:
    torch = _torch(path)
    if _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript file; write its weights with "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth') and give that file"
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and its unpickler raise errors of many types
        raise UserError(f"{path} {_refusal(error)}") from error
    tensors = _unwrap(loaded)
    if tensors is None or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        keys = f" with {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else ""
        raise UserError(f"{path} holds no state dict but a {type(loaded).__name__}{keys}; {_REMEDY}")
    tensors = {str(name): value for name, value in tensors.items() if not str(name).endswith(_COUNTER)}
    for name, value in tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu" or not value.is_floating_point():
            raise _not_real(path, name, f"{value.dtype}, {value.layout}, {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} repeats values instead of holding them; save it .contiguous()")
    return {name: value.detach().to(torch.float32).numpy() for name, value in tensors.items()}


def _unwrap(loaded: Any) -> Mapping[Any, Any] | None:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            return loaded
        loaded = inner
    return None


def _without_prefixes(tensors: StateDict) -> StateDict:
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # not an archive, or a damaged one, which torch.load reports
        return False


def _refusal(error: Exception) -> str:
    """Describes why torch rejected a file; torch's own message suggests executing the file's code."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}; check the path"
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return f"holds {found[1]} beside weights, and loading that could run code, so it was refused; {_REMEDY}"
    return f"is truncated, damaged or no PyTorch file; copy it again, or {_REMEDY}"


def _not_real(path: Path, name: str, kind: Any) -> UserError:
    return UserError(f"{path}: {name} is no array of real numbers ({kind}); save float32 weights")


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch; pip install 'cudfkd_jax[torch]'") from error
    return torch


def _safetensors(path: Path) -> Any:
    try:
        from safetensors import numpy
    except ImportError as error:
        raise UserError(f"{path} needs safetensors; pip install 'cudfkd_jax[safetensors]'") from error
    return numpy
