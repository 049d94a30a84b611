"""Shared parts of the command lines: options, one-line errors, exit status, the compilation cache.

JAX, which takes a second to import, is imported only where it is used, so that `--help` answers at once.
"""

import argparse
import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import logging

from cudfkd_jax.runtime import signals
from cudfkd_jax.runtime.errors import OutOfMemoryError, RunFailedError, StoppedError, UserError, unknown

_INTERRUPTED, _BROKEN_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_ALL = (UserError, RunFailedError, StoppedError)  # raised in all processes of a run, reported by one
_OPTION = re.compile(r"(--?(?!(?:no)?config\.)[A-Za-z][\w-]*)(\.[\w.]+)?")  # but a setting, --config.KEY
_LONGEST = 1000  # characters of an error message; a value or a path in it can have any length


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations that reports errors as `UserError`, on one line."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("--debug", action="store_true")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses the command's options and returns them with the rest, in which the only options are settings.

        Raises:
            UserError: another option is given, and the message suggests the nearest; or `--workdir` is empty.
        """
        namespace, rest = super().parse_known_args(args, namespace)
        if getattr(namespace, "workdir", None) == "":
            raise UserError("--workdir is empty; expected a folder")
        for argument in rest:
            if match := _OPTION.match(argument):
                name, key = match[1], match[2] or ""
                valid = [option for action in self._actions for option in action.option_strings]
                if key and difflib.get_close_matches(name, ["--config"]):
                    raise UserError(f"unknown option {name + key!r} (did you mean '--config{key}'?)")
                raise unknown("option", name + key, valid, "--config.KEY=VALUE")
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows what can be given")


def guard(action: Callable[[Sequence[str]], None], arguments: Sequence[str], usage: str) -> int:
    """Runs a command and returns its exit status; errors are reported as one line on stderr.

    A pipe that nobody reads any more, as after `| head -1`, ends the command without a word.

    Args:
        action: the command, called with the arguments.
        arguments: the command line's arguments; `--help` prints `usage` instead, `--debug` prints tracebacks too.
        usage: the help text.
    """
    logging.set_verbosity(logging.WARNING)
    try:
        if {"--help", "-h"} & set(arguments):
            print(usage)
        else:
            action(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        from cudfkd_jax.runtime import processes

        _discard_output()
        if processes.count() > 1:
            _exit(_BROKEN_PIPE)  # the other processes would wait for this one
        return _BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        from cudfkd_jax.runtime import processes

        if "--debug" in arguments:
            traceback.print_exception(error)
        if processes.is_first() or not isinstance(error, _OF_ALL):
            with contextlib.suppress(OSError):  # the terminal or the pipe may be gone
                print(f"cudfkd: {_describe(error)}", file=sys.stderr, flush=True)
        if processes.count() > 1 and not isinstance(error, _OF_ALL):
            _exit(_status(error))  # JAX and the other processes would wait for each other
        return _status(error)
    return 0


def leave(command: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command on this process's arguments and exits with its status."""
    signals.end_process_at_second_interrupt()
    sys.path.insert(0, "")  # as in `python -m`: import paths may name modules in the current folder
    status = command(sys.argv[1:])
    if status:
        from cudfkd_jax.runtime import processes

        # JAX's clean-up crashes after Ctrl-C during compilation, and threads of a failed save never finish.
        if status == _INTERRUPTED or processes.count() == 1:
            _exit(status)
    sys.exit(status)


def _exit(status: int) -> NoReturn:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _discard_output() -> None:
    """Sends what is still to be written nowhere, so that Python's exit finds no closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())


def program() -> str:
    """Returns how the user calls the command line here: as the installed command, or as a module."""
    return "cudfkd" if Path(sys.argv[0]).name == "cudfkd" else "python -m cudfkd_jax.main"


def say(text: str) -> None:
    """Prints a message and flushes it, so that it appears at once in files too."""
    print(text, flush=True)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parses seeds separated by commas.

    Raises:
        UserError: the text is something else, or names a seed twice.
    """
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds={text} must be whole numbers separated by commas, such as 0,1,2") from error
    if min(seeds) < 0:
        raise UserError(f"--seeds={text} must not be negative")
    check_distinct("--seeds", seeds)
    return seeds


def parse_jobs(text: str) -> int:
    """Parses the number of concurrent runs.

    Raises:
        UserError: the text is not a positive integer.
    """
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--jobs={text} must be at least 1, a whole number")
    return int(text)


def check_distinct(option: str, values: tuple[Any, ...]) -> None:
    """Raises UserError if an option names something twice."""
    if len(set(values)) < len(values):
        raise UserError(f"{option} names {next(v for v in values if values.count(v) > 1)} twice; name it once")


def keep_devices_free() -> None:
    """Reserves this machine's accelerators for the child processes."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def use_compilation_cache() -> None:
    """Caches programs that take 0.2 s to compile, in the user's cache folder.

    JAX's own variables for the folder and the time come first. Without a home directory, or where it cannot be
    written, nothing is cached.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := _cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # Programs that call oneDNN cannot be serialised (jaxlib 0.11.2, 0.12.0.1), so every start compiles them.
    warnings.filterwarnings("ignore", "(?s)Error writing persistent compilation cache entry.*MemoryError")


def _cache_folder() -> Path | None:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cudfkd_jax" / "xla"
        existing = next(path for path in (cache, *cache.parents) if path.exists())
    except (RuntimeError, OSError):  # neither HOME nor an entry for the user; a folder that may not be searched
        return None
    return cache if os.access(existing, os.W_OK | os.X_OK) else None


def _describe(error: BaseException) -> str:
    from cudfkd_jax.runtime import processes
    from cudfkd_jax.runtime.memory import out_of_memory

    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST * 2 // 3]} … {text[-_LONGEST // 3 :]}"  # keeps the error and the fix
    if isinstance(error, (StoppedError, KeyboardInterrupt)):
        return text or "interrupted"
    if isinstance(error, OutOfMemoryError):
        return f"error: {text}"
    if what := out_of_memory(error):
        return f"error: {what}; lower --config.evaluation.batch_size, or free memory"
    if processes.count() > 1 and not isinstance(error, (*_OF_ALL, OSError)) and "by peer" in text:
        return "error: another process of the run has ended; rerun the same command to resume"
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"error: {text}; make room, and give the same command again"
    if isinstance(error, (UserError, RunFailedError, OSError)):
        return f"error: {text}"
    return f"error: {type(error).__name__}: {text[:300]} (--debug shows where)"


def _status(error: BaseException) -> int:
    if isinstance(error, StoppedError):
        return 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    return 2 if isinstance(error, UserError) else 1
