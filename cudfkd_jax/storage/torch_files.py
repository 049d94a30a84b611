"""Reading and writing of PyTorch weight files: the only module that imports safetensors, and torch to read.

Files are loaded with `weights_only=True`, so that no code from a file is executed.
"""

import argparse
import io
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from cudfkd_jax.runtime.errors import UserError, unknown
from cudfkd_jax.storage.files import check_is_itself, write_bytes

StateDict = dict[str, np.ndarray]  # float32 arrays by PyTorch name

# Keys under which training programs save a state dict, the first present one is taken.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "model_state", "model_dict", "weights", "params"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict"),
)
_COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm; does not affect the layer's output
# Tensors of other programs in a state dict: operation counts of thop, the counter of averaged models, losses,
# metrics, optimisers.
_BESIDE = re.compile(
    r"(.*\.)?(total_ops|total_params|n_averaged)"
    r"|(criterion|loss|loss_fn|metrics?|(train|val|valid|test)_(acc|accuracy|metrics?|loss)|optimi[sz]er)\..*"
)
_NORMALISATION = re.compile(r"(?:.*\.)?(mean|std)")  # buffers of a layer that normalises images
_REMEDY = "save the network's state_dict() with torch.save"


class TorchWeights(NamedTuple):
    """The contents of a file.

    Attributes:
        state_dict: the network's weights, without a prefix that all names share.
        notes: what was chosen or left out, for the user.
        normalisation: buffers called `mean` and `std`, as flat arrays.
    """

    state_dict: StateDict
    notes: tuple[str, ...]
    normalisation: dict[str, np.ndarray]


def read_weights(path: Path, key: str = "", own: Collection[str] = ()) -> TorchWeights:
    """Reads a `.safetensors` file or, under any other suffix, a file from `torch.save`.

    Tensors become float32 arrays (float16, bfloat16 and float64 are cast). `num_batches_tracked` and known tensors
    of other programs are left out.

    Args:
        path: the file.
        key: the entry of the file that holds the state dict; "" takes the first of `WRAPPERS` that is there.
        own: names that are the network's own whatever they look like, possibly after a prefix in the file.

    Raises:
        UserError: the file cannot be read, is not a state dict, contains code or non-finite values, lacks the key,
            or the package that reads it is not installed.
    """
    _check_kind(path)
    notes: list[str] = []

    def is_own(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[i:]) in own for i in range(len(parts)))

    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path, is_own)
    else:
        tensors = _read_torch(path, key, notes, is_own)
    foreign = [name for name in tensors if not is_own(name)]
    beside = [name for name in foreign if _BESIDE.fullmatch(name)]
    buffers = {name: match[1] for name in foreign if (match := _NORMALISATION.fullmatch(name))}
    weights = {name: value for name, value in tensors.items() if name not in (*beside, *buffers)}
    _note_beside(beside, notes)
    if not weights:
        raise UserError(f"{path} holds no weights; {_REMEDY}")
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values; choose a sound checkpoint")
    normalisation = {kind: tensors[name].reshape(-1) for name, kind in buffers.items()}
    return TorchWeights(_without_prefix(weights), tuple(notes), normalisation)


def read_state_dict(path: Path) -> StateDict:
    """Returns only the weights of `read_weights`."""
    return read_weights(path).state_dict


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
        write_bytes(path, safetensors.save(complete))
    else:
        torch, buffer = _torch(path), io.BytesIO()
        torch.save({name: torch.from_numpy(value.copy()) for name, value in complete.items()}, buffer)
        write_bytes(path, buffer.getvalue())


def _read_safetensors(path: Path, is_own: Callable[[str], bool]) -> StateDict:
    try:
        tensors = safetensors.load_file(path)
    except Exception as error:  # from Rust, or from NumPy for a dtype it lacks
        detail = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path} is damaged or no safetensors file ({detail}); copy or save it again") from error
    for name, value in tensors.items():
        known = name.endswith(_COUNTER) or _BESIDE.fullmatch(name) or is_own(name)
        if not (jnp.issubdtype(value.dtype, np.floating) or known):
            raise _not_real(path, name, value.dtype)
    return {name: value.astype(np.float32) for name, value in tensors.items() if not name.endswith(_COUNTER)}


def _read_torch(path: Path, key: str, notes: list[str], is_own: Callable[[str], bool]) -> StateDict:
    torch = _torch(path)
    if _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript file; write its weights with "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth') and give that file"
        )
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_harmless()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and its unpickler raise errors of many types
        raise UserError(f"{path} {_refusal(error)}") from error
    held = _unwrap(loaded, path, key, notes)
    tensors = {name: value for name, value in (held or {}).items() if isinstance(value, torch.Tensor)}
    if held is None or (held and not tensors):
        keys = f" with {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else ""
        raise UserError(f"{path} holds no state dict but a {type(loaded).__name__}{keys}; {_REMEDY}")
    _note_beside([str(name) for name in held if name not in tensors], notes)
    tensors = {str(name): value for name, value in tensors.items() if not str(name).endswith(_COUNTER)}
    for name, value in tensors.items():
        real = value.is_floating_point() or _BESIDE.fullmatch(name) or is_own(name)
        if value.layout != torch.strided or value.device.type != "cpu" or not real:
            raise _not_real(path, name, f"{value.dtype}, {value.layout}, {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} repeats values instead of holding them; save it .contiguous()")
    return {name: value.detach().to(torch.float32).numpy() for name, value in tensors.items()}


def _unwrap(loaded: Any, path: Path, key: str, notes: list[str]) -> Mapping[Any, Any] | None:
    if key and not (isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)):
        held = [str(name) for name, value in loaded.items() if isinstance(value, Mapping)]
        raise unknown("teacher.checkpoint_key", key, held)
    while isinstance(loaded, Mapping):
        found = [name for name in WRAPPERS if isinstance(loaded.get(name), Mapping)]
        if not found:
            return loaded
        chosen = key or found[0]
        if len(found) > 1:
            others = ", ".join(name for name in found if name != chosen)
            notes.append(
                f"read {chosen!r} of {path.name}, which also has {others} (--config.teacher.checkpoint_key)"
            )
        loaded, key = loaded[chosen], ""
    return None


def _note_beside(names: list[str], notes: list[str]) -> None:
    if names:
        notes.append(f"left out beside the weights: {', '.join(names[:3])}{' and more' * (len(names) > 3)}")


def _without_prefix(tensors: StateDict) -> StateDict:
    """Removes leading parts that all names share, such as `module.` of DataParallel or `1.` of a Sequential."""
    while len(first := {name.partition(".")[0] for name in tensors}) == 1 and all("." in name for name in tensors):
        prefix = f"{first.pop()}."
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _harmless() -> list[Any]:
    """Returns the types beside weights that files may hold: none of them runs code from the file."""
    scalar = np.float64(0).__reduce__()[0]
    scalars = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    return [
        argparse.Namespace,
        np.dtype,
        *scalars,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
    ]


def _check_kind(path: Path) -> None:
    """Rejects files that are no weights but often lie in their place."""
    if path.suffix == ".onnx":
        raise UserError(
            f"{path} is an ONNX file, a graph that need not hold the network's weights by name; "
            f"{_REMEDY} where it was exported, and give that file"
        )
    check_is_itself(path)
    try:
        legacy = path.suffix != ".safetensors" and tarfile.is_tarfile(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if legacy:
        raise UserError(f"{path} is in the tar form of PyTorch before 0.1.10; load it there, and {_REMEDY}")


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
