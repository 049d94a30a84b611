"""A long run in many short epochs: is memory flat, are epochs as fast as at first, are records there in time?

    python scripts/long_run.py           2,000 rounds of the digits, six minutes on 2 cores

`--rounds=` in all (2000), in so many `--epochs=` (200), `--workdir=` (one that is removed), `--config=`
(configs/digits.py), any `--config.KEY=VALUE`. At the end of every epoch it looks at the resident memory of the
process, the bytes of all arrays of JAX, the checkpoints and the lines of `metrics.jsonl` on the disk, and compares
medians of the second tenth of the epochs, for the first is warm-up, and of the last. Exit status 1 where the
process has grown by more than `--mib=` (64) or arrays by anything, where seconds differ by more than `--percent=`
(10), where there are more checkpoints than are kept, or where a line came late.
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
    """What is found at the end of an epoch, counted from 1."""

    epoch: int
    seconds: float
    resident_mib: float
    arrays_mib: float
    checkpoints: int
    lines: int


def note(path: Path, record: records.Record) -> Noted:
    """Looks at this process and at the run whose records are in `path`; `record` is the newest."""
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
    """The median of everything in each tenth of the epochs, but the epoch, which is the tenth's last."""
    parts = [noted[len(noted) * n // _TENTHS : len(noted) * (n + 1) // _TENTHS] for n in range(_TENTHS)]
    return [
        Noted(*map(statistics.median_high, zip(*part, strict=True)))._replace(epoch=part[-1].epoch)
        for part in parts
    ]


def faults(noted: Sequence[Noted], *, keep: int, mib: float, percent: float) -> list[str]:
    """What a run has done that it should not, each a line; `keep` checkpoints are kept, for the rest see above."""
    _, first, *_, last = tenths(noted)
    grown, slower = last.resident_mib - first.resident_mib, 100 * (last.seconds / first.seconds - 1)
    found = []
    if grown > mib:
        found.append(f"the process has grown by {grown:.0f} MiB, more than {mib:g}")
    if last.arrays_mib > first.arrays_mib:
        found.append(f"arrays of JAX take {last.arrays_mib:.3f} MiB after {first.arrays_mib:.3f}")
    if abs(slower) > percent:
        found.append(f"epochs take {last.seconds:.3g} s after {first.seconds:.3g}, {slower:+.0f} %")
    if max(each.checkpoints for each in noted) > keep:
        found.append(f"there were {max(each.checkpoints for each in noted)} checkpoints, and {keep} are kept")
    if late := [each.epoch for each in noted if each.lines != each.epoch]:
        found.append(f"the record of epoch {late[0]} was not on the disk at its end")
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
        raise UserError(f"--epochs={options.epochs}: give at least {2 * _TENTHS}, and as many --rounds or more")
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
        raise UserError(f"--workdir={options.workdir} holds a finished run; name another")
    print("epochs up to  seconds  process MiB  arrays MiB  checkpoints  lines")
    for n in tenths(noted):
        row = f"{n.epoch:12} {n.seconds:8.3f} {n.resident_mib:12.1f} {n.arrays_mib:11.3f}"
        print(f"{row} {n.checkpoints:12} {n.lines:6}")
    if found := faults(noted, keep=config.checkpoint.keep, mib=options.mib, percent=options.percent):
        raise RunFailedError("; ".join(found))
    print(f"{options.epochs} epochs: memory flat, epochs as fast as at first, every record there in time")


@contextlib.contextmanager
def _observed(noted: list[Noted]) -> Iterator[None]:
    """Takes a note after each record of the student."""
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
    """Does what the arguments say and returns the exit status."""
    return cli.guard(_run, arguments, __doc__ or "")


if __name__ == "__main__":
    cli.use_compilation_cache()
    cli.leave(main)
