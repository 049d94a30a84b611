"""Checks a device's results against the CPU's; each check runs in a separate process.

    python -m gpu.checks NAME --reference=FILE --out=FILE
    python -m gpu.checks reference --out=FILE

NAME      the check compares
METHOD    the first steps of a method with the reference
bfloat16  CuDFKD's first steps in bfloat16 with the reference
pmap      steps under pmap over one device with the same steps under jit
loops     an epoch in one compiled call with an epoch driven from Python

All checks except `bfloat16` compute in float32 at the highest precision, without TF32. The output is JSON.
"""

import argparse
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cudfkd_jax.config import jobs, loading, validate
from cudfkd_jax.methods import METHODS
from cudfkd_jax.runs import timing
from cudfkd_jax.runs.timing import Setup
from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.training.loops import make_epoch_function

LOSSES_TO, GRADIENTS_TO, BFLOAT16_TO, LOOPS_TO = 1e-3, 1e-2, 1e-2, 1e-3
BFLOAT16, PMAP, LOOPS, REFERENCE = "bfloat16", "pmap", "loops", "reference"
CHECKS = (*METHODS, BFLOAT16, PMAP, LOOPS)

# After the first step, Adam's first moment and SGD's momentum are multiples of the gradient.
_GRADIENTS = (".mu", ".trace")
# Relative to the network's largest gradient; smaller ones are rounding, for instance of a bias before a BatchNorm.
_NEGLIGIBLE = 1e-5
_ROUNDINGS = 10
_OF_BFLOAT16 = ("synthesis_loss", "bn_loss", "student_loss")


def small_config(method: str) -> ConfigDict:
    """Returns the configuration of a small distillation with every part of the method."""
    config = loading.load(f"configs/digits.py:method={method},teacher=wrn16_1,student=wrn10_1")
    config.generator.update(latent_dim=32, width=8)
    config.distill.update(epochs=2, batch_size=64)
    if config.distill.rounds_per_epoch > 1:
        config.distill.rounds_per_epoch = 2
    config.cmi.update(bank_rows=256, bank_draws=64)
    validate.check(config)
    return config


def first_steps(config: ConfigDict, *, perturbations: int = 0) -> list[dict[str, np.ndarray]]:
    """Computes the losses and gradients of the first step of each kind, by name, for networks with random weights.

    Args:
        config: the distillation.
        perturbations: number of repetitions whose arguments are perturbed by rounding before each step.

    Returns:
        One dictionary for the unperturbed steps and one per repetition.
    """
    setup = timing.set_up(jobs.untrained_job(config))
    parts = setup.parts.compile(setup.devices)
    found = []
    for seed in range(1 + perturbations):
        random = np.random.default_rng(seed) if seed else None
        state = jax.tree.map(jnp.copy, setup.state)
        for step in (parts.begin, parts.synthesis, parts.finish, parts.student):
            if step:
                state = step(*_rounded((state, *setup.frozen), random))
        losses = {"synthesis": state.synthesis.last, "student": state.training.last}
        values = {f"loss {kind}: {name}": value for kind in losses for name, value in losses[kind].items()}
        for name, leaf in _leaves({"student": state.student.opt_state, "method": state.aux}).items():
            if any(part in name for part in _GRADIENTS):
                values[f"gradient {name}"] = leaf
        found.append(jax.tree.map(np.asarray, values))
    return found


def compare(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Finds the largest relative difference of the losses and the largest ‖difference‖ / ‖gradient‖.

    Float32 does not define a gradient whose terms cancel, such as that of a BatchNorm's bias in front of all other
    layers, to a hundredth of its norm. Such a gradient may differ by ten times the change that rounding of the
    weights causes.

    Args:
        found: from `first_steps`.
        reference: the same from another device, and under "rounding " + name the norm of that change per gradient.
    """
    losses = {
        name: float(abs(found[name] - value) / max(abs(value), 1e-3))
        for name, value in reference.items()
        if name.startswith("loss")
    }
    norms = {n: float(np.linalg.norm(value)) for n, value in reference.items() if n.startswith("gradient")}
    least = _NEGLIGIBLE * max(norms.values())
    gradients: dict[str, float] = {}
    cancelling: dict[str, float] = {}
    for name, norm in norms.items():
        if norm > least:
            difference = float(np.linalg.norm(found[name] - reference[name]))
            is_rounding = difference <= _ROUNDINGS * float(reference[f"rounding {name}"])
            kept = cancelling if is_rounding and difference > GRADIENTS_TO * norm else gradients
            kept[name] = difference / norm
    worst_loss, worst_gradient = max(losses, key=losses.__getitem__), max(gradients, key=gradients.__getitem__)
    return {
        "loss": losses[worst_loss],
        "worst_loss": worst_loss,
        "gradient": gradients[worst_gradient],
        "worst_gradient": worst_gradient,
        "gradients": len(gradients) + len(cancelling),
        "cancelling": cancelling,
        "ok": losses[worst_loss] <= LOSSES_TO and gradients[worst_gradient] <= GRADIENTS_TO,
    }


def write_reference(path: Path) -> None:
    """Computes the reference of all checks on this process's device and writes it."""
    jax.config.update("jax_default_matmul_precision", "highest")
    arrays: Any = {}
    for method in METHODS:
        values, *others = first_steps(small_config(method), perturbations=2)
        arrays |= {f"{method}/{name}": value for name, value in values.items()}
        for name in (name for name in values if name.startswith("gradient")):
            changes = [np.linalg.norm(other[name] - values[name]) for other in others]
            arrays[f"{method}/rounding {name}"] = np.float32(max(changes))
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _rounded(arguments: Any, random: np.random.Generator | None) -> Any:
    """Perturbs a step's arguments by about the rounding of float32, unless `random` is None."""

    def change(x: jax.Array) -> jax.Array:
        if random is None or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.asarray(np.asarray(x) * (1 + 1e-7 * random.standard_normal(x.shape)), x.dtype)

    return jax.tree.map(change, arguments)


def _check(name: str, reference: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if name == BFLOAT16:
        return _bfloat16(reference)
    jax.config.update("jax_default_matmul_precision", "highest")
    if name == PMAP:
        return _pmap(timing.set_up(jobs.untrained_job(small_config("cudfkd"))))
    if name == LOOPS:
        return _loops(timing.set_up(jobs.untrained_job(small_config("cudfkd"))))
    return compare(first_steps(small_config(name))[0], _of(reference, name))


def _of(reference: Mapping[str, np.ndarray], method: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(f"{method}/"): reference[name] for name in reference if name.startswith(f"{method}/")
    }


def _bfloat16(reference: Mapping[str, np.ndarray]) -> dict[str, Any]:
    config = small_config("cudfkd")
    config.compute_dtype = "bfloat16"
    found = first_steps(config)[0]
    losses = {
        name: float(abs(found[name] - value) / abs(value))
        for name, value in _of(reference, "cudfkd").items()
        if name.startswith("loss") and name.endswith(_OF_BFLOAT16)
    }
    worst = max(losses, key=losses.__getitem__)
    return {"loss": losses[worst], "worst_loss": worst, "ok": losses[worst] <= BFLOAT16_TO}


def _pmap(setup: Setup) -> dict[str, Any]:
    """Compares steps under pmap over one device with the same under jit; runs on one device never use pmap."""
    begin, worst = jax.tree.map(jnp.copy, setup.state), 0.0
    for step in (setup.parts.synthesis, setup.parts.student):
        assert step
        mapped = jax.pmap(
            functools.partial(step, axis=Axis("devices", 1)), axis_name="devices", devices=setup.devices.devices
        )
        together = jax.tree.map(lambda x: x[0], mapped(*jax.tree.map(lambda x: x[None], (begin, *setup.frozen))))
        alone = setup.devices.compile(step, donate_state=False)(begin, *setup.frozen)
        worst = max(worst, _difference(_floats(together), _floats(alone)))
    return {"difference": worst, "ok": worst <= LOOPS_TO}


def _loops(setup: Setup) -> dict[str, Any]:
    """Compares an epoch of a few rounds between the two loops."""
    states = []
    for kind in ("scan", "python"):
        drive = make_epoch_function(kind, setup.epoch, setup.devices, setup.parts)
        states.append(drive(jax.tree.map(jnp.copy, setup.state), *setup.frozen, progress=lambda steps: False))
    scanned, driven = map(_floats, states)
    worst = _difference(scanned, driven)
    same = all(np.array_equal(scanned[name], driven[name]) for name in driven)
    return {"difference": worst, "same_bits": same, "ok": worst <= LOOPS_TO}


def _difference(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Computes the norm of the difference of a network's parameters, relative to their norm."""
    difference = sum(float(np.sum((found[name] - expected[name]) ** 2)) for name in expected)
    return (difference / sum(float(np.sum(value**2)) for value in expected.values())) ** 0.5


def _floats(state: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in _leaves(state.student.params).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def main() -> None:
    """Runs one check, or computes the reference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=(*CHECKS, REFERENCE))
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.name == REFERENCE:
        return write_reference(options.out)
    cli.use_compilation_cache()
    with np.load(options.reference, allow_pickle=False) as reference:
        result = _check(options.name, reference)
    options.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
    sys.exit(0)
