"""Compares two real processes on this machine, connected through JAX and Gloo, with one.

Most runs use the whole command line, in float32, on two-layer networks. Losses then agree to 1e-5 of their
value; those that are small differences of large numbers (KL divergences of nearly equal logits) to 1e-6.
"""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny

from cudfkd_jax import main
from cudfkd_jax.config import build, loading, validate
from cudfkd_jax.experiments import compare
from cudfkd_jax.runs import evaluate
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import checkpoint

TIMES = ("seconds", "evaluation_seconds", "images_per_s")
ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"  # contains the networks
TIMEOUT = 300  # seconds, on a busy machine; a hang fails the test
EPOCHS = 2
SETTINGS = (
    *("--config.distill.rounds_per_epoch=1", "--config.distill.loss=l1", f"--config.distill.epochs={EPOCHS}"),
    *("--config.log.samples_every_epochs=2", "--config.checkpoint.every_seconds=0"),
)
# A process that gets a signal at the message of the first epoch of a stage.
_SIGNALLED = """
import os, sys
from cudfkd_jax import main
from cudfkd_jax.runtime import cli
from cudfkd_jax.training import progress
shown = progress.Progress.epoch
def epoch(self, record):
    shown(self, record)
    if self._stage == {!r}:
        os.kill(os.getpid(), {})
progress.Progress.epoch = epoch
cli.leave(main.main)
"""


class Process(NamedTuple):
    """The outcome of one process."""

    status: int
    out: str
    err: str


def _address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def _slurm() -> list[dict[str, str]]:
    """Returns SLURM's environment of each of two tasks on this machine."""
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    job["JAX_COORDINATOR_PORT"] = _address().rpartition(":")[2]  # the job number's port might be in use
    return [job | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(2)]


def _run_all(commands: list[list], logs: Path, own=None, **environment) -> list[Process]:
    """Runs commands in parallel to their end; none may outlive the test. `own`: an environment for each."""
    logs.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(map(str, (ROOT, SUPPORT, ROOT / "tests/methods")))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path} | environment
    environment = {name: value for name, value in environment.items() if "proxy" not in name.lower()}
    running, files = [], []
    try:
        for index, command in enumerate(commands):
            files.append(((logs / f"{index}.out").open("w+"), (logs / f"{index}.err").open("w+")))
            out, err = files[-1]
            env = environment | (own[index] if own else {})
            running.append(subprocess.Popen(command, cwd=SUPPORT, env=env, stdout=out, stderr=err))
        deadline = time.monotonic() + TIMEOUT
        for process in running:
            process.wait(deadline - time.monotonic())
    finally:
        for process in running:
            process.kill()
            process.wait()
        texts = [[file.seek(0) or file.read() for file in pair] for pair in files]
        for file in (file for pair in files for file in pair):
            file.close()
    return [Process(process.returncode, *text) for process, text in zip(running, texts, strict=True)]


def _run_two(workdir: Path, *arguments: str, own=None, signalled=None, slurm=False) -> list[Process]:
    """Runs the configuration on two processes.

    Args:
        workdir: the first process's; the second gets a folder that does not exist.
        arguments: for all processes, added to `SETTINGS`.
        own: further arguments, by process.
        signalled: (process, stage, number) of a signal at the end of the process's first epoch of the stage.
        slurm: whether processes find each other through SLURM's environment and not through arguments.
    """
    address, commands = _address(), []
    for index in range(2):
        program = ["-m", "cudfkd_jax.main"]
        if signalled and signalled[0] == index:
            program = ["-c", _SIGNALLED.format(signalled[1], int(signalled[2]))]
        folder = workdir if index == 0 else workdir.with_name(f"{workdir.name}_of_{index}")
        joined = [f"--config.distributed.{name}" for name in ("processes=2", f"process={index}")]
        joined = [f"--config.distributed.coordinator={address}", *joined]
        joined = ["--config.distributed.detect=true"] if slurm else joined
        commands.append(
            [
                *(sys.executable, *program, f"--config={SUPPORT / 'tiny.py'}", f"--workdir={folder}"),
                *(*SETTINGS, *joined, *arguments, *(own or {}).get(index, ())),
            ]
        )
    environments = _slurm() if slurm else None
    done = _run_all(commands, workdir.with_name(f"{workdir.name}_logs"), environments)
    assert not list(workdir.parent.glob(f"{workdir.name}_of_*")), "a process other than the first has written"
    return done


def _run_here(workdir: Path) -> Process:
    """Runs the configuration on one process, this one."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main.main([f"--config={SUPPORT / 'tiny.py'}", f"--workdir={workdir}", *SETTINGS])
    return Process(status, out.getvalue(), "")


@pytest.fixture(scope="module", name="one")
def _one(tmp_path_factory):
    """A completed run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert _run_here(folder).status == 0
    return folder


@pytest.fixture(scope="module", name="other")
def _other(tmp_path_factory):
    """Begins the same on two processes under SLURM and continues on one; returns the outcomes."""
    folder = tmp_path_factory.mktemp("other") / "run"
    # Only the second process gets the signal.
    first = _run_two(folder, signalled=(1, "distill", signal.SIGTERM), slurm=True)
    epochs = len(_records(folder))
    return folder, [first, [_run_here(folder)]], epochs


def _records(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def _assert_same_metrics(one: Path, other: Path) -> None:
    for part in ("teacher", ""):
        left, right = _records(one / part), _records(other / part)
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert b == pytest.approx(a, rel=1e-5, abs=1e-6)


@pytest.mark.long
def test_two_processes_measure_what_one_measures_also_after_a_change(one, other):
    folder, _, _ = other
    assert len(_records(folder)) == EPOCHS
    _assert_same_metrics(one, folder)


@pytest.mark.long
def test_a_signal_to_one_process_saves_the_state_and_ends_all(other):
    _, runs, epochs = other
    stopped = 128 + signal.SIGTERM
    assert [[process.status for process in run] for run in runs] == [[stopped, stopped], [0]], runs
    assert epochs == 1
    assert "stopped by SIGTERM" in runs[0][0].err
    assert "distill: resuming from step " in runs[1][0].out


@pytest.mark.long
def test_only_the_first_process_writes_and_prints(one, other):
    """The second process gets a separate folder, which is never created (see `_run_two`)."""
    folder, runs, _ = other

    def names(workdir):
        files = (path for path in workdir.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
        return sorted(str(path.relative_to(workdir)) for path in files)

    assert names(folder) == names(one)
    for run, epoch in zip(runs, (1, 2), strict=True):
        assert run[0].out.count("distill  epoch ") == 1 and f"distill  epoch {epoch}/2" in run[0].out
        for second in run[1:]:
            said = [line for line in (second.out + second.err).splitlines() if line and "[Gloo]" not in line]
            assert said == []


@pytest.mark.long
def test_a_run_does_not_record_its_place(other):
    """So the run can be resumed anywhere and evaluated by a single process."""
    held = json.loads((other[0] / "config.json").read_text())
    assert not [key for key in (*held["config"], *held["results"]) if key.startswith("distributed")]


@pytest.mark.long
def test_a_process_that_is_killed_takes_the_other_with_it(tmp_path):
    longer = ("--stage=teacher", "--config.teacher.epochs=2")
    first, second = _run_two(tmp_path / "run", *longer, signalled=(1, "teacher", signal.SIGKILL))
    assert second.status == -signal.SIGKILL
    assert first.status not in (0, -signal.SIGKILL)  # the process's own error, or termination by JAX


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "own", "text"),
    [
        (("--config.distill.batch_size=33",), {}, "distill.batch_size=33 cannot be divided by 2 devices"),
        ((), {1: ("--config.seed=7",)}, "process 1: seed is 7 here and 0 in the first process"),
        ((), {1: ("--config.data.dir=nowhere.npz",)}, r"process 1: .*nowhere\.npz"),
    ],
    ids=["found by the first", "another setting", "found by the second"],
)
def test_an_error_of_one_process_is_one_line_and_ends_all(tmp_path, arguments, own, text):
    images, labels = np.full((40, 8, 8, 1), 200, np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    if "data.dir" in str(own):
        source = ("--config.data.source=npz", f"--config.data.dir={tmp_path / 'data.npz'}")
        arguments = (*source, "--config.teacher.batch_size=40")
    folder = tmp_path / "runs" / "run"
    done = _run_two(folder, *arguments, own=own)
    assert [process.status for process in done] == [2, 2], done
    (line,) = [line for line in done[0].err.splitlines() if "[Gloo]" not in line]
    assert line.startswith("cudfkd: error: ") and re.search(text, line), line
    assert "cudfkd" not in done[1].out + done[1].err
    assert not folder.exists()


@pytest.mark.slow
def test_methods_with_memories_reach_the_same_state(tmp_path):
    """Compares in float64, as on two devices of one process (`test_inversion.py`, `test_pre_dfkd.py`).

    Memories and pools have the same shape for every number of processes.
    """
    address = _address()
    commands = [
        [
            [sys.executable, __file__, str(tmp_path / f"{count}.npz"), address, str(count), str(n)]
            for n in range(count)
        ]
        for count in (1, 2)
    ]
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    for command in commands:
        done = _run_all(command, tmp_path, JAX_ENABLE_X64="True", XLA_FLAGS=flags)
        assert not any(process.status for process in done), done
    one, two = (np.load(tmp_path / f"{count}.npz") for count in (1, 2))
    assert one.files == two.files and {name.split("/")[0] for name in one.files} == {"adi", "pre_dfkd"}
    for name in one.files:
        assert one[name].shape == two[name].shape and one[name].dtype == two[name].dtype
        a, b = (state[name].astype(np.float64) for state in (one, two))
        scale = np.max(np.abs(a), initial=1e-4)  # gradients of biases before BatchNorm are only noise
        np.testing.assert_allclose(b / scale, a / scale, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"coordinator": "node1"}, "distributed.coordinator=node1 is not host:port"),
        ({"coordinator": "node1:70000"}, "distributed.coordinator=node1:70000 is not host:port"),
        ({"coordinator": "node1:1234"}, "distributed.processes is missing"),
        ({"coordinator": "node1:1234", "processes": 2}, "distributed.process is missing"),
        ({"processes": 2, "process": 0}, "distributed.coordinator is missing"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "distributed.process=2 of distributed.processes=2"),
        ({"processes": -1}, "distributed.processes=-1 must not be negative"),
    ],
)
def test_how_processes_find_each_other_is_checked_before_they_look(settings, text):
    config = tiny.get_config()
    config.distributed.update(settings)
    with pytest.raises(UserError, match=text):
        validate.check_processes(config)


def test_an_unreachable_cluster_is_one_line(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI"))}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cudfkd_jax.main", f"--config={SUPPORT / 'tiny.py'}", f"--workdir={tmp_path}"),
            "--config.distributed.detect=true",
        ],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("cudfkd: error: the processes of the run do not find each other: ")
    assert done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_the_environment_of_slurm_is_picked_up(monkeypatch):
    """Checks the calls of JAX under SLURM and with explicit settings; without either, there is no call."""
    asked = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **kwargs: asked.append((args, kwargs)))
    config = tiny.get_config()
    build.connect(config, print)
    assert asked == []
    config.distributed.detect = True
    build.connect(config, print)
    config.distributed.update(detect=False, coordinator="node1:1234", processes=4, process=0)
    build.connect(config, lambda text: None)
    assert asked == [
        ((None, None, None), {"cluster_detection_method": None}),
        (("node1:1234", 4, 0), {"cluster_detection_method": "deactivate"}),
    ]


def test_several_processes_are_refused_where_one_does_the_work(tmp_path):
    config = tiny.get_config()
    config.distributed.detect = True
    with pytest.raises(UserError, match="--stage=evaluate takes one process; leave"):
        evaluate.evaluate_run(config, tmp_path)
    with pytest.raises(UserError, match="a comparison takes one process"):
        file, several = str(SUPPORT / "tiny.py"), ["--config.distributed.detect=true"]
        compare.compare(file, ["cudfkd"], [0], tmp_path / "compared", several)
    assert list(tmp_path.iterdir()) == []


def test_every_process_has_the_same_default_workdir():
    changes = {"distill.epochs": 3}
    folders = {
        loading.run_name("configs/digits.py", changes | {"distributed.process": n, "distributed.processes": 2})
        for n in range(2)
    }
    assert folders == {loading.run_name("configs/digits.py", changes)}


def test_one_process_asks_nobody(monkeypatch):
    """Checks that values of any type are returned, and errors raised, unchanged."""
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", None)
    thing, rows = object(), np.arange(3)
    assert processes.from_first(lambda: thing) is thing and processes.together(lambda: thing) is thing
    assert processes.largest(7) == 7 and processes.gather(rows) is rows and processes.is_first()
    with pytest.raises(ZeroDivisionError):
        processes.from_first(lambda: 1 / 0)


def _state_after(kinds, method) -> dict[str, np.ndarray]:
    import jax
    import nets
    import rounds

    from cudfkd_jax.runtime.devices import local_devices
    from cudfkd_jax.training.loops import distillation_steps

    devices = local_devices()
    parts = distillation_steps(rounds.problem(method)).compile(devices)
    state = devices.replicate(rounds.in_float64(rounds.initial_state(method)))
    teacher = devices.replicate(rounds.in_float64(nets.teacher_variables()))
    for kind in kinds:
        state = getattr(parts, kind)(state, teacher)
    state = devices.unreplicate(state)
    assert not state.failed
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.to_host(state))
    return {jax.tree_util.keystr(path): np.nan_to_num(leaf, posinf=0) for path, leaf in leaves}


def _measure(file: str, address: str, count: int, index: int) -> None:
    processes.connect(coordinator=address if count > 1 else "", processes=count, process=index, detect=False)
    import optax
    import replay_nets
    import test_inversion

    # With SGD, a factor in the gradient is a factor in the update.
    adi = test_inversion.method(optimiser=optax.sgd(0.5))
    pre_dfkd = replay_nets.pre_method(optimiser=replay_nets.SGD, memory_optimiser=replay_nets.SGD)
    states = {
        "adi": _state_after(("synthesis", "finish", "student"), adi),
        "pre_dfkd": _state_after(("finish", "student"), pre_dfkd),
    }
    if processes.is_first():
        np.savez(file, **{f"{name}/{path}": x for name, state in states.items() for path, x in state.items()})


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
