"""Feeds damaged and hostile files to every reader of files, and counts the outcomes.

    python scripts/fuzz.py --cases=2400

Valid files are written for each reader and mutated: bytes are flipped, truncated, duplicated, removed, or replaced
by large numbers or parts of other files, and JSON values are replaced by other values. A case passes if the reader
accepts the file or raises a one-line `UserError`. It fails on any other exception, a crash of the process, memory
beyond `--memory` MiB, a file written outside the folder, or execution of code from the file. Each reader runs in a
separate process, so that a crash counts as an outcome and the campaign continues.

--cases=N       total over all readers (2400)
--seed=N        seed of the mutations (0)
--readers=NAMES all, or names separated by commas
--memory=MIB    memory that a reader may allocate beyond its initial memory (1024)

Exit status: 1 if a case fails.
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
