"""Tests of a command's surroundings: the cache, closed pipes and terminals, missing devices, other systems."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cudfkd_jax.runtime import cli
from cudfkd_jax.training.progress import Progress

MAIN = (sys.executable, "-m", "cudfkd_jax.main")


@pytest.fixture(name="caches")
def _caches(monkeypatch):
    """Calls `use_compilation_cache` without JAX's own setting and returns the folder it sets, if any."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)

    def call():
        cli.use_compilation_cache()
        return settings.get("jax_compilation_cache_dir")

    call.settings = settings
    return call


def test_the_cache_is_in_the_home_directory(caches, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert caches() == str(tmp_path / ".cache/cudfkd_jax/xla")


@pytest.mark.parametrize(("given", "changed"), [(None, 0.2), ("5", None)])
def test_the_time_from_which_programs_are_cached_can_be_set(caches, monkeypatch, given, changed):
    name = "jax_persistent_cache_min_compile_time_secs"
    monkeypatch.delenv(name.upper(), raising=False)
    if given:
        monkeypatch.setenv(name.upper(), given)
    caches()
    assert caches.settings.get(name) == changed


def test_without_a_home_nothing_is_cached(caches, monkeypatch):
    def no_entry(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert caches() is None


def test_where_home_cannot_be_written_nothing_is_cached(caches, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert caches() is None


@pytest.mark.parametrize("arguments", [["--help"], ["--stage=none"]])
def test_closed_pipes_are_quiet(arguments):
    """A pipe that is closed on either side ends the command without a word."""
    read, write = os.pipe()
    os.close(read)
    stream = "stdout" if arguments == ["--help"] else "stderr"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: write}
    done = subprocess.run([*MAIN, *arguments], **streams, text=True, check=False)
    os.close(write)
    assert done.returncode == (141 if stream == "stdout" else 2)
    assert not done.stdout and not done.stderr


class _Gone(io.StringIO):
    """A terminal that was closed, or a pipe."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, "")

    def isatty(self):
        return self.number == errno.EIO


def test_a_closed_terminal_does_not_end_a_run(monkeypatch):
    monkeypatch.setattr(sys, "stdout", _Gone(errno.EIO))
    with Progress("distill", epochs=2, steps_per_epoch=2, first_step=0, tensorboard=None) as progress:
        monkeypatch.setattr(sys, "stderr", _Gone(errno.EIO))
        for step in range(4):
            progress.step(step)
            progress.say("anything")


def test_a_closed_pipe_does(monkeypatch):
    with Progress("distill", epochs=2, steps_per_epoch=2, first_step=0, tensorboard=None) as progress:
        monkeypatch.setattr(sys, "stdout", _Gone(errno.EPIPE))
        with pytest.raises(BrokenPipeError):
            progress.say("anything")


def test_a_platform_that_jax_lacks_is_one_line(tmp_path):
    config = f"--config={Path(__file__).parents[1] / 'support' / 'tiny.py'}"
    done = subprocess.run(
        [*MAIN, config, f"--workdir={tmp_path / 'run'}"],
        env=os.environ | {"JAX_PLATFORMS": "none_such"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "JAX_PLATFORMS=none_such and this JAX finds no such device; leave it out" in done.stderr
    assert not (tmp_path / "run").exists()


def test_windows_is_refused_in_one_line():
    code = "import sys; sys.platform = 'win32'; import cudfkd_jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Windows is not supported" in done.stderr
