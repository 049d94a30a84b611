"""Feeds damaged and hostile files to everything that reads files, and counts what comes of it.

    python scripts/fuzz.py --cases=2400

Real files are made for each reader and mutated: bytes flipped, cut off, doubled, torn out, replaced by large
numbers or by parts of other files, values of JSON by other values. A case is good where the file is read, or
refused with a `UserError` of one line; anything else is a failure: another exception, a crash of the process,
memory beyond `--memory` MiB, a file written outside the folder, or code of the file that was run. Each reader has
a process of its own, so that a crash is counted and not suffered. Exit status 1 where a case fails.

`--cases=` in all (2400), `--seed=` (0), `--readers=` all or names separated by commas, `--memory=` in MiB that a
reader may ask for beyond what it starts with (1024).
"""

import argparse
import collections
import functools
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

READ, REFUSED = "read", "refused"
_LARGE = (b"\xff" * 8, b"\x7f" + b"\xff" * 7, (2**40).to_bytes(8, "little"), b"\x00" * 8, b"99999999999999")
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**70, -1e308, float("nan"), float("inf"), "", "\n\0", "../../x", "9" * 5000),
    *([], {}, [[[]]], {"config": {}}, [None] * 50),
)


class Reader(NamedTuple):
    """What is fed.

    Attributes:
        make: writes a real file or folder and returns it.
        read: reads it, or raises.
        hostile: what was written is to be refused as it is.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    hostile: bool = False


# The readers and their real files. Imports are inside: a process needs what its reader needs, and no more.


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
    from cudfkd_jax import torch_io

    torch_io.write_state_dict(folder / "weights.pth", _state_dict())
    return folder / "weights.pth"


def _make_hostile_torch(folder: Path) -> Path:
    """A file as `torch.save` writes it whose pickle calls `open`."""
    with zipfile.ZipFile(folder / "hostile.pth", "w") as archive:
        archive.writestr("hostile/data.pkl", pickle.dumps({"weight": _Payload(folder / "escaped")}, protocol=2))
        archive.writestr("hostile/version", "3\n")
    return folder / "hostile.pth"


def _make_safetensors(folder: Path) -> Path:
    from cudfkd_jax import torch_io

    torch_io.write_state_dict(folder / "weights.safetensors", _state_dict())
    return folder / "weights.safetensors"


def _read_state_dict(path: Path) -> object:
    from cudfkd_jax import torch_io

    return torch_io.read_state_dict(path)


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
    from cudfkd_jax import flax_io

    place = flax_io.find_orbax(path) if path.is_dir() else path
    return flax_io.read_variables(place or path, _arrays())


def _make_net(folder: Path) -> Path:
    from cudfkd_jax import weights

    net = weights.Net("wrn16_1", 10, (8, 8, 1), (0.5,), (0.2,), {"acc1": 90.0})
    weights.save_net(folder / "net", net, _arrays())
    return folder / "net"


def _read_net(path: Path) -> object:
    from cudfkd_jax import weights

    return weights.load_net(path)


def _read_trusted_net(path: Path) -> object:
    """As somebody hostile would write it: with the digest of what he wrote."""
    import hashlib

    from cudfkd_jax import weights

    description = path / weights.DESCRIPTION
    try:
        held = json.loads(description.read_text())
        held["sha256"] = hashlib.sha256((path / weights.WEIGHTS).read_bytes()).hexdigest()
        description.write_text(json.dumps(held))
    except (OSError, ValueError, TypeError):
        pass
    return weights.load_net(path)


def _make_checkpoints(folder: Path) -> Path:
    from cudfkd_jax import checkpoint

    for step in (1, 2):
        checkpoint.save(folder / "checkpoints", step, _arrays(step), keep=2)
    return folder / "checkpoints"


def _read_checkpoints(path: Path) -> object:
    from cudfkd_jax import checkpoint

    return checkpoint.restore_newest(path, _arrays())


def _read_trusted_checkpoints(path: Path) -> object:
    """With manifests that agree with whatever is there now."""
    from cudfkd_jax import checkpoint

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


def _make_folder(folder: Path) -> Path:
    from PIL import Image

    for split in ("train", "test"):
        for index, image in enumerate(_images(4)):
            path = folder / "images" / split / f"class_{index % 2}" / f"{index}.{('png', 'jpg')[index // 2]}"
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
    from cudfkd_jax import configuration, defaults, observe, records, samples, workdir

    run = folder / "run"
    run.mkdir()
    workdir.write_config(run, {"seed": 0}, configuration.flatten(defaults.get_config()))
    for epoch in (1, 2):
        records.append(run / "metrics.jsonl", {"epoch": epoch, "acc1": 90.0, "bn_loss": 1.5, "seconds": 1.0})
    samples.save_grid(run / "samples/epoch_0002.png", _images(4) / 255)
    synthetic = {"loss": "kl", "difficulty": [0.5, 0.25], "classes": [1, 1]}
    test = {"loyalty": [1, 2], "loyalty_released": [2, 1], "images": [2, 1], "student": [1, 1], "teacher": [2, 1]}
    observe.save(observe.path_of(run, 2), 2, synthetic, test)
    summary = {"teacher": {"arch": "wrn16_2", "acc1": 99.0}, "student": {"arch": "wrn16_1"}, "versions": {}}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def _read_run(path: Path) -> object:
    from cudfkd_jax.report import run

    return run.read(path)


def _report(path: Path) -> object:
    from cudfkd_jax import report

    return report.write_report(path)


def _read_settings(path: Path) -> object:
    from cudfkd_jax import records, stages, workdir

    records.cut_back(path / "metrics.jsonl", 1)
    workdir.check_config(path, {"seed": 0})
    return stages.saved_config(path)


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


# Mutations


def mutate(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """The content with one to three things done to it."""
    for _ in range(draw.randint(1, 3)):
        content = draw.choice(_MUTATIONS)(content, draw, other)
    return content


def _flip(content: bytes, draw: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8) if changed else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random, other: bytes) -> bytes:
    return content[: draw.randint(0, len(content))]


def _tear(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(content, draw)
    return content[:start] + content[end:]


def _double(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(content, draw)
    return content[:end] + content[start:]


def _enlarge(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, large = draw.randint(0, len(content)), draw.choice(_LARGE)[: draw.choice((1, 2, 4, 8, 14))]
    return content[:start] + large + content[start + len(large) :]


def _splice(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(content, draw)
    first, last = _span(other, draw)
    return content[:start] + other[first:last] + content[end:]


def _revalue(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Another value somewhere in JSON, or in the JSON at the head of a safetensors file."""
    head = content[:8] if content[8:9] == b"{" else b""
    try:
        end = 8 + int.from_bytes(head, "little") if head else len(content)
        text, rest = content[len(head) : end].decode(), content[end:]
        lines = text.splitlines() if text.count("\n{") else [text]
        index = draw.randrange(len(lines))
        lines[index] = json.dumps(_with_another_value(json.loads(lines[index]), draw))
    except (ValueError, IndexError, RecursionError):
        return content
    changed = "\n".join(lines).encode()
    return (len(changed).to_bytes(8, "little") if head else b"") + changed + rest


def _redeclare(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Arrays in a zip file that declare another shape or type than they have."""
    if not content.startswith(b"PK"):
        return content
    result = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                part = old.read(name)
                if draw.random() < 0.5:
                    part = part.replace(b"(6, 8, 8, 3)", b"(%d, 8, 8, 3)" % draw.choice((10**9, 7, 0, 2**62)))
                    part = part.replace(b"|u1", draw.choice((b"|O8", b"<f8", b"|u1", b"|S9")))
                new.writestr(name, part)
    except Exception:  # it was mutated before, and is no zip file any more
        return content
    return result.getvalue()


_MUTATIONS = (_flip, _cut, _tear, _double, _enlarge, _splice, _revalue, _revalue, _redeclare)


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randint(0, len(content))
    return start, min(len(content), start + draw.choice((1, 4, 16, 64, len(content))))


def _with_another_value(value: Any, draw: random.Random) -> Any:
    if draw.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return draw.choice(_VALUES)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value, dict) and draw.random() < 0.15:
        return {k: v for k, v in value.items() if k != key}
    value[key] = _with_another_value(value[key], draw)
    return value


# The campaign


def run_reader(name: str, cases: int, seed: int, memory_mib: int, sender: Any) -> None:
    """Sends `(case, outcome, detail)` for each case of a reader; in a process of its own."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    reader, draw = READERS[name], random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="cudfkd_fuzz_") as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        home, made = Path(temporary, "home"), Path(temporary, "made")
        home.mkdir()
        made.mkdir()
        original = reader.make(made)
        others = [path.read_bytes() for path in _files(original)]
        outcome, detail = _attempt(reader, _copy(original, home))  # also: what a first time imports
        if outcome != (REFUSED if reader.hostile else READ):
            sender.send((-1, f"as written: {outcome}", detail))
        _limit_memory(memory_mib)
        for case in range(cases):
            place = Path(temporary, "case")
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            target = _copy(original, place)
            path = draw.choice(_files(target))
            if original.is_dir() and draw.random() < 0.08:
                path.unlink()
            else:
                path.write_bytes(mutate(path.read_bytes(), draw, draw.choice(others)))
            sender.send((case, "begun", str(path.relative_to(place))))
            outcome, detail = _attempt(reader, target)
            escaped = [str(p) for p in (*place.iterdir(), *made.iterdir()) if p not in (target, original)]
            if escaped:
                outcome, detail = "wrote outside", ", ".join(escaped)
            sender.send((case, outcome, detail))
    sender.send(None)


def _copy(original: Path, place: Path) -> Path:
    copy = shutil.copytree if original.is_dir() else shutil.copyfile
    return Path(copy(original, place / original.name))


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _attempt(reader: Reader, path: Path) -> tuple[str, str]:
    from cudfkd_jax.errors import UserError

    try:
        reader.read(path)
    except UserError as error:
        causes = list(_causes(error))
        if any(isinstance(cause, MemoryError) for cause in causes):
            return "memory", str(error)
        return (REFUSED, "") if len(str(error).splitlines()) == 1 else ("more than a line", str(error))
    except MemoryError:
        return "memory", traceback.format_exc(limit=-3)
    except BaseException:
        return "exception", traceback.format_exc(limit=-6)
    return READ, ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _limit_memory(mib: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def campaign(names: Sequence[str], cases: int, seed: int, memory_mib: int) -> dict[str, collections.Counter[str]]:
    """Outcomes by reader; failures are printed with what is needed to see them again."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for index, name in enumerate(names):
        share = cases // len(names) + (index < cases % len(names))
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_reader, args=(name, share, seed, memory_mib, sender))
        process.start()
        sender.close()
        found[name] = _collect(name, receiver)
        process.join()
        print(f"{name:20} {sum(found[name].values()):5} {_text(found[name])}", flush=True)
    return found


def _collect(name: str, receiver: Any) -> collections.Counter[str]:
    outcomes: collections.Counter[str] = collections.Counter()
    begun = None
    while True:
        try:
            message = receiver.recv()
        except EOFError:  # the process is gone
            outcomes["crash"] += 1
            print(f"{name}: the process died in case {begun}", file=sys.stderr)
            return outcomes
        if message is None:
            return outcomes
        case, outcome, detail = message
        if outcome == "begun":
            begun = f"{case} ({detail})"
            continue
        outcomes[outcome] += 1
        if outcome not in (READ, REFUSED):
            print(f"{name}, case {begun}: {outcome}\n{detail}", file=sys.stderr)


def _text(outcomes: collections.Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items(), key=lambda o: -o[1]))


def main(arguments: Sequence[str]) -> int:
    """Runs the campaign and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=1024)
    parser.add_argument("--readers", default="all")
    options = parser.parse_args(arguments)
    names = list(READERS) if options.readers == "all" else options.readers.split(",")
    if unknown := [name for name in names if name not in READERS]:
        parser.error(f"unknown reader {unknown[0]!r}; valid: all, {', '.join(READERS)}")
    found = campaign(names, options.cases, options.seed, options.memory)
    total = sum(found.values(), collections.Counter[str]())
    print(f"{'all':20} {sum(total.values()):5} {_text(total)}")
    return 1 if total.keys() - {READ, REFUSED} else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
