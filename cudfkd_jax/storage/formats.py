"""The export formats of a trained network: writing each, and checking the file by reading it back.

The weight formats contain the bare network, the StableHLO program also the normalisation of its inputs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax import export

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import torch_files, torch_names
from cudfkd_jax.storage.files import write_bytes
from cudfkd_jax.storage.weights import Trained

PYTORCH = ("safetensors", "torch")  # the formats under PyTorch's names
PLATFORMS = ("cpu", "cuda", "tpu")  # of the StableHLO program

_BATCH_SIZES = (1, 3, 8)
_TOLERANCE = 1e-4  # of the largest |logit|
_NORMALISED = "(images - mean) / std of images in [0, 1], float32"


class Format(NamedTuple):
    """An export format.

    Attributes:
        suffix: suffix of the exported file; Orbax writes a folder.
        input: a description of the network's input.
        package: the distribution that writes the format.
        write: writes a network to a path that does not exist.
        check: reads the file back and raises any exception unless it contains that network.
    """

    suffix: str
    input: str
    package: str
    write: Callable[[Path, Trained], None]
    check: Callable[[Path, Trained], None]


def _check_equal(found: Mapping[str, Any], trained: Trained) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, trained.variables)


def _write_state_dict(path: Path, trained: Trained) -> None:
    torch_files.write_state_dict(path, torch_names.to_state_dict(trained.variables))


def _check_state_dict(path: Path, trained: Trained) -> None:
    _check_equal(
        torch_names.to_variables(torch_files.read_state_dict(path), trained.net.abstract_variables(), path),
        trained,
    )


def _write_orbax(path: Path, trained: Trained) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), trained.variables)


def _check_orbax(path: Path, trained: Trained) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(path.absolute(), trained.net.abstract_variables())
    _check_equal(jax.tree.map(np.asarray, found), trained)


def _write_stablehlo(path: Path, trained: Trained) -> None:
    shape = export.symbolic_shape(", ".join(["b", *map(str, trained.net.image_shape)]))
    logits = jax.jit(lambda images: trained.net.classifier()(trained.variables, images).value)
    program = export.export(logits, platforms=PLATFORMS)
    exported = program(jax.ShapeDtypeStruct(shape, np.float32))
    try:
        content = exported.serialize()
    except ImportError as error:
        raise UserError("--format=stablehlo needs flatbuffers; pip install 'cudfkd_jax[stablehlo]'") from error
    write_bytes(path, bytes(content))


def _check_stablehlo(path: Path, trained: Trained) -> None:
    exported = export.deserialize(bytearray(path.read_bytes()))
    network = jax.jit(lambda variables, images: trained.net.classifier()(variables, images).value)
    for batch_size in _BATCH_SIZES:
        shape = (batch_size, *trained.net.image_shape)
        images = np.random.default_rng(batch_size).random(shape, np.float32)
        wanted, found = np.asarray(network(trained.variables, images)), np.asarray(exported.call(images))
        largest = np.abs(wanted).max()
        if found.shape != wanted.shape or not np.abs(found - wanted).max() <= _TOLERANCE * largest:
            raise ValueError(f"other logits of {batch_size} images")


FORMATS: Mapping[str, Format] = {
    "orbax": Format("", f"{_NORMALISED} [b, H, W, C]", "orbax-checkpoint", _write_orbax, _check_orbax),
    "safetensors": Format(
        ".safetensors", f"{_NORMALISED} [b, C, H, W]", "safetensors", _write_state_dict, _check_state_dict
    ),
    "torch": Format(".pth", f"{_NORMALISED} [b, C, H, W]", "torch", _write_state_dict, _check_state_dict),
    "stablehlo": Format(
        ".stablehlo", "images in [0, 1], float32 [b, H, W, C]", "flatbuffers", _write_stablehlo, _check_stablehlo
    ),
}
