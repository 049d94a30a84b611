"""Kills runs at random moments and starts them again, until done: do they end with the bits of one never stopped?

    python scripts/crash_test.py --kills=50 --workdir=runs/crash_test

Each target runs once undisturbed. Then it is started and killed (SIGKILL) again and again, in turns at any moment,
while a checkpoint is written, while its programs are compiled, and after its last summary, when the report is
written. The same command is started after each kill; a run that comes to its end is compared with the undisturbed
one, and a new one begun. Weights, `metrics.jsonl` and `summary.json` must be equal, times aside. Targets are stage
`all` of three methods, `teacher`, `compare` and `sweep`; of the last two sometimes the script alone is killed.

Then come signals: SIGTERM, SIGINT and two SIGINT at once, in turns, while steps are taken. The run is to be gone
within 10 s with status 143 or 130, and to come to the same end.

`--kills=` in all (50), `--signals=` (6), `--targets=` all or names separated by commas, `--seed=` of the moments
(0), `--config=` (tests/support/tiny.py). Exit status 1 where something differs or a command fails.
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
        parser.error(f"--workdir={folder} is not empty; name a new one")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, and inherited so, in a shell's background
    campaign = Campaign(options.config, folder, options.seed)
    for index, name in enumerate(names):
        campaign.kills(name, options.kills // len(names) + (index < options.kills % len(names)))
    if options.signals:
        campaign.signals("cudfkd", options.signals)
    say(f"{campaign.failures} failures")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
