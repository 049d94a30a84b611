"""Writes a teacher with random weights, for a rehearsal that compiles a run's programs.

python -m gpu.untrained --config=FILE --out=FOLDER
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from cudfkd_jax.config import loading, networks
from cudfkd_jax.storage import weights
from cudfkd_jax.training import trainer


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    config = loading.load(options.config)
    net = networks.described(config, "teacher")
    teacher = networks.classifier(config, net)
    variables = trainer.initialise(lambda: teacher.init(jax.random.key(0), net.image_shape))
    weights.save_net(options.out, net, jax.device_get(variables))


if __name__ == "__main__":
    main(sys.argv[1:])
