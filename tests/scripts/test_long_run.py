"""Tests of the script for long runs: its limits and measurements."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import long_run
from cudfkd_jax.storage import records

_TINY = Path(__file__).parents[1] / "support" / "tiny.py"


def _noted(**changed):
    """Returns forty epochs, slow and small at first; `changed` gives values as functions of the epoch."""
    made = []
    for epoch in range(1, 41):
        warm = {"seconds": 1.0, "resident_mib": 500.0} if epoch > 4 else {"seconds": 9.0, "resident_mib": 300.0}
        values = {"arrays_mib": 2.0, "checkpoints": 2, "lines": epoch, **warm}
        made.append(long_run.Noted(epoch, **values | {key: value(epoch) for key, value in changed.items()}))
    return made


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, None),
        ({"resident_mib": lambda epoch: 500 + epoch}, None),
        ({"resident_mib": lambda epoch: 500 + 4 * epoch}, "the process grew by 128 MiB; expected 64 MiB at most"),
        ({"resident_mib": lambda epoch: 500 + 4000 * (epoch == 40)}, None),  # one outlier does not change a median
        ({"arrays_mib": lambda epoch: 2 + epoch / 1024}, "JAX arrays grew from 2.007 to 2.038 MiB"),
        ({"seconds": lambda epoch: 1 + epoch / 1000}, None),
        ({"seconds": lambda epoch: 1 + epoch / 100}, r"seconds per epoch changed from 1.07 to 1.39, \+30 %"),
        ({"seconds": lambda epoch: 2 - epoch / 100}, "seconds per epoch changed from 1.94 to 1.62, -16 %"),
        ({"checkpoints": lambda epoch: 2 + (epoch == 7)}, "3 checkpoints existed; expected 2 at most"),
        ({"lines": lambda epoch: epoch - (epoch == 9)}, "the record of epoch 9 was not on disk"),
    ],
)
def test_exceeded_limits_are_faults(changed, fault):
    found = long_run.faults(_noted(**changed), keep=2, mib=64, percent=10)
    assert len(found) == (fault is not None)
    assert not found or re.search(fault, found[0])


def test_a_note_is_of_this_process(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epoch in (1, 2):
        records.append(path, {"epoch": epoch, "seconds": 0.5})
    before = long_run.note(path, {"epoch": 2, "seconds": 0.5})
    held = jax.block_until_ready(jnp.ones(2**22))
    after = long_run.note(path, {"epoch": 2, "seconds": 0.5})
    assert (before.epoch, before.seconds, before.lines, before.checkpoints) == (2, 0.5, 2, 0)
    assert after.arrays_mib - before.arrays_mib == pytest.approx(held.nbytes / 2**20) == 16
    assert before.resident_mib > 50


def test_too_few_epochs_are_refused(capsys):
    assert long_run.main(["--epochs=10"]) == 2
    assert "--epochs is 10; expected at least 20 and at most --rounds" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_run(tmp_path, capsys):
    arguments = [f"--config={_TINY}", "--rounds=20", "--epochs=20", f"--workdir={tmp_path / 'run'}"]
    assert long_run.main([*arguments, "--percent=1e9", "--config.log.samples_every_epochs=0"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("20 epochs: memory and speed constant")
    table = [line.split() for line in said[-11:-1]]
    assert [row[0] for row in table] == [str(n) for n in range(2, 21, 2)]
    assert [row[-2] for row in table] == ["1"] + ["2"] * 9  # counted before the epoch's own checkpoint
    assert len({row[3] for row in table}) == 1  # arrays
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 20
