"""Tests of the workdir: one owner at a time, and one configuration permanently."""

import errno
import os
import subprocess
import sys

import pytest
from helpers import snapshot

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir

_HOLD = """
import fcntl, os, sys
with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print(os.getpid(), file=lock, flush=True)
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process with the lock of `tmp_path / "run"`."""
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_live_owner_is_named_and_nothing_is_touched(tmp_path, holder):
    before = snapshot(tmp_path)
    with (
        pytest.raises(UserError, match=rf"in use by a running process \(pid {holder.pid}\)"),
        workdir.lock(tmp_path / "run"),
    ):
        raise AssertionError("two owners")
    assert snapshot(tmp_path) == before


def test_a_killed_owner_releases_the_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with workdir.lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), workdir.lock(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    with workdir.lock(tmp_path / "a" / "b"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(number, tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    said = []
    with workdir.lock(tmp_path / "run", said.append):
        workdir.check_free(tmp_path / "run")
    assert said == [f"warning: the file system of {tmp_path / 'run'} has no locks; start no second run there"]


def test_other_errors_of_a_lock_are_raised(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="broken"), workdir.lock(tmp_path / "run"):
        raise AssertionError("locked")


def test_folders_that_can_be_made_are_accepted_and_not_made(tmp_path, monkeypatch):
    workdir.check_writable(tmp_path)
    workdir.check_writable(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    workdir.check_writable(workdir.Path("runs/x"))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_made_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below", file / "below" / "more"):
        with pytest.raises(UserError, match="file is a file"):
            workdir.check_writable(path)
    with pytest.raises(UserError, match="File name too long"):
        workdir.check_writable(tmp_path / ("x" * 300))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="is not writable"):
        workdir.check_writable(tmp_path / "a")


def test_the_same_settings_resume_and_others_are_listed(tmp_path):
    settings = {"seed": 0, "data.image_shape": (8, 8, 1), "a": 1.5, "teacher": None}
    workdir.check_config(tmp_path, settings)  # no configuration yet
    workdir.write_config(tmp_path, settings, settings)
    workdir.check_config(tmp_path, settings)
    with pytest.raises(UserError) as caught:
        workdir.check_config(tmp_path, {"seed": 1, "data.image_shape": (8, 8, 3), "a": 1.5, "b": 2})
    text = str(caught.value)
    assert "seed is 0 there and 1 here" in text
    assert "data.image_shape is [8, 8, 1] there and [8, 8, 3] here" in text
    assert "b is unset there and 2 here" in text
    assert "1.5" not in text


def test_only_the_same_test_images_resume_if_any_are_recorded(tmp_path):
    workdir.check_test_images(tmp_path, "a" * 64)  # no run yet
    workdir.write_config(tmp_path, {}, {})
    workdir.check_test_images(tmp_path, "a" * 64)
    workdir.write_config(tmp_path, {}, {}, "a" * 64)
    workdir.check_test_images(tmp_path, "a" * 64)
    workdir.check_test_images(tmp_path, None)
    assert workdir.read_test_images(tmp_path) == "a" * 64
    with pytest.raises(UserError, match=r"other test images \(digest a{12} there and b{12} here\); restore them"):
        workdir.check_test_images(tmp_path, "b" * 64)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"results": 3}', '{"results": ["ab", 3]}', "\0"])
def test_a_damaged_configuration_is_an_error(tmp_path, content):
    (tmp_path / workdir.CONFIG).write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        workdir.check_config(tmp_path, {"seed": 0})
