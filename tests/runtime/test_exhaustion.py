"""Tests of memory exhaustion: refused in advance if certain, otherwise one line that names settings to lower."""

import json
import re
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny
from helpers import snapshot

from cudfkd_jax import main
from cudfkd_jax.config import access, build
from cudfkd_jax.runs import distill, evaluate, supervised
from cudfkd_jax.runtime import memory
from cudfkd_jax.runtime.errors import UserError

_JAX = jax.errors.JaxRuntimeError
_TINY = f"--config={tiny.__file__}"


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (
            _JAX("RESOURCE_EXHAUSTED: Out of memory allocating 64 bytes."),
            r"on the device \(RESOURCE_EXHAUSTED: .*64",
        ),
        (
            _JAX("INTERNAL: Error dispatching computation: Out of memory\nallocating 9"),
            r"on the device \(INTERNAL: ",
        ),
        (_JAX("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: x"), "on the device"),
        (_JAX("RESOURCE_EXHAUSTED: " + "a buffer\n" * 1000), r"on the device \(.{120}\)"),
        (MemoryError("Unable to allocate 64.0 GiB"), r"on this machine \(Unable to allocate 64.0 GiB\)"),
        (MemoryError(), "on this machine"),
    ],
)
def test_memory_that_ran_out_is_recognised(error, found):
    assert re.fullmatch(f"out of memory {found}.*", memory.out_of_memory(error))


@pytest.mark.parametrize(
    "error", [_JAX("INTERNAL: another"), ValueError("out of memory"), UserError("x"), OSError()]
)
def test_other_errors_are_not(error):
    assert memory.out_of_memory(error) == ""
    with pytest.raises(type(error)), memory.enough_memory("distill", {"distill.batch_size": 1}):
        raise error


@pytest.mark.parametrize("method", ["cudfkd", "adi", "cmi", "mb_dfkd"])
@pytest.mark.parametrize("part", ["teacher", "scratch", "kd", "distill"])
def test_settings_to_lower_belong_to_the_run(method, part):
    config = tiny.get_config(f"method={method}")
    settings = build.memory_settings(config, part)
    assert f"{part}.batch_size" in settings and list(settings)[-1] == "evaluation.batch_size"
    assert all(value == access.get(config, key) > 0 for key, value in settings.items())
    assert ("memory.capacity" in settings) == (part == "distill" and method == "mb_dfkd")
    assert ("distill.epochs" in settings) == (part == "distill" and method in ("adi", "cmi"))


@pytest.fixture
def ends(capsys):
    """Runs a command that must run out of memory; returns its last line."""

    def run(*arguments):
        assert main.main(arguments) == 1
        lines = capsys.readouterr().err.splitlines()
        said = [line for line in lines if line.startswith("cudfkd: ")]
        assert len(said) == 1 and said[0] == lines[-1] and "Traceback" not in "".join(lines)
        return said[0].removeprefix("cudfkd: error: ")

    return run


@pytest.mark.parametrize(
    ("module", "name", "stage", "part"),
    [
        (supervised, "train", "teacher", "teacher"),
        (supervised, "train", "scratch", "scratch"),
        (distill, "distill", "distill", "distill"),
    ],
)
def test_every_part_names_the_settings_to_lower(
    monkeypatch, finished_run, tmp_path, ends, module, name, stage, part
):
    def exhausted(*args):
        raise _JAX("RESOURCE_EXHAUSTED: Out of memory allocating 64 bytes.")

    monkeypatch.setattr(module, name, exhausted)
    given = [] if stage == "teacher" else [f"--config.teacher.checkpoint={finished_run}"]
    line = ends(_TINY, f"--stage={stage}", f"--workdir={tmp_path / 'run'}", *given)
    assert line.startswith(f"{part}: out of memory on the device (RESOURCE_EXHAUSTED: Out of memory allocating 64")
    assert f"lower one of --config.{part}.batch_size (" in line
    assert line.endswith("in another --workdir, or evaluation.batch_size (512) in this one")


def test_outside_of_the_parts_there_is_a_line_too(monkeypatch, ends, finished_run):
    def exhausted(*args):
        raise MemoryError

    monkeypatch.setattr(evaluate, "evaluate_run", exhausted)
    line = ends("--stage=evaluate", f"--workdir={finished_run}")
    assert line == "out of memory on this machine; lower --config.evaluation.batch_size, or free memory"


@pytest.mark.slow
def test_a_batch_that_no_machine_holds(finished_run, tmp_path, ends):
    """Makes XLA request a terabyte."""
    line = ends(
        *(
            _TINY,
            "--stage=distill",
            f"--workdir={tmp_path / 'run'}",
            f"--config.teacher.checkpoint={finished_run}",
        ),
        f"--config.distill.batch_size={2**24}",
    )
    assert re.match(r"distill: out of memory on the device \(.*Out of memory allocating \d{12,} bytes", line)
    assert f"lower one of --config.distill.batch_size ({2**24})" in line


@pytest.fixture
def little_memory():
    """Limits this process to 16 GiB more than it has; otherwise a large machine would have enough."""
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + 2**34, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_batch_of_images_that_does_not_fit(run_copy, ends, little_memory):
    """Makes NumPy request 64 GiB; the run resumes with less."""
    (run_copy / "summary.json").unlink()
    before = snapshot(run_copy / "checkpoints")
    line = ends(_TINY, f"--workdir={run_copy}", f"--config.evaluation.batch_size={2**24}")
    assert re.match(r"distill: out of memory on (this machine|the device) \(.* alloc", line)
    assert snapshot(run_copy / "checkpoints") == before
    assert main.main([_TINY, f"--workdir={run_copy}"]) == 0
    assert json.loads((run_copy / "summary.json").read_text())["student"]


# Before the run


def test_a_state_larger_than_the_device_is_refused(monkeypatch):
    state = {"a": jax.ShapeDtypeStruct((2**30, 1024), jnp.float32), "b": jnp.zeros(3), "key": jax.random.key(0)}
    monkeypatch.setattr(memory, "device_memory", lambda: 2**42 + 12 + 8)
    memory.check_fits("distill", state, {"distill.batch_size": 4})
    monkeypatch.setattr(memory, "device_memory", lambda: 2**42 + 12 + 7)
    with pytest.raises(UserError, match=r"take 4096 GiB and the device has 4096; .*lower one of --config.x \(4\)"):
        memory.check_fits("distill", state, {"x": 4})


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < memory.device_memory() < 2**48


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("cudfkd", "generator.width", 2**31 - 1),
        ("cudfkd", "memory.capacity", 2**31 - 8),
        ("adi", "distill.epochs", 2**27),
        ("cmi", "cmi.head_width", 2**31 - 1),
        ("cudfkd", "teacher.arch", "wrn10_99999999999999999999"),
        ("cudfkd", "student.arch", "wrn10_99999999"),
    ],
)
def test_sizes_that_no_machine_holds_are_refused_before_anything_is_written(tmp_path, capsys, method, key, value):
    arguments = [f"{_TINY}:method={method}", f"--workdir={tmp_path / 'run'}", f"--config.{key}={value}"]
    assert main.main(arguments) == 2
    line = capsys.readouterr().err
    assert "the networks and what is kept beside them take" in line and len(line.splitlines()) == 1
    assert key.endswith("arch") or f"{key} ({value})" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["distill.batch_size", "teacher.batch_size", "evaluation.synthetic_images"])
def test_a_batch_that_crashes_the_compiler_is_refused(tmp_path, capsys, key):
    arguments = [_TINY, f"--workdir={tmp_path / 'run'}", f"--config.{key}={2**25}"]
    assert main.main(arguments) == 2
    line = capsys.readouterr().err
    assert f"{key}={2**25} images of data.image_shape=(8, 8, 1) must be less than 2**31 numbers" in line
    assert not list(tmp_path.iterdir())
