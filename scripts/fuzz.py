"""Feeds damaged and hostile files to everything that reads files, and counts what comes of it.

    python scripts/fuzz.py --cases=2400

Real files are made for each reader and mutated: bytes flipped, cut off, doubled, torn out, replaced by large
numbers or by parts of other files, values of JSON by other values. A case is good where the file is read, or
refused with a `UserError` of one line; anything else is a failure: another exception, a crash of the process,
memory beyond `--memory` MiB, a file written outside the folder, or code of the file that was run. Each reader has
a process of its own, so that a crash is counted and not suffered. Exit status 1 where a case fails.

`--cases=` in all (2400), `--seed=` (0), `--readers=` all or names separated by commas, `--memory=` in MiB that a
reader may ask for beyond what it starts with (1024).
"""

import argparse
import collections
import sys
from collections.abc import Sequence

from fuzzing.campaign import READ, REFUSED, campaign, described
from fuzzing.readers import READERS


def main(arguments: Sequence[str]) -> int:
    """Runs the campaign and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=1024)
    parser.add_argument("--readers", default="all")
    options = parser.parse_args(arguments)
    names = list(READERS) if options.readers == "all" else options.readers.split(",")
    if unknown := [name for name in names if name not in READERS]:
        parser.error(f"unknown reader {unknown[0]!r}; valid: all, {', '.join(READERS)}")
    found = campaign(names, options.cases, options.seed, options.memory)
    total = sum(found.values(), collections.Counter[str]())
    print(f"{'all':20} {sum(total.values()):5} {described(total)}")
    return 1 if total.keys() - {READ, REFUSED} else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
