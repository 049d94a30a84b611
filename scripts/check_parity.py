"""Runs the released code and ours with the same weights and random draws, and writes all differences.

    python scripts/check_parity.py --release=DataFree --pre-dfkd=PRE-DFKD --zero-shot=ZeroShotKnowledgeTransfer \\
        --adadfkd=DFKD --fast-datafree=Fast-Datafree

`make parity RELEASE=DataFree` creates an environment and runs this command in it. The releases' own functions run
on the CPU; `parity/` describes how. All values are float64 and count as equal if the relative difference is below
1e-6. MB-DFKD has no release.

--release=FOLDER    checkout of ljrprocc/DataFree: CuDFKD's release with DAFL, ZSKT, DFAD, DFQ, ADI and CMI
--pre-dfkd=FOLDER   checkout of kuluhan/PRE-DFKD; optional
--zero-shot=FOLDER  checkout of polo5/ZeroShotKnowledgeTransfer, ZSKT's original; optional
--adadfkd=FOLDER    checkout of ljrprocc/DFKD, AdaDFKD's release; optional
--fast-datafree=FOLDER
                    checkout of zju-vipa/Fast-Datafree, FastDFKD's release; optional
--methods=NAMES     all, or separated by commas: networks, losses, cudfkd, dafl, zskt, dfad, dfq, adi, cmi,
                    pre_dfkd, adadfkd, fastdfkd and once; "once" is not part of "all" and compares 64×64
                    images with three up-samplings, and two devices
--precision=float32 compares only one round of CuDFKD at real sizes; losses may differ by 1e-3, gradients and
                    parameters by 1e-2 of their norm
--out=FOLDER        receives table.md (results/parity)

Exit status: 1 if a difference is undocumented, or a documented difference does not occur.
"""

import argparse
import datetime
import importlib.metadata
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"

import jax
import torch

from cudfkd_jax.runtime.errors import UserError
from parity import cases, released, rows
from parity.cases import Checkouts

_ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str]) -> int:
    """Runs the comparison and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--pre-dfkd", type=Path)
    parser.add_argument("--zero-shot", type=Path)
    parser.add_argument("--adadfkd", type=Path)
    parser.add_argument("--fast-datafree", type=Path)
    parser.add_argument("--methods", default="all")
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    parser.add_argument("--out", type=Path, default=_ROOT / "results" / "parity")
    options = parser.parse_args(arguments)
    float32 = options.precision == "float32"
    asked = "once" if float32 else options.methods
    names = cases.DEFAULT if asked == "all" else tuple(asked.split(","))
    if unknown := [name for name in names if name not in cases.NAMES]:
        parser.error(f"unknown method {unknown[0]!r}; valid: all, {', '.join(cases.NAMES)}")
    jax.config.update("jax_enable_x64", not float32)
    torch.set_default_dtype(torch.float32 if float32 else torch.float64)
    report = rows.Report(rows.FLOAT32 if float32 else rows.FLOAT64)
    checkouts = Checkouts(
        options.release, options.pre_dfkd, options.zero_shot, options.adadfkd, options.fast_datafree
    )
    commits = _commits(checkouts)  # before a checkout can change
    try:
        missing = cases.run(names, checkouts, report)
    except UserError as error:
        print(f"check_parity: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / ("table_float32.md" if float32 else "table.md" if asked == "all" else f"{asked}.md")
    head = _head(arguments, commits, report, missing)
    target.write_text(f"{head}\n{rows.table(report)}", encoding="utf-8")
    print(f"{_counts(report)}; {target}")
    return 1 if report.failures else 0


def _commits(checkouts: Checkouts) -> dict[str, str]:
    folders = {
        "this project": _ROOT,
        "ljrprocc/DataFree": checkouts.release,
        "kuluhan/PRE-DFKD": checkouts.pre_dfkd,
        "polo5/ZeroShotKnowledgeTransfer": checkouts.zero_shot,
        "ljrprocc/DFKD": checkouts.adadfkd,
        "zju-vipa/Fast-Datafree": checkouts.fast_datafree,
    }
    return {name: released.commit(folder) for name, folder in folders.items() if folder}


def _head(arguments: Sequence[str], commits: dict[str, str], report: rows.Report, missing: list[str]) -> str:
    """Returns the head of the table: commits, versions and verdicts."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "torch", "torchvision", "kornia")
    )
    named = sorted({row.named for row in report.rows.values() if row.verdict == rows.NAMED})
    failures = [f"* {row.method}, {row.case}: {row.quantity} ({row.verdict})" for row in report.failures]
    lines = [
        "# The released code beside ours",
        "",
        f"{_counts(report)}. The releases' own functions ran with the same weights and the same draws, in "
        f"{report.precision.dtype}; `scripts/parity/` says how.",
        "",
        "```sh",
        f"python scripts/check_parity.py {shlex.join(_shortened(argument) for argument in arguments)}",
        "```",
        "",
        *(f"* {name}: commit {commit}" for name, commit in commits.items()),
        f"* {datetime.date.today().isoformat()}, {versions}, Python {sys.version.split()[0]}",
        *(f"* not compared: {line}" for line in missing),
        "",
        "Each row is the largest difference over all comparisons of that quantity: absolute, relative to the "
        "largest value, and for parameters and gradients the norm of the difference over the norm. A named "
        "difference is documented where the last column says, and must show.",
        *(["", "Where differences are named:", "", *(f"* {name}" for name in named)] if named else []),
        *(["", "What differs otherwise:", "", *failures] if failures else []),
    ]
    return "\n".join(lines) + "\n"


def _shortened(argument: str) -> str:
    """Shortens a folder to its last part, which does not depend on the machine."""
    key, _, value = argument.partition("=")
    return f"{key}={Path(value).name}" if "/" in value else argument


def _counts(report: rows.Report) -> str:
    verdicts = [row.verdict for row in report.rows.values()]
    counts = {kind: verdicts.count(kind) for kind in (rows.EQUAL, rows.NAMED, rows.DIFFERS, rows.NOT_SHOWN)}
    text = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{len(verdicts)} quantities in {sum(row.count for row in report.rows.values())} comparisons: {text}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
