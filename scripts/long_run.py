"""Checks that memory, speed and records stay constant over a long run of many short epochs.

    python scripts/long_run.py           2,000 rounds of the digits, six minutes on 2 cores

--rounds=N          total number of rounds (2000)
--epochs=N          number of epochs (200)
--workdir=FOLDER    by default a temporary folder
--config=FILE       configs/digits.py by default; --config.KEY=VALUE changes a setting
--mib=N             limit of the process's growth (64)
--percent=N         limit of the change in seconds per epoch (10)

After every epoch, the script records the resident memory of the process, the bytes of all JAX arrays, and the
checkpoints and the lines of `metrics.jsonl` on disk. It compares the medians of the second tenth of the epochs
with those of the last; the first tenth is warm-up.

Exit status: 1 if a limit is exceeded, JAX arrays grow at all, more checkpoints exist than should be kept, or a
line is late.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from cudfkd_jax.config import loading, presets
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.errors import RunFailedError, UserError
from cudfkd_jax.storage import checkpoint, records
from cudfkd_jax.training import trainer

_TENTHS = 10


class Noted(NamedTuple):
    """The measurements at the end of an epoch, counted from 1."""

    epoch: int
    seconds: float
    resident_mib: float
    arrays_mib: float
    checkpoints: int
    lines: int


def note(path: Path, record: records.Record) -> Noted:
    """Measures this process and the run whose records are in `path`; `record` is the newest."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    resident = next(line for line in status if line.startswith("VmRSS:"))
    return Noted(
        epoch=record["epoch"],
        seconds=record["seconds"],
        resident_mib=int(resident.split()[1]) / 2**10,
        arrays_mib=sum(array.nbytes for array in jax.live_arrays()) / 2**20,
        checkpoints=len(checkpoint.checkpoints(path.parent / trainer.CHECKPOINTS)),
        lines=path.read_text(encoding="utf-8").count("\n"),
    )


def tenths(noted: Sequence[Noted]) -> list[Noted]:
    """Computes the median of each measurement per tenth of the epochs; `epoch` is the tenth's last."""
    parts = [noted[len(noted) * n // _TENTHS : len(noted) * (n + 1) // _TENTHS] for n in range(_TENTHS)]
    return [
        Noted(*map(statistics.median_high, zip(*part, strict=True)))._replace(epoch=part[-1].epoch)
        for part in parts
    ]


def faults(noted: Sequence[Noted], *, keep: int, mib: float, percent: float) -> list[str]:
    """Returns one line per exceeded limit; `keep` is the maximum number of checkpoints."""
    _, first, *_, last = tenths(noted)
    grown, slower = last.resident_mib - first.resident_mib, 100 * (last.seconds / first.seconds - 1)
    found = []
    if grown > mib:
        found.append(f"the process grew by {grown:.0f} MiB; expected {mib:g} MiB at most")
    if last.arrays_mib > first.arrays_mib:
        found.append(f"JAX arrays grew from {first.arrays_mib:.3f} to {last.arrays_mib:.3f} MiB")
    if abs(slower) > percent:
        found.append(f"seconds per epoch changed from {first.seconds:.3g} to {last.seconds:.3g}, {slower:+.0f} %")
    if max(each.checkpoints for each in noted) > keep:
        found.append(f"{max(each.checkpoints for each in noted)} checkpoints existed; expected {keep} at most")
    if late := [each.epoch for each in noted if each.lines != each.epoch]:
        found.append(f"the record of epoch {late[0]} was not on disk at its end")
    return found


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--mib", type=float, default=64.0)
    parser.add_argument("--percent", type=float, default=10.0)
    parser.add_argument("--workdir")
    parser.add_argument("--config", default=str(Path(__file__).parents[1] / "configs/digits.py"))
    options, overrides = parser.parse_known_args(arguments)
    if options.epochs < 2 * _TENTHS or options.rounds < options.epochs:
        raise UserError(f"--epochs is {options.epochs}; expected at least {2 * _TENTHS} and at most --rounds")
    config = loading.load(options.config)
    presets.train_for(config, epochs=2)
    config.distill.update(epochs=options.epochs, rounds_per_epoch=options.rounds // options.epochs)
    config.distill.update(student_steps=5, batch_size=32)
    config.checkpoint.every_seconds = 0.0  # at the end of every epoch
    loading.override(config, overrides)
    noted: list[Noted] = []
    with tempfile.TemporaryDirectory(prefix="cudfkd_long_") as temporary, _observed(noted):
        stages.run(config, "all", Path(options.workdir or temporary), say=cli.say)
    if not noted:
        raise UserError(f"--workdir={options.workdir} contains a completed run; expected a new folder")
    print("epochs up to  seconds  process MiB  arrays MiB  checkpoints  lines")
    for n in tenths(noted):
        row = f"{n.epoch:12} {n.seconds:8.3f} {n.resident_mib:12.1f} {n.arrays_mib:11.3f}"
        print(f"{row} {n.checkpoints:12} {n.lines:6}")
    if found := faults(noted, keep=config.checkpoint.keep, mib=options.mib, percent=options.percent):
        raise RunFailedError("; ".join(found))
    print(f"{options.epochs} epochs: memory and speed constant, every record on disk in time")


@contextlib.contextmanager
def _observed(noted: list[Noted]) -> Iterator[None]:
    """Appends a measurement after each record of the student."""
    append = records.append

    def observed(path: Path, record: records.Record) -> None:
        append(path, record)
        if path.parent.name != "teacher":
            noted.append(note(path, record))

    records.append = observed
    try:
        yield
    finally:
        records.append = append


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    return cli.guard(_run, arguments, __doc__ or "")


if __name__ == "__main__":
    cli.use_compilation_cache()
    cli.leave(main)
