"""The command line: `python -m cudfkd_jax.main --config=configs/digits.py --workdir=runs/digits`."""

import difflib
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from cudfkd_jax import build, defaults, stages
from cudfkd_jax.errors import RunFailedError, StoppedError, UserError

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
                      evaluate   measure a run's networks on the test images
  --workdir=FOLDER    the run's files; default runs/<configuration>. The same command goes on where it stopped.
  --debug             show tracebacks

Exit status: 0 done, 1 failed on the way, 2 wrong input, 128 + n stopped by signal n (state saved)."""

flags.DEFINE_string("stage", "all", "what to do")
flags.DEFINE_string("workdir", None, "the run's files")
flags.DEFINE_bool("debug", False, "show tracebacks")
_CONFIG = config_flags.DEFINE_config_file("config", None, "the configuration", lock_config=True)


def console() -> NoReturn:
    """Runs the command line and leaves with its exit status."""
    app.run(_main, flags_parser=_parse)
    sys.exit(0)


def _parse(argv: Sequence[str]) -> list[str]:
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv):
        print(_HELP)
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.present:
            _ = _CONFIG.value  # a configuration file that cannot be loaded is only noticed here
        elif flags.FLAGS.stage != "evaluate":
            raise UserError("no configuration; give one, e.g. --config=configs/digits.py (--help says more)")
        if rest[1:]:
            raise UserError(f"unexpected argument {rest[1]!r}; settings are given as --config.key=value")
        return rest
    except UserError as error:
        _leave(error, 2)
    except Exception as error:  # absl and ml_collections pass on whatever they met
        _leave(UserError(_explain(argv, error)), 2)


def _explain(argv: Sequence[str], error: Exception) -> str:
    """One line for an error of the flags' own parsing."""
    given = [argument.lstrip("-").partition("=") for argument in argv[1:] if argument.startswith("-")]
    path = next((value.split(":")[0] for name, _, value in given if name == "config"), "")
    if path and not Path(path).is_file():
        return f"no configuration file {path!r}; those of this project are in configs/"
    known = build.flatten(defaults.get_config())
    for name, _, _ in given:
        key = name.removeprefix("config.")
        if key != name and key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            return f"unknown configuration key {key!r}; the nearest is {nearest!r} (all: {defaults.__file__})"
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{text or type(error).__name__} ({type(error).__name__}); --help shows what can be given"


def _main(_: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        _use_compilation_cache()
        stage = flags.FLAGS.stage
        build.choose("--stage", stage, stages.STAGES)
        folder = Path(flags.FLAGS.workdir or _default_workdir())
        if stage == "evaluate":
            config = stages.saved_config(folder)
            if _CONFIG.present:
                config.update_from_flattened_dict(_overrides())
            stages.evaluate_run(config, folder)
        else:
            stages.run(_CONFIG.value, stage, folder)
    except UserError as error:
        _leave(error, 2)
    except StoppedError as error:
        _leave(error, 128 + error.number)
    except KeyboardInterrupt as error:
        _leave(error, 130)
    except RunFailedError as error:
        _leave(error, 1)


def _overrides() -> dict[str, Any]:
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def _default_workdir() -> str:
    """runs/<configuration and its arguments>-<hash of the overrides>."""
    if not _CONFIG.present:
        raise UserError("no run; give its folder with --workdir, or the --config that it was started with")
    path, _, arguments = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = "-".join(filter(None, (Path(path).stem, re.sub(r"[^\w=.]+", "-", arguments))))
    overrides = json.dumps(_overrides(), sort_keys=True, default=str)
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:8]
    return f"runs/{name}" + (f"-{digest}" if _overrides() else "")


def _use_compilation_cache() -> None:
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cudfkd_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _leave(error: BaseException, status: int) -> NoReturn:
    if flags.FLAGS.is_parsed() and flags.FLAGS.debug:
        raise error
    kind = "error: " if status in (1, 2) else ""
    text = re.sub(r"\s+", " ", str(error)).strip() or "interrupted"
    print(f"cudfkd: {kind}{text}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    console()
