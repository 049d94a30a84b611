"""Times the steps of data-free distillation on this machine and compares them with the hardware's limits.

    python scripts/benchmark.py --config=configs/digits.py [--config.KEY=VALUE] [--rounds=N] [--devices=N,N]
                                [--peer=torch] [--json]

The networks have random weights, which take as long as trained ones, and no data are read.

--rounds=N      rounds to measure after one warm-up round; times are medians (10)
--devices=N,N   measures with each number of devices, which share the batch; on the CPU, devices share the cores
--peer=torch    alternates with CuDFKD's round in PyTorch, a plain and a tuned version (bfloat16 where ours is)
--json          prints a JSON list with one object per number of devices; the table goes to stderr
--debug         shows tracebacks

Each step blocks until its result is ready; a whole round blocks only at its end. "of product" and "of a + b" are
the operations and bytes of XLA's cost analysis, relative to the rates of a matrix product and a vector sum on the
same device. "floor" is the larger of two times at these rates: that of the operations, and that of the bytes that
convolutions and products must move at least. Compilation times are those of a first start; later starts are faster
where JAX_COMPILATION_CACHE_DIR names a cache.
"""

import time

_START = time.perf_counter()  # before the imports, which are timed too

import argparse
import os
import sys
from collections.abc import Sequence


def _prepare(arguments: Sequence[str]) -> None:
    """Sets the environment variables that JAX reads on import."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--devices", nargs="?")
    parser.add_argument("--peer", nargs="?")
    options = parser.parse_known_args(arguments)[0]
    most = max((int(n) for n in (options.devices or "").split(",") if n.isdecimal()), default=0)
    flag = "--xla_force_host_platform_device_count"
    if most > 1 and flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={most}".strip()
    if os.environ.get("JAX_PLATFORMS") and "cpu" not in os.environ["JAX_PLATFORMS"].split(","):
        os.environ["JAX_PLATFORMS"] += ",cpu"  # for `costs.operations`
    if options.peer:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves GPU memory to the peer


if __name__ == "__main__":
    _prepare(sys.argv[1:])

import json

from benchmarking import peers
from benchmarking.measure import measure_all
from benchmarking.table import scaling, table
from cudfkd_jax.config import loading, validate
from cudfkd_jax.runtime import allocator, cli
from cudfkd_jax.runtime.errors import UserError, choose

_IMPORTS_S = time.perf_counter() - _START


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    return cli.guard(_run, arguments, __doc__ or "")


def _run(arguments: Sequence[str]) -> None:
    allocator.keep_freed_memory()  # as the command line does
    parser = cli.Parser()
    for option, default in (("config", None), ("rounds", "10"), ("devices", ""), ("peer", "")):
        parser.add_argument(f"--{option}", default=default)
    parser.add_argument("--json", action="store_true")
    options, overrides = parser.parse_known_args(arguments)
    config = loading.load(options.config)
    loading.override(config, overrides)
    repeats = _count("--rounds", options.rounds)
    if options.peer:
        choose("--peer", options.peer, peers.PEERS)
    counts = [_count("--devices", n) for n in options.devices.split(",")] if options.devices else [config.devices]
    configs = []
    for count in dict.fromkeys(counts):
        configs.append(config.copy_and_resolve_references())
        configs[-1].devices = count
        validate.check_devices(configs[-1], ["distill"])
    measurements = measure_all(configs, repeats, peer=options.peer, imports_s=_IMPORTS_S)
    texts = [table(m) for m in measurements]
    if len(measurements) > 1:
        texts.append(scaling(measurements))
    print("\n\n".join(texts), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(measurements, indent=2))


def _count(option: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UserError(f"{option} is {text!r}; expected a positive integer")
    return int(text)


if __name__ == "__main__":
    cli.leave(main)
