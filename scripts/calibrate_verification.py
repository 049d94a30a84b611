"""Measures what the verification of teachers says of right and of wrong ones.

    python scripts/calibrate_verification.py --dir=data/cifar10_jpeg --out=results/verification

--dir=FOLDER    CIFAR-10 as folders of images
--out=FOLDER    receives rows.json and table.md
--steps=N       training steps per teacher (600)
--only=NAME     only the teachers whose names contain NAME; repeat for further ones

Each teacher is trained briefly, written as a PyTorch program writes it, and loaded by a configuration as
`teacher.checkpoint`. A right one was trained as the configuration assumes. A wrong one has the same names and
shapes, and another activation, stem, pooling, order of layers, normalisation, or order of channels or classes.
Rerun the same command to resume; measured rows are kept.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from calibration import cases, rows
from cudfkd_jax.runtime import cli
from cudfkd_jax.storage.files import write_bytes, write_json


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    return cli.guard(_run, arguments, __doc__ or "")


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    parser.add_argument("--dir", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", action="append", default=[])
    options = parser.parse_args(arguments)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "rows.json"
    measured = json.loads(kept.read_text()) if kept.exists() else {}
    data = rows.load(options.dir)
    for name, case in cases.CASES.items():
        wanted = not options.only or any(part in name for part in options.only)
        if not wanted or name in measured:
            continue
        with tempfile.TemporaryDirectory() as folder:
            measured[name] = rows.measure(case, data, options.steps, Path(folder))
        write_json(kept, measured)
        cli.say(f"{name}: {measured[name]}")
        write_bytes(out / "table.md", rows.table(measured).encode())
    print((out / "table.md").read_text())


if __name__ == "__main__":
    cli.leave(main)
