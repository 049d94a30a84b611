"""A run that is killed and started again ends with the same bits as one that was never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import outcome

from cudfkd_jax import checkpoint, stages


def _start(workdir: Path, teacher: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "cudfkd_jax.main", f"--config={Path(__file__).parent / 'tiny.py'}"),
            *(f"--workdir={workdir}", f"--config.teacher.checkpoint={teacher}"),
            *("--config.distill.epochs=3", "--config.distill.rounds_per_epoch=100"),
            *("--config.devices=1", "--config.checkpoint.every_seconds=0"),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_killed_inside_an_epoch_and_started_again(finished_run, tmp_path):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    process = _start(uninterrupted, finished_run)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output

    # Killed as soon as the second epoch is on its way: after the checkpoint of the first.
    process = _start(killed, finished_run)
    manifests = killed / "checkpoints"
    deadline = time.monotonic() + 600
    while not list(manifests.glob("*.sha256.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.005)
    time.sleep(0.2)  # an epoch takes a second or more
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "summary.json").exists()

    process = _start(killed, finished_run)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "going on from step" in output, output
    assert outcome(killed) == outcome(uninterrupted)


def test_saving_inside_epochs_changes_nothing(finished_run, tiny_config, tmp_path):
    tiny_config.teacher.checkpoint = str(finished_run)
    tiny_config.distill.epochs = 2
    for name, seconds in (("ends", 0.0), ("every_step", 1e-6)):
        tiny_config.checkpoint.update(every_seconds=seconds, keep=100)
        stages.run(tiny_config, "distill", tmp_path / name, say=lambda text: None)
    d = tiny_config.distill
    steps_per_epoch = d.rounds_per_epoch * (d.synthesis_steps + d.student_steps)
    saved = {
        name: [int(path.name) for path in checkpoint.checkpoints(tmp_path / name / "checkpoints")]
        for name in ("ends", "every_step")
    }
    assert saved["ends"] == [steps_per_epoch, 2 * steps_per_epoch]
    assert saved["every_step"] == list(range(1, 2 * steps_per_epoch + 1))
    assert outcome(tmp_path / "ends") == outcome(tmp_path / "every_step")
