"""Checks, measures and runs this project on a GPU, as far as the time goes.

    python scripts/gpu --minutes=9 --out=runs/gpu --source=archive --dir=data
    python scripts/gpu --minutes=9 --carried=.gpu [--commit=ID] [--steps=sanity,speed]
    python scripts/gpu --prepare --carried=.gpu

Steps, in this order: sanity, speed, flagship, methods, table_v, fold_bn, flags. Each prints a table and at once
writes its result to `results.json` in `--out`, under a key of commit, versions and card. A step whose result is
there is skipped, so that the same command continues where the time ended. A step that fails says why, and the
next one begins.

`--minutes=` ends everything in time (0: no limit). `--source=` and `--dir=` name CIFAR-10 as `data.source` and
`data.dir` do; where `--carried=` holds `cifar10_jpeg.npz`, that is unpacked instead. `--prepare` computes on the
CPU the losses and gradients that the sanity step compares with, and writes them to `--carried=`. `--commit=`
names the commit where there is no git. `--smoke` takes tiny sizes, to try all of this on a CPU.
"""

import sys
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parents[1]
sys.path[:1] = [
    str(_SCRIPTS),
    str(_SCRIPTS.parent),
]  # where `gpu` is found, and `cudfkd_jax` if it is not installed

from gpu import command

if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:], __doc__ or ""))
