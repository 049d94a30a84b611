"""The folder of a run: one owner at a time, one fixed configuration."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.files import read_object, write_json

CONFIG = "config.json"
TEACHER = "teacher weights (sha256)"  # the setting that replaces all of a teacher's
TEST_IMAGES = "test images (sha256)"  # the key of their digest, beside the settings
_STAGES = {"distill": "", "teacher": "teacher", "scratch": "scratch", "kd": "kd"}  # folders that hold settings
_LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # of a file system without flock


def begun_stages(workdir: Path) -> dict[str, Path]:
    """Returns the stages that have begun in a run's folder, the data-free one first, and the folder of each."""
    folders = {stage: workdir / name for stage, name in _STAGES.items()}
    return {stage: folder for stage, folder in folders.items() if (folder / CONFIG).exists()}


def check_writable(workdir: Path) -> None:
    """Checks, without touching the disk, that a folder can be created and written to.

    Raises:
        UserError: a part of the path is a file or a dangling link, or writing is not permitted.
    """
    places = (workdir.absolute(), *workdir.absolute().parents)
    try:
        dangling = next((path for path in places if path.is_symlink() and not path.exists()), None)
        existing = next(path for path in places if path.exists())
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}; name another folder") from error
    if dangling:
        raise UserError(
            f"--workdir={workdir}: {dangling} is a link to {dangling.readlink()}, which does not exist; fix it"
        )
    if not existing.is_dir():
        raise UserError(f"--workdir={workdir}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: {existing} is not writable; name a folder you may write to")


@contextlib.contextmanager
def lock(workdir: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Locks the folder for this process; the lock ends with the process, even if it is killed.

    On a file system without locks it warns, and nothing keeps a second process away.

    Raises:
        UserError: another live process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(workdir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _acquire(descriptor, workdir):
            say(f"warning: the file system of {workdir} has no locks; start no second run there")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_free(workdir: Path) -> None:
    """Checks, without touching the folder, that no other live process holds it.

    Raises:
        UserError: the folder is in use; the message names the holder's pid.
    """
    if not (workdir / _LOCK).exists():
        return
    descriptor = os.open(workdir / _LOCK, os.O_RDWR)
    try:
        _acquire(descriptor, workdir)
    finally:
        os.close(descriptor)


def check_own(folder: Path, names: Sequence[str]) -> None:
    """Checks that a folder is a run's or contains no files that a run would overwrite.

    Raises:
        UserError: one of `names` exists but the run's configuration does not.
    """
    foreign = [name for name in names if (folder / name).exists()]
    if foreign and not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} holds {foreign[0]} but no run ({CONFIG} is missing); name an empty or new --workdir"
        )


def check_links(workdir: Path, folders: Sequence[Path]) -> None:
    """Checks that no link makes a run write outside its workdir, which may itself be a link.

    Args:
        workdir: the run's workdir.
        folders: the subfolders that the run writes to; they may be missing.

    Raises:
        UserError: one of them leads elsewhere.
    """
    for folder in folders:
        if folder.is_dir() and not folder.resolve().is_relative_to(workdir.resolve()):
            raise UserError(
                f"{folder} is a link to {folder.resolve()}, and a run writes to its own workdir alone; remove the "
                "link, or make the whole workdir one"
            )


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Checks that a folder contains no run with other settings.

    Args:
        folder: the stage's folder.
        config: the settings that affect the stage's results, flat, by dotted name.

    Raises:
        UserError: settings differ; they are listed with both values.
    """
    path = folder / CONFIG
    if not path.exists():
        return
    held = read_settings(folder)
    wanted = json.loads(json.dumps(config))  # tuples become lists
    differing = [
        f"{key} is {_shown(held, key)} there and {_shown(wanted, key)} here"
        for key in sorted(held.keys() | wanted.keys())
        if held.get(key) != wanted.get(key)
    ]
    if differing:
        raise UserError(
            f"{folder} holds a run of another configuration: {'; '.join(differing)}; "
            "name another --workdir or give the same settings"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads the settings that affect the results of the run in this folder, from `write_config`.

    Raises:
        UserError: the settings cannot be read.
    """
    return read_object(folder / CONFIG, f"; restore it, or move {folder} away to start again", "results")


def read_test_images(folder: Path) -> str | None:
    """Reads the digest of the test images that a run began with; None before `write_config`, or if it wrote none.

    Raises:
        UserError: the settings cannot be read.
    """
    path = folder / CONFIG
    return read_object(path, "; restore it").get(TEST_IMAGES) if path.exists() else None


def check_test_images(folder: Path, digest: str | None) -> None:
    """Checks that a run resumes with the test images that it began with.

    Args:
        folder: the stage's folder.
        digest: of the test images; None without any.

    Raises:
        UserError: they are others. Runs that recorded no digest pass.
    """
    held = read_test_images(folder)
    if digest and held not in (None, digest):
        raise UserError(
            f"{folder} holds a run that began with other test images (digest {held!s:.12} there and {digest:.12} "
            "here); restore them, or name another --workdir"
        )


def write_config(
    folder: Path, config: dict[str, Any], whole: dict[str, Any], test_images: str | None = None
) -> None:
    """Writes `results`, the settings that `check_config` compares, `config`, all settings, and a digest if any."""
    digest = {TEST_IMAGES: test_images} if test_images else {}
    write_json(folder / CONFIG, {"results": config, "config": whole, **digest})


def _shown(settings: dict[str, Any], key: str) -> str:
    # Settings added later are left out while they have no effect.
    return repr(settings[key]) if key in settings else "unset"


def _acquire(descriptor: int, workdir: Path) -> bool:
    """Takes the lock; returns whether the file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        raise UserError(
            f"--workdir={workdir} is in use by a running process (pid {holder}); "
            "wait for it, stop it or name another folder"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
