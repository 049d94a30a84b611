"""Kills and resumes runs at random moments, and compares their results with those of an uninterrupted run.

    python scripts/crash_test.py --kills=50 --workdir=runs/crash_test

Each target runs once without interruption. Then it is killed (SIGKILL) and rerun repeatedly. The kills alternate
between four moments: any, while a checkpoint is written, during compilation, and after the last summary, while the
report is written. A completed run is compared with the uninterrupted one, and a new run starts. Weights,
`metrics.jsonl` and `summary.json` must be equal, except times. The targets are stage `all` of three methods,
`teacher`, `compare` and `sweep`; in the last two, some kills hit only the script and not its runs.

Signals follow, sent during training: SIGTERM, SIGINT and two SIGINTs at once, alternately. The run must exit
within 10 s with status 143 or 130, and reach the same results when resumed.

--kills=N       total over all targets (50)
--signals=N     number of signals (6)
--targets=NAMES all, or names separated by commas
--seed=N        seed of the random moments (0)
--config=FILE   tests/support/tiny.py by default
--workdir=FOLDER

Exit status: 1 if results differ or a command fails.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from crashing.campaign import Campaign, say
from crashing.runs import TARGETS

_TINY = Path(__file__).resolve().parents[1] / "tests/support/tiny.py"


def main(arguments: Sequence[str]) -> int:
    """Runs the campaign and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signals", type=int, default=6)
    parser.add_argument("--targets", default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default=str(_TINY))
    parser.add_argument("--workdir", required=True)
    options = parser.parse_args(arguments)
    names = list(TARGETS) if options.targets == "all" else options.targets.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]!r}; valid: all, {', '.join(TARGETS)}")
    folder = Path(options.workdir).expanduser()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"--workdir={folder} is not empty; expected a new folder")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    campaign = Campaign(options.config, folder, options.seed)
    for index, name in enumerate(names):
        campaign.kills(name, options.kills // len(names) + (index < options.kills % len(names)))
    if options.signals:
        campaign.signals("cudfkd", options.signals)
    say(f"{campaign.failures} failures")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
