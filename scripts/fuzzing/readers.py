"""The readers and their valid files. Imports are local, so that a process loads only the modules of its reader."""

import functools
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Reader(NamedTuple):
    """A reader of files and its valid input.

    Attributes:
        make: writes a file or folder and returns its path.
        read: reads that path, or raises.
        hostile: whether the reader must refuse the unmutated file.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    hostile: bool = False


def _arrays(seed: int = 0) -> dict[str, Any]:
    import numpy as np

    draw = np.random.default_rng(seed).normal
    return {
        "params": {"conv": {"kernel": draw(size=(3, 3, 2, 4)).astype(np.float32)}, "bias": np.ones(4, np.float32)},
        "batch_stats": {"bn": {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}},
    }


def _state_dict() -> dict[str, Any]:
    from flax import traverse_util

    return {".".join(path): value for path, value in traverse_util.flatten_dict(_arrays()).items()}


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._path), "w")


def _make_torch(folder: Path) -> Path:
    from cudfkd_jax.storage import torch_files

    torch_files.write_state_dict(folder / "weights.pth", _state_dict())
    return folder / "weights.pth"


def _make_hostile_torch(folder: Path) -> Path:
    """Writes a file in the format of `torch.save` whose pickle calls `open`."""
    with zipfile.ZipFile(folder / "hostile.pth", "w") as archive:
        archive.writestr("hostile/data.pkl", pickle.dumps({"weight": _Payload(folder / "escaped")}, protocol=2))
        archive.writestr("hostile/version", "3\n")
    return folder / "hostile.pth"


def _make_safetensors(folder: Path) -> Path:
    from cudfkd_jax.storage import torch_files

    torch_files.write_state_dict(folder / "weights.safetensors", _state_dict())
    return folder / "weights.safetensors"


def _read_state_dict(path: Path) -> object:
    from cudfkd_jax.storage import torch_files

    return torch_files.read_state_dict(path)


def _make_msgpack(folder: Path) -> Path:
    from flax import serialization

    (folder / "weights.msgpack").write_bytes(serialization.msgpack_serialize(_arrays()))
    return folder / "weights.msgpack"


def _make_orbax(folder: Path) -> Path:
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((folder / "orbax").absolute(), _arrays())
    return folder / "orbax"


def _read_variables(path: Path) -> object:
    from cudfkd_jax.storage import flax_files

    place = flax_files.find_checkpoint(path) if path.is_dir() else path
    return flax_files.read_variables(place or path, _arrays())


def _make_net(folder: Path) -> Path:
    from cudfkd_jax.storage import weights

    net = weights.NetworkSpec("wrn16_1", 10, (8, 8, 1), (0.5,), (0.2,), {"acc1": 90.0})
    weights.save_net(folder / "net", net, _arrays())
    return folder / "net"


def _read_net(path: Path) -> object:
    from cudfkd_jax.storage import weights

    return weights.load_net(path)


def _read_trusted_net(path: Path) -> object:
    """Reads after updating the digest to match the mutated weights, as an attacker would."""
    import hashlib

    from cudfkd_jax.storage import weights

    description = path / weights.DESCRIPTION
    try:
        held = json.loads(description.read_text())
        held["sha256"] = hashlib.sha256((path / weights.WEIGHTS).read_bytes()).hexdigest()
        description.write_text(json.dumps(held))
    except (OSError, ValueError, TypeError):
        pass
    return weights.load_net(path)


def _make_checkpoints(folder: Path) -> Path:
    from cudfkd_jax.storage import checkpoint

    for step in (1, 2):
        checkpoint.save(folder / "checkpoints", step, _arrays(step), keep=2)
    return folder / "checkpoints"


def _read_checkpoints(path: Path) -> object:
    from cudfkd_jax.storage import checkpoint

    return checkpoint.restore_newest(path, _arrays())


def _read_trusted_checkpoints(path: Path) -> object:
    """Restores after updating the manifests to match the mutated files."""
    from cudfkd_jax.storage import checkpoint

    for held in checkpoint.checkpoints(path):
        if held.is_dir():
            held.with_name(held.name + ".sha256.json").write_text(json.dumps(checkpoint.digests(held)))
    return checkpoint.restore_newest(path, _arrays())


def _images(count: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def _make_npz(folder: Path) -> Path:
    import numpy as np

    labels = np.arange(6) % 2
    np.savez_compressed(
        folder / "images.npz", x_train=_images(6), y_train=labels, x_test=_images(6), y_test=labels
    )
    return folder / "images.npz"


_SUFFIXES = ("png", "jpg", "tif", "webp", "bmp", "ppm")


def _make_folder(folder: Path) -> Path:
    from PIL import Image

    for split in ("train", "test"):
        for index, image in enumerate(_images(2 * len(_SUFFIXES))):
            path = folder / "images" / split / f"class_{index % 2}" / f"{index}.{_SUFFIXES[index // 2]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder / "images"


def _read_dataset(source: str, path: Path) -> object:
    from cudfkd_jax import data

    return data.load(
        source, name="", directory=str(path), image_shape=(8, 8, 3), num_classes=2, splits=("train", "test")
    )


def _make_pickle(folder: Path) -> Path:
    import numpy as np

    content = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 0, 1], "name": "batch"}
    (folder / "batch").write_bytes(pickle.dumps(content, protocol=3))  # with bytes, as Python 2 wrote them
    return folder / "batch"


def _make_hostile_pickle(folder: Path) -> Path:
    (folder / "batch").write_bytes(pickle.dumps({"data": _Payload(folder / "escaped")}, protocol=2))
    return folder / "batch"


def _read_pickle(path: Path) -> object:
    from cudfkd_jax.data import pickles

    return pickles.load_arrays(path)


def _make_run(folder: Path) -> Path:
    from cudfkd_jax.config import access, defaults
    from cudfkd_jax.evaluation import observations, samples
    from cudfkd_jax.storage import records, workdir

    run = folder / "run"
    run.mkdir()
    workdir.write_config(run, {"seed": 0}, access.flatten(defaults.get_config()))
    for epoch in (1, 2):
        records.append(run / "metrics.jsonl", {"epoch": epoch, "acc1": 90.0, "bn_loss": 1.5, "seconds": 1.0})
    samples.save_grid(run / "samples/epoch_0002.png", _images(4) / 255)
    synthetic = {"loss": "kl", "difficulty": [0.5, 0.25], "classes": [1, 1]}
    test = {"loyalty": [1, 2], "loyalty_released": [2, 1], "images": [2, 1], "student": [1, 1], "teacher": [2, 1]}
    observations.save(observations.path_of(run, 2), 2, synthetic, test)
    summary = {"teacher": {"arch": "wrn16_2", "acc1": 99.0}, "student": {"arch": "wrn16_1"}, "versions": {}}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def _read_run(path: Path) -> object:
    from cudfkd_jax.report import read as reader

    return reader.read(path)


def _report(path: Path) -> object:
    from cudfkd_jax import report

    return report.write_report(path)


def _read_settings(path: Path) -> object:
    from cudfkd_jax.config import loading
    from cudfkd_jax.storage import records, workdir

    records.cut_back(path / "metrics.jsonl", 1)
    workdir.check_config(path, {"seed": 0})
    return loading.read_config(path)


READERS = {
    "pth": Reader(_make_torch, _read_state_dict),
    "pth-hostile": Reader(_make_hostile_torch, _read_state_dict, hostile=True),
    "safetensors": Reader(_make_safetensors, _read_state_dict),
    "msgpack": Reader(_make_msgpack, _read_variables),
    "orbax": Reader(_make_orbax, _read_variables),
    "net": Reader(_make_net, _read_net),
    "net-mended": Reader(_make_net, _read_trusted_net),
    "checkpoints": Reader(_make_checkpoints, _read_checkpoints),
    "checkpoints-mended": Reader(_make_checkpoints, _read_trusted_checkpoints),
    "npz": Reader(_make_npz, functools.partial(_read_dataset, "npz")),
    "image-folder": Reader(_make_folder, functools.partial(_read_dataset, "folder")),
    "pickle": Reader(_make_pickle, _read_pickle),
    "pickle-hostile": Reader(_make_hostile_pickle, _read_pickle, hostile=True),
    "run": Reader(_make_run, _read_run),
    "run-report": Reader(_make_run, _report),
    "run-resumed": Reader(_make_run, _read_settings),
}
