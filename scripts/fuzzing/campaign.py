"""The campaign: runs each reader on mutated files in a separate process and counts the outcomes."""

import collections
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fuzzing.mutations import mutate
from fuzzing.readers import READERS, Reader

READ, REFUSED = "read", "refused"


def run_reader(name: str, cases: int, seed: int, memory_mib: int, sender: Any) -> None:
    """Sends `(case, outcome, detail)` for each case of a reader; runs in a separate process."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    reader, draw = READERS[name], random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="cudfkd_fuzz_") as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        home, made = Path(temporary, "home"), Path(temporary, "made")
        home.mkdir()
        made.mkdir()
        original = reader.make(made)
        others = [path.read_bytes() for path in _files(original)]
        outcome, detail = _attempt(reader, _copy(original, home))  # also imports the reader's modules
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
    from cudfkd_jax.runtime.errors import UserError

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
    """Returns the outcomes by reader; prints each failure with its case, for reproduction."""
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
        print(f"{name:20} {sum(found[name].values()):5} {described(found[name])}", flush=True)
    return found


def _collect(name: str, receiver: Any) -> collections.Counter[str]:
    outcomes: collections.Counter[str] = collections.Counter()
    begun = None
    while True:
        try:
            message = receiver.recv()
        except EOFError:  # the process crashed
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


def described(outcomes: collections.Counter[str]) -> str:
    """Formats the counts, largest first."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items(), key=lambda o: -o[1]))
