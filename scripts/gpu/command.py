"""The command line: runs the steps in order within the time limit."""

import argparse
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.errors import RunFailedError, choose
from gpu import cifar10, flags, runs, sanity, sizes, speed
from gpu.session import MOST_BYTES, ROOT, Session, StepFailedError, python_path

_PROBE = """\
import importlib.metadata, json, jax
device = jax.devices()[0]
names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
print(json.dumps({
    "platform": device.platform,
    "card": device.device_kind,
    "memory": (device.memory_stats() or {}).get("bytes_limit"),
    "versions": {name: importlib.metadata.version(name) for name in names},
}))
"""
_FOLD_BN = "--config.fold_bn=true"


class Step(NamedTuple):
    """A step of the session.

    Attributes:
        run: returns a JSON-ready result with "ok".
        show: formats a result as text.
        least_s: seconds that must be left to start the step.
    """

    run: Callable[[Session], dict[str, Any]]
    show: Callable[[dict[str, Any]], str]
    least_s: float


def _pair(session: Session, full: sizes.Pair) -> sizes.Pair:
    return sizes.pair(full, smoke=session.smoke)


def _table_v(session: Session) -> dict[str, Any]:
    pair = _pair(session, sizes.TABLE_V)
    if session.result("table_v speed") is None:
        measured = speed.run(session, "table_v speed", pair)
        session.keep("table_v speed", measured)
        session.say(speed.show(measured))
    return runs.run(session, "table_v", pair, session.result("table_v speed"))


def _fold_bn(session: Session) -> dict[str, Any]:
    pair = _pair(session, sizes.FLAGSHIP)
    return speed.run(session, "fold_bn", pair._replace(changes=(*pair.changes, _FOLD_BN)), peer=False)


STEPS = {
    "sanity": Step(sanity.run, sanity.show, 60),
    "speed": Step(lambda s: speed.run(s, "speed", _pair(s, sizes.FLAGSHIP)), speed.show, 90),
    "flagship": Step(
        lambda s: runs.run(s, "flagship", _pair(s, sizes.FLAGSHIP), s.result("speed")), runs.show, 150
    ),
    "methods": Step(lambda s: runs.methods(s, _pair(s, sizes.FLAGSHIP)), runs.show_methods, 120),
    "table_v": Step(_table_v, runs.show, 300),
    "fold_bn": Step(_fold_bn, speed.show, 60),
    "flags": Step(lambda s: flags.run(s, _pair(s, sizes.FLAGSHIP)), flags.show, 200),
}


def main(arguments: Sequence[str], usage: str) -> int:
    """Runs the command; returns 0 if every requested step has a result."""
    return cli.guard(_run, arguments, usage)


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--carried", type=Path, default=Path(".gpu"))
    parser.add_argument("--source", default="archive")
    parser.add_argument("--dir", default="data")
    parser.add_argument("--commit", default="")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    chosen = options.steps.split(",")
    for name in chosen:
        choose("--steps", name, tuple(STEPS))
    if options.prepare:
        return _prepare(options.carried.resolve())
    session = _begin(options)
    try:
        for name in chosen:
            _do(session, name, STEPS[name])
    finally:
        session.end_children()
        _keep_compiled(session)
    lines = [f"{name:10}{'complete' if _is_done(session, name) else 'incomplete'}" for name in chosen]
    session.say("\n".join([f"after {session.elapsed:.0f} s:", *lines]))
    if left := [name for name in chosen if not _is_done(session, name)]:
        raise RunFailedError(f"incomplete: {', '.join(left)}; rerun the same command to resume")


def _prepare(carried: Path) -> None:
    carried.mkdir(parents=True, exist_ok=True)
    path = sanity.reference(carried)
    new = path.with_suffix(".new")
    done = subprocess.run(
        [sys.executable, *sanity.reference_program(new)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": python_path(), "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    if done.returncode:
        raise RunFailedError(f"computing the reference failed with exit status {done.returncode}")
    new.replace(path)
    (carried / "commit").write_text(_commit() + "\n")


def _begin(options: argparse.Namespace) -> Session:
    scratch = (options.scratch or options.out / "scratch").resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
    found = json.loads(probe.stdout.splitlines()[-1])
    carried = options.carried.resolve()
    prepared = carried / "commit"
    commit = options.commit or (prepared.read_text().strip() if prepared.exists() else _commit())
    versions = " ".join(f"{name} {version}" for name, version in found["versions"].items())
    data = scratch / "cifar10.npz"
    jpegs = carried / cifar10.JPEG
    source, folder = ("npz", data) if jpegs.exists() else (options.source, Path(options.dir).resolve())
    session = Session(
        out=options.out.resolve(),
        scratch=scratch,
        carried=carried,
        data=[f"--config.data.source={source}", f"--config.data.dir={folder}"],
        key=f"{commit or 'unknown commit'} | {versions} | {found['card']}",
        minutes=options.minutes,
        smoke=options.smoke,
        platform="cpu" if found["platform"] == "cpu" else "gpu",
    )
    memory = f", {found['memory'] / 2**30:.0f} GiB for JAX" if found["memory"] else ""
    session.say(f"commit {commit or 'unknown'}, {found['card']}{memory}, {versions}")
    if jpegs.exists() and not data.exists():
        cifar10.unpack(jpegs, data, most=256 if options.smoke else None)
        session.say(f"CIFAR-10 unpacked after {session.elapsed:.0f} s")
    for path in sorted(carried.glob("xla_*.tar")):
        with tarfile.open(path) as archive:
            archive.extractall(scratch / "xla", filter="data")
    return session


def _commit() -> str:
    """Returns the last commit that changed the package; other commits do not invalidate results."""
    command = ["git", "log", "-1", "--format=%h", "--", "cudfkd_jax"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _is_done(session: Session, name: str) -> bool:
    return (session.result(name) or {}).get("ok", False)


def _do(session: Session, name: str, step: Step) -> None:
    """Runs a step unless it has a result; its failure does not stop the steps after it."""
    if _is_done(session, name):
        session.say(f"{name}: already complete")
        return
    if session.left < (15 if session.smoke else step.least_s):
        session.say(f"{name}: skipped, {session.left:.0f} s left")
        return
    session.say(f"{name}: started after {session.elapsed:.0f} s")
    try:
        result = step.run(session)
        session.keep(name, result)
        session.say(step.show(result))
    except StepFailedError as error:
        session.say(f"{name}: failed: {error}")
    except Exception as error:  # a bug in one step must not stop the others
        session.say(f"{name}: failed: {type(error).__name__}: {error}")
    finally:
        session.end_children()


def _keep_compiled(session: Session) -> None:
    """Packs compiled programs, newest first, into archives within the size limit."""
    folder = session.scratch / "xla"
    files = sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_mtime, reverse=True)
    for part in range(2):
        size, archive = 0, session.out / f"xla_{part}.tar"
        with tarfile.open(archive, "w") as tar:
            while files and (size := size + files[0].stat().st_size + 1024) <= MOST_BYTES:
                tar.add(files[0], files[0].relative_to(folder))
                files.pop(0)
