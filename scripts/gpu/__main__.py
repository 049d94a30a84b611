"""Checks, measures and runs this project on a GPU within a time limit.

    python scripts/gpu --minutes=9 --out=runs/gpu --source=archive --dir=data
    python scripts/gpu --minutes=9 --carried=.gpu [--commit=ID] [--steps=sanity,speed]
    python scripts/gpu --prepare --carried=.gpu

The steps are sanity, speed, flagship, methods, table_v, fold_bn and flags, in this order. Each prints a table and
immediately writes its result to `results.json` in `--out`, under a key of commit, versions and card. Steps with a
result are skipped: rerun the same command to resume. A failed step prints its error, and the next one starts.

--minutes=N         time limit for all steps (0: none)
--steps=NAMES       steps to run, separated by commas
--source=, --dir=   CIFAR-10, as in `data.source` and `data.dir`; if `--carried` contains `cifar10_jpeg.npz`, that
                    file is unpacked instead
--carried=FOLDER    files prepared elsewhere
--prepare           computes the sanity step's reference losses and gradients on the CPU, into `--carried`
--commit=ID         the commit, where git is not available
--smoke             tiny sizes, for a test on a CPU
"""

import sys
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parents[1]
sys.path[:1] = [
    str(_SCRIPTS),
    str(_SCRIPTS.parent),
]  # for `gpu`, and for `cudfkd_jax` if it is not installed

from gpu import command

if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:], __doc__ or ""))
