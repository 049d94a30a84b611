"""Tests of faults: killed processes, full disks and unusual folders."""

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from helpers import snapshot

from cudfkd_jax.config import loading
from cudfkd_jax.runs import evaluate, stages
from cudfkd_jax.runtime.errors import RunFailedError, UserError
from cudfkd_jax.storage import checkpoint, files, weights
from cudfkd_jax.training import trainer

_ROOT = Path(__file__).parents[2]
_TINY = f"--config={_ROOT / 'tests/support/tiny.py'}"


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
    ("module", "function"),
    [pytest.param(checkpoint, "save", marks=pytest.mark.slow), (weights, "commit_net")],
)
def test_a_kill_around_a_checkpoint_does_not_lose_the_best_student(
    finished_run, tiny_config, tmp_path, monkeypatch, module, function
):
    """Kills before the best epoch's checkpoint, and between it and the publication of the student."""
    best = weights.load_net(finished_run / "student_best").net.metrics["epoch"]
    tiny_config.teacher.checkpoint = str(finished_run)
    tiny_config.checkpoint.every_seconds = 0.0
    stage_net = weights.stage_net

    def stage_and_arm(*arguments):
        stage_net(*arguments)
        if _has_epochs(tmp_path, best):
            monkeypatch.setattr(module, function, _killed)

    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(weights, "stage_net", stage_and_arm)
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
    """Sends SIGKILL to compare.py alone and immediately reruns the same command."""
    cell = tmp_path / "cudfkd/seed_0"
    command = [
        *(sys.executable, _ROOT / "scripts/compare.py", _TINY, "--methods=cudfkd", "--seeds=0"),
        *(f"--config.teacher.checkpoint={finished_run}", "--config.checkpoint.every_seconds=1000"),
        *("--config.distill.rounds_per_epoch=10", "--config.distill.epochs=3", f"--workdir={tmp_path}"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _wait_for(_has_epochs, cell, 1)
        child = int((cell / ".lock").read_text())
        assert _is_alive(child)
        process.kill()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "| cudfkd | 1/1 |" in done.stdout, done.stdout + done.stderr
    assert not _is_alive(child)
    said = cell.with_name("seed_0.log").read_text()
    assert said.count("stopped by SIGTERM") == said.count("resuming from step") == 1


_ELSEWHERE = """
import subprocess, sys
from cudfkd_jax.experiments import launcher
launcher.elsewhere(subprocess.run, ["sh", "-c", "echo $PPID > $0; sleep 5", sys.argv[1]])
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


def _namespaced(*script: str, arguments=()) -> subprocess.CompletedProcess[str]:
    """Runs shell lines in a private mount namespace; skips the test if that is not permitted."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    return subprocess.run(
        [unshare, "-rm", "sh", "-ec", "\n".join(script), "sh", *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_a_full_disk_ends_a_run_with_one_line_and_room_lets_it_go_on(finished_run, tmp_path):
    (tmp_path / "disk").mkdir()
    run = '"$PYTHON" -m cudfkd_jax.main "$@" --workdir="$disk/run"'
    done = _namespaced(
        'disk=$1; shift; mount -t tmpfs -o size=320k none "$disk"',
        *(f"{run} || echo status $?", 'ls "$disk/run/checkpoints"', "echo room"),
        'mount -o remount,size=100m "$disk"',
        *(f"{run}", 'cp -r "$disk/run" "$disk"/../kept'),
        arguments=(
            *(tmp_path / "disk", _TINY, f"--config.teacher.checkpoint={finished_run}"),
            *("--config.checkpoint.every_seconds=0", "--config.log.tensorboard=true"),
        ),
    )
    first, _, second = done.stdout.partition("room\n")
    assert done.returncode == 0, done.stderr
    assert "status 1\n" in first and re.search(r"^0+\d+\.sha256\.json$", first, re.MULTILINE), first
    (error,) = done.stderr.splitlines()
    assert error.startswith("cudfkd: error: ") and "No space left on device" in error and "make room" in error
    assert "resuming from step" in second and "finished" in second
    assert weights.load_net(tmp_path / "kept/student").net.arch == tiny.NET


@pytest.mark.parametrize("room", [0, 1_000, 30_000])
def test_a_checkpoint_that_cannot_be_written_leaves_those_before_it(tmp_path, capfd, room):
    """Uses RLIMIT_FSIZE, the largest file size, in place of a quota."""
    state = {f"w{n}": np.random.default_rng(n).random(10_000) for n in range(8)}
    checkpoint.save(tmp_path, 1, state, keep=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(
            RunFailedError, match=r"000000002 cannot be written: File too large.*; fix that"
        ) as caught:
            checkpoint.save(tmp_path, 2, state, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")
    restored, damaged = checkpoint.restore_newest(tmp_path, state)
    assert not damaged and all((restored[name] == state[name]).all() for name in state)
    checkpoint.save(tmp_path, 3, state, keep=2)
    # The failed attempt's files are removed.
    assert {path.name[:9] for path in tmp_path.iterdir()} == {"000000001", "000000003"}


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path):
    files.write_bytes(tmp_path / "file", b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/file'"):
            files.write_bytes(tmp_path / "file", bytes(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


_REFUSED_AND_EVALUATED = """
import sys
from cudfkd_jax import main
workdir = f"--workdir={sys.argv[1]}"
print(main.main([sys.argv[2], workdir]), main.main(["--stage=evaluate", workdir]))
"""


def test_a_read_only_workdir_is_refused_and_can_be_read(run_copy):
    done = _namespaced(
        'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; "$PYTHON" -c "$3" "$1" "$2"',
        arguments=(run_copy, _TINY, _REFUSED_AND_EVALUATED),
    )
    assert "student_best" in done.stdout and done.stdout.endswith("2 0\n"), done.stderr
    assert done.stderr == (
        f"cudfkd: error: --workdir={run_copy}: {run_copy} is not writable; name a folder you may write to\n"
    )


def test_a_file_where_checkpoints_belong_ends_the_run_with_one_line(finished_run, tmp_path, tiny_config):
    tiny_config.teacher.checkpoint = str(finished_run)
    tiny_config.checkpoint.every_seconds = 0.0
    write = trainer.records.append
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(RunFailedError, match=r"cannot be written: .*Not a dir"),
    ):
        patch.setattr(
            trainer.records, "append", lambda *a: ((tmp_path / trainer.CHECKPOINTS).write_text("mine"), write(*a))
        )
        stages.run(tiny_config, "distill", tmp_path)
    assert (tmp_path / trainer.CHECKPOINTS).read_text() == "mine"


def _unfinished(run: Path, without=("summary.json", "student", "student_best")) -> Path:
    """Turns a completed run into an interrupted one."""
    for name in without:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run


def test_a_workdir_may_be_a_link_and_the_current_directory_another(run_copy, tmp_path, tiny_config, monkeypatch):
    _unfinished(run_copy)
    (tmp_path / "link").symlink_to(run_copy)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said: list[str] = []
    stages.run(tiny_config, "all", Path("../link"), said.append)
    assert "finished: ../link" in said[-1]
    assert weights.load_net(run_copy / "student").net.arch == tiny.NET and (tmp_path / "link").is_symlink()


def test_what_a_run_was_given_is_found_from_another_directory(finished_run, tmp_path, tiny_config, monkeypatch):
    """Relative paths on the command line refer to the current directory; saved ones do not depend on it."""
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(40) % 10
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    np.savez("data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    Path("teacher").symlink_to(finished_run)
    tiny_config.data.update(source="npz", dir="data.npz")
    tiny_config.teacher.checkpoint = "teacher"
    stages.run(tiny_config, "distill", Path("run"), lambda text: None)
    monkeypatch.chdir(tmp_path)
    config = loading.read_config(tmp_path / "here/run")
    assert "student" in evaluate.evaluate_run(config, Path("here/run"), lambda text: None)
    said: list[str] = []
    stages.run(config, "distill", Path("here/run"), said.append)
    assert "finished: here/run" in said[-1]


@pytest.mark.parametrize("name", ["checkpoints", "student", "samples", "teacher"])
def test_links_out_of_the_workdir_are_not_followed(run_copy, tmp_path, tiny_config, name):
    _unfinished(run_copy, ("summary.json", "teacher/summary.json"))
    (run_copy / name).rename(tmp_path / "outside")
    (run_copy / name).symlink_to(tmp_path / "outside")
    before = snapshot(tmp_path)
    with pytest.raises(
        UserError, match=rf"{name} is a link to .*/outside, and a run writes to its own workdir alone"
    ):
        stages.run(tiny_config, "teacher" if name == "teacher" else "all", run_copy)
    assert snapshot(tmp_path) == before


def test_a_finished_teacher_may_be_a_link(run_copy, tmp_path, tiny_config):
    (run_copy / "teacher").rename(tmp_path / "outside")
    (run_copy / "teacher").symlink_to(tmp_path / "outside")
    before = snapshot(tmp_path / "outside")
    stages.run(tiny_config, "all", _unfinished(run_copy), lambda text: None)
    assert snapshot(tmp_path / "outside") == before and (run_copy / "summary.json").exists()


def test_links_of_files_are_replaced_and_not_followed(run_copy, tmp_path, tiny_config):
    """Checks that files outside the workdir are unchanged."""
    _unfinished(run_copy, ("summary.json",))
    tiny_config.log.report = True
    linked = ("metrics.jsonl", "config.json", "student/weights.msgpack", "report.html")
    for index, name in enumerate(linked):
        (run_copy / name).rename(tmp_path / str(index))
        (run_copy / name).symlink_to(tmp_path / str(index))
    before = {index: (tmp_path / str(index)).read_bytes() for index in range(len(linked))}
    stages.run(tiny_config, "all", run_copy, lambda text: None)
    assert {index: (tmp_path / str(index)).read_bytes() for index in range(len(linked))} == before
    assert not any((run_copy / name).is_symlink() for name in linked)


def test_a_workdir_that_is_a_link_to_nothing_is_refused(tmp_path, tiny_config):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(UserError, match=r"link is a link to .*gone, which does not exist; fix it"):
            stages.run(tiny_config, "all", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
