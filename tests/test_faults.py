"""What a machine does to a run: processes that are killed, disks that are full, folders in odd places."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cudfkd_jax import checkpoint, datafree, stages, weights

_ROOT = Path(__file__).parents[1]
_TINY = f"--config={_ROOT / 'tests/tiny.py'}"


def _wait_for(condition, *arguments, seconds=300):
    end = time.monotonic() + seconds
    while not condition(*arguments):
        assert time.monotonic() < end
        time.sleep(0.01)


def _has_epochs(workdir: Path, count: int) -> bool:
    records = workdir / "metrics.jsonl"
    return records.exists() and records.read_text().count("\n") >= count


def _is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


class _KilledError(BaseException):
    pass


def _killed(*arguments, **more):
    raise _KilledError


@pytest.mark.parametrize(
    ("module", "function"), [(checkpoint, "save"), (checkpoint, "_prune"), (weights, "commit_net")]
)
def test_a_kill_around_a_checkpoint_does_not_lose_the_best_student(
    finished_run, tiny_config, tmp_path, monkeypatch, module, function
):
    """Before the checkpoint of the best epoch, right after it, and before the student is published."""
    best = weights.load_net(finished_run / "student_best").net.metrics["epoch"]
    tiny_config.teacher.checkpoint = str(finished_run)
    tiny_config.checkpoint.every_seconds = 0.0
    tiny_config.log.report = False
    write = datafree._BestStudent.write

    def write_and_arm(self):
        write(self)
        if _has_epochs(tmp_path, best):
            monkeypatch.setattr(module, function, _killed)

    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(datafree._BestStudent, "write", write_and_arm)
        stages.run(tiny_config, "distill", tmp_path)
    monkeypatch.undo()
    stages.run(tiny_config, "distill", tmp_path)
    for name in ("student", "student_best"):
        expected, found = (
            {path.name: path.read_bytes() for path in (run / name).iterdir()} for run in (finished_run, tmp_path)
        )
        assert found == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_runs_end_with_the_command_that_began_them(finished_run, tmp_path):
    """SIGTERM to compare.py alone, the same command and SIGKILL, the same command at once again."""
    cell = tmp_path / "cudfkd/seed_0"
    command = [
        *(sys.executable, _ROOT / "scripts/compare.py", _TINY, "--methods=cudfkd", "--seeds=0"),
        *(f"--config.teacher.checkpoint={finished_run}", "--config.checkpoint.every_seconds=1000"),
        *("--config.distill.rounds_per_epoch=30", "--config.distill.epochs=4", f"--workdir={tmp_path}"),
    ]
    for epochs, number, status in ((1, signal.SIGTERM, 143), (2, signal.SIGKILL, -9)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            _wait_for(_has_epochs, cell, epochs)
            child = int((cell / ".lock").read_text())
            assert _is_alive(child)
            process.send_signal(number)
            _, error = process.communicate(timeout=300)
        assert process.returncode == status
        if number == signal.SIGTERM:
            assert error == "cudfkd: stopped by SIGTERM; the same command goes on from here\n"
            assert not _is_alive(child)
            assert "stopped by SIGTERM" in cell.with_name("seed_0.log").read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "| cudfkd | 1/1 |" in done.stdout, done.stdout + done.stderr
    assert not _is_alive(child)
    said = cell.with_name("seed_0.log").read_text()
    assert said.count("stopped by SIGTERM") == said.count("going on from step") == 2


_ELSEWHERE = """
import subprocess, sys
from cudfkd_jax import cells
cells.elsewhere(subprocess.run, ["sh", "-c", "echo $PPID > $0; sleep 5", sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_a_check_ends_with_the_command_that_began_it(tmp_path):
    file = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", _ELSEWHERE, file]) as process:
        _wait_for(lambda: file.exists() and file.read_text())
        process.kill()
    start = time.monotonic()
    _wait_for(lambda: not _is_alive(int(file.read_text())))
    assert time.monotonic() - start < 4
