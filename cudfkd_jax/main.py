"""The command line: `python -m cudfkd_jax.main --config=configs/digits.py --workdir=runs/digits`."""

import argparse
import hashlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from cudfkd_jax import build, export, settings, stages
from cudfkd_jax.errors import RunFailedError, StoppedError, UserError
from cudfkd_jax.formats import FORMATS

_HELP = """\
usage: python -m cudfkd_jax.main --config=FILE[:ARGUMENTS] [--stage=STAGE] [--workdir=FOLDER] [--config.KEY=VALUE]

Distils a trained image classifier into a smaller one without its training data (CuDFKD).

  --config=FILE       configs/digits.py, cifar10.py, cifar100.py, tiny_imagenet.py, or a file like them;
                      arguments after a colon, e.g. configs/cifar10.py:teacher=wrn40_2,student=wrn16_2
                      (each file's first lines list its arguments)
  --config.KEY=VALUE  changes one setting, e.g. --config.distill.epochs=300; all of them with their meaning
                      are in cudfkd_jax/defaults.py
  --stage=STAGE       all        train the teacher unless there is one, distil, evaluate (the default)
                      teacher    train the teacher on the data
                      scratch    train the student on the data, for comparison
                      kd         ordinary distillation with the data, for comparison
                      distill    distil without data
                      evaluate   measure a run's networks on the test images; needs only --workdir
                      export     write a run's student to WORKDIR/export/FORMAT/; needs only --workdir, --format
  --format=FORMAT     of --stage=export: orbax, safetensors, torch or stablehlo
  --workdir=FOLDER    the run's files; default runs/<configuration>. The same command goes on where it stopped.
  --debug             show tracebacks

Exit status: 0 done, 1 failed on the way, 2 wrong input, 128 + n stopped by signal n (state saved)."""

_INTERRUPTED = 128 + signal.SIGINT
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a tuple", str: "a text"}


def console() -> NoReturn:
    """Runs the command line and leaves with its exit status."""
    sys.path.insert(0, "")  # as `python -m` has it: networks by import path may lie in the current folder
    status = main(sys.argv[1:])
    if status == _INTERRUPTED:  # JAX crashes in its clean-up when Ctrl-C came while it compiled
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit status; errors become one line on stderr."""
    if {"--help", "-h"} & set(arguments):
        print(_HELP)
        return 0
    try:
        _run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        print(f"cudfkd: {_describe(error)}", file=sys.stderr)
        return _status(error)
    return 0


def _run(arguments: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    options, rest = _options(arguments)
    build.choose("--stage", options.stage, stages.STAGES)
    _check_format(options.stage, options.format)
    _use_compilation_cache()
    workdir = options.workdir
    if options.config or options.stage not in ("evaluate", "export"):
        config = settings.load(options.config)
        changes = _override(config, rest)
        workdir = workdir or _default_workdir(options.config, changes)
    if not workdir:
        raise UserError("no run; give its folder with --workdir, or the --config that it was started with")
    folder = Path(workdir).expanduser()
    if options.stage == "export":
        if rest and not options.config:
            raise UserError(f"unexpected argument {rest[0]!r}; --stage=export takes --workdir and --format")
        export.export(folder, options.format)
    elif options.stage == "evaluate":
        config = stages.saved_config(folder)
        _override(config, rest)
        stages.evaluate_run(config, folder)
    else:
        stages.run(config, options.stage, folder)


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options by name, and the arguments that are none of them."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--stage", default="all")
    parser.add_argument("--workdir")
    parser.add_argument("--format")
    parser.add_argument("--debug", action="store_true")
    return parser.parse_known_args(arguments)


def _check_format(stage: str, format_: str | None) -> None:
    if stage == "export":
        if not format_:
            raise UserError(f"--stage=export needs a --format; valid: {', '.join(FORMATS)}")
        build.choose("--format", format_, tuple(FORMATS))
    elif format_:
        raise UserError(f"--format={format_} is for --stage=export; leave it out, or export")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows what can be given")


def _override(config: ConfigDict, arguments: list[str]) -> dict[str, Any]:
    """Changes the configuration as `--config.KEY=VALUE` arguments say; returns the changes by key."""
    given = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in arguments)
    settings.check_keys([match[1] for match in given if match], config)
    values = flags.FlagValues()
    values.set_gnu_getopt()
    arguments = ["cudfkd", *arguments]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        stray = values(arguments)[1:]
    except flags.Error as error:
        wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if wrong is None:
            raise UserError(f"{error}; --help shows what can be given") from error
        key, value = wrong[1], build.get(config, wrong[1])
        raise UserError(f"--config.{key}={wrong[2]} must be {_KINDS[type(value)]}, such as {value}") from error
    if stray:
        raise UserError(f"unexpected argument {stray[0]!r}; settings are given as --config.key=value")
    return config_flags.get_override_values(values["config"])


def _default_workdir(file: str, changes: dict[str, Any]) -> str:
    """runs/<configuration and its arguments>-<hash of the changes>."""
    path, _, given = file.partition(":")
    name = "-".join(filter(None, (Path(path).stem, re.sub(r"[^\w=.]+", "-", given))))
    if not changes:
        return f"runs/{name}"
    digest = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()
    return f"runs/{name}-{digest[:8]}"


def _use_compilation_cache() -> None:
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cudfkd_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "interrupted"
    if isinstance(error, (StoppedError, KeyboardInterrupt)):
        return text
    if "RESOURCE_EXHAUSTED" in text:
        return (
            "error: out of memory on the device; lower --config.distill.batch_size or --config.teacher.batch_size"
        )
    if isinstance(error, (UserError, RunFailedError, OSError)):
        return f"error: {text}"
    return f"error: {type(error).__name__}: {text[:300]} (--debug shows where)"


def _status(error: BaseException) -> int:
    if isinstance(error, StoppedError):
        return 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    console()
