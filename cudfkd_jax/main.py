"""The command line: `cudfkd --config=digits --workdir=runs/digits`, or `python -m cudfkd_jax.main`."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cudfkd_jax import __version__
from cudfkd_jax.config import files
from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.errors import UserError, choose

_HELP = """\
usage: cudfkd --config=NAME[:ARGUMENTS] [--stage=STAGE] [--workdir=FOLDER]
              [--config.KEY=VALUE ...]
       cudfkd COMMAND [OPTION ...]

Distils a trained image classifier into a smaller one without its training data
(CuDFKD). `python -m cudfkd_jax.main` does the same.

  --config=NAME       digits, cifar10, cifar100, tiny_imagenet, ..., or a file
                      like theirs; arguments after a colon, such as
                      cifar10:method=cmi,teacher=wrn40_2
  --config.KEY=VALUE  one setting, such as --config.distill.epochs=300; all of
                      them are in cudfkd_jax/config/defaults.py
  --stage=STAGE       all       train the teacher unless there is one, distil,
                                evaluate (the default)
                      teacher   train the teacher on the data
                      scratch   train the student on the data, for comparison
                      kd        distil with the data, for comparison
                      distill   distil without data
                      evaluate  measure a run's networks on the test images;
                                needs only --workdir, or for a teacher alone
                                --config and --config.teacher.checkpoint
                      export    write a run's student to
                                WORKDIR/export/FORMAT/; needs only --workdir
                                and --format
                      report    write WORKDIR/report.html of a run in any
                                state; needs only --workdir
  --format=FORMAT     of --stage=export: orbax, safetensors, torch, stablehlo
  --compare=RUN,RUN   of --stage=report: write WORKDIR/compare.html with the
                      curves of these runs
  --workdir=FOLDER    the run's files; default runs/<configuration>. Rerun the
                      same command to resume.
  --debug             show tracebacks
  --version           show the version

commands (each with --help):
  configs             list the configurations
  compare             methods and seeds side by side
  sweep               values of settings side by side
  reproduce           the paper's tables and figures

Exit status: 0 done, 1 failed on the way, 2 wrong input, 128 + n stopped by
signal n (state saved)."""

_COMMANDS = ("compare", "sweep", "reproduce")


def console() -> NoReturn:
    """Runs the command line and exits with its status."""
    cli.leave(main)


def main(arguments: Sequence[str]) -> int:
    """Runs the command given by the arguments and returns its exit status; prints errors as one line on stderr."""
    if arguments and arguments[0] in _COMMANDS:
        command = importlib.import_module(f"cudfkd_jax.experiments.commands.{arguments[0]}")
        return command.main(arguments[1:])
    return cli.guard(_run, arguments, _HELP)


def _run(arguments: Sequence[str]) -> None:
    if "--version" in arguments:
        print(f"cudfkd_jax {__version__}")
    elif arguments[:1] == ["configs"]:
        print(files.listing())
    else:
        _run_stage(arguments)


def _run_stage(arguments: Sequence[str]) -> None:
    # Imported here: JAX, which takes a second, is not needed for help.
    from cudfkd_jax.config import loading
    from cudfkd_jax.config.access import gives_teacher
    from cudfkd_jax.runs import evaluate, export, stages
    from cudfkd_jax.runtime import allocator

    options, rest = _options(arguments)
    choose("--stage", options.stage, stages.STAGES)
    _check_format(options.stage, options.format)
    if options.compare is not None and options.stage != "report":
        raise UserError(f"--compare={options.compare} is for --stage=report; leave it out, or report")
    cli.use_compilation_cache()
    allocator.keep_freed_memory()
    workdir = options.workdir
    if options.config or options.stage not in ("evaluate", "export", "report"):
        config = loading.load(options.config)
        changes = loading.override(config, rest)
        workdir = workdir or f"runs/{loading.run_name(options.config, changes)}"
    if options.stage == "report":
        if rest and not options.config:
            raise UserError(f"unexpected argument {rest[0]!r}; --stage=report takes --workdir and --compare")
        _report(workdir, options.compare)
        return
    if not workdir:
        raise UserError("no run; give its folder with --workdir, or the --config that it was started with")
    folder = Path(workdir).expanduser()
    if options.stage == "export":
        if rest and not options.config:
            raise UserError(f"unexpected argument {rest[0]!r}; --stage=export takes --workdir and --format")
        export.export(folder, options.format)
    elif options.stage == "evaluate" and options.config and not options.workdir and gives_teacher(config):
        evaluate.evaluate_teacher(config)
    elif options.stage == "evaluate":
        if options.config:
            evaluate.check_own(config, folder)
        config = loading.read_config(folder)
        loading.override(config, rest)
        evaluate.evaluate_run(config, folder)
    else:
        stages.run(config, options.stage, folder)


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the options and returns them with the remaining arguments."""
    parser = cli.Parser()
    parser.add_argument("--config")
    parser.add_argument("--stage", default="all")
    parser.add_argument("--workdir")
    parser.add_argument("--format")
    parser.add_argument("--compare")
    return parser.parse_known_args(arguments)


def _report(workdir: str | None, compare: str | None) -> None:
    """Writes the report of the run in the workdir, or a comparison of several runs into it."""
    from cudfkd_jax import report
    from cudfkd_jax.storage.workdir import CONFIG, check_writable

    if compare is None and not workdir:
        raise UserError("no run; give its folder with --workdir, or several with --compare=runs/a,runs/b")
    runs = [Path(name).expanduser() for name in (compare or "").split(",") if name]
    folder = Path(workdir or "-".join(["runs/compare", *(run.name for run in runs)])).expanduser()
    check_writable(folder)
    if compare is not None and (folder / CONFIG).exists() and folder.resolve() not in [r.resolve() for r in runs]:
        runs.insert(0, folder)
    page = report.write_report(folder) if compare is None else report.write_comparison(runs, folder)
    print(f"written: {page}")


def _check_format(stage: str, format_: str | None) -> None:
    from cudfkd_jax.storage.formats import FORMATS

    if stage == "export":
        if not format_:
            raise UserError(f"--stage=export needs a --format; valid: {', '.join(FORMATS)}")
        choose("--format", format_, tuple(FORMATS))
    elif format_:
        raise UserError(f"--format={format_} is for --stage=export; leave it out, or export")


if __name__ == "__main__":
    console()
