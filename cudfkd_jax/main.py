"""The command line: `python -m cudfkd_jax.main --config=configs/digits.py --workdir=runs/digits`."""

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cudfkd_jax import cli, configuration, export, settings, stages
from cudfkd_jax.errors import UserError
from cudfkd_jax.formats import FORMATS

_HELP = """\
usage: python -m cudfkd_jax.main --config=FILE[:ARGUMENTS] [--stage=STAGE] [--workdir=FOLDER] [--config.KEY=VALUE]

Distils a trained image classifier into a smaller one without its training data (CuDFKD).

  --config=FILE       configs/digits.py, cifar10.py, cifar100.py, tiny_imagenet.py, or a file like them;
                      arguments after a colon, e.g. configs/cifar10.py:method=cmi,teacher=wrn40_2
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


def console() -> NoReturn:
    """Runs the command line and leaves with its exit status."""
    cli.leave(main)


def main(arguments: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit status; errors become one line on stderr."""
    return cli.guard(_run, arguments, _HELP)


def _run(arguments: Sequence[str]) -> None:
    options, rest = _options(arguments)
    configuration.choose("--stage", options.stage, stages.STAGES)
    _check_format(options.stage, options.format)
    cli.use_compilation_cache()
    workdir = options.workdir
    if options.config or options.stage not in ("evaluate", "export"):
        config = settings.load(options.config)
        changes = settings.override(config, rest)
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
        settings.override(config, rest)
        stages.evaluate_run(config, folder)
    else:
        stages.run(config, options.stage, folder)


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options by name, and the arguments that are none of them."""
    parser = cli.Parser()
    parser.add_argument("--config")
    parser.add_argument("--stage", default="all")
    parser.add_argument("--workdir")
    parser.add_argument("--format")
    return parser.parse_known_args(arguments)


def _check_format(stage: str, format_: str | None) -> None:
    if stage == "export":
        if not format_:
            raise UserError(f"--stage=export needs a --format; valid: {', '.join(FORMATS)}")
        configuration.choose("--format", format_, tuple(FORMATS))
    elif format_:
        raise UserError(f"--format={format_} is for --stage=export; leave it out, or export")


def _default_workdir(file: str, changes: dict[str, Any]) -> str:
    """runs/<configuration and its arguments>-<hash of the changes>."""
    path, _, given = file.partition(":")
    name = "-".join(filter(None, (Path(path).stem, re.sub(r"[^\w=.]+", "-", given))))
    if not changes:
        return f"runs/{name}"
    digest = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()
    return f"runs/{name}-{digest[:8]}"


if __name__ == "__main__":
    console()
