"""Compares one update from the same state on 1, 2 and 4 forced host devices.

Devices and float64 are set before JAX starts, hence the separate processes.
"""

import functools
import json
import os
import subprocess
import sys

import pytest

KINDS = ("synthesis", "student", "kd")


def _differences(precision: str, counts: tuple[int, ...] = (2, 4)):
    """Returns (kind of step, devices, largest differences to one device over a tensor's maximum by tree)."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={max(counts)}",
        "JAX_ENABLE_X64": str(precision == "float64"),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, __file__, precision, *map(str, counts)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    cases = [(kind, count, found[kind][str(count)]) for kind in KINDS for count in counts]
    assert len(cases) == sum(map(len, found.values()))
    return cases


@pytest.mark.long
def test_float64_updates_are_equal():
    for kind, count, found in _differences("float64", (4,)):
        assert {"student", "tallies"} <= found.keys()
        assert max(found.values()) < 1e-9, (kind, count, found)


@pytest.mark.slow
def test_float32_statistics_and_metrics_are_close():
    for kind, count, found in _differences("float32"):
        assert found["batch_stats"] < 1e-5, (kind, count, found)
        assert found["losses"] < 1e-5, (kind, count, found)


@pytest.mark.slow
def test_bfloat16_on_several_devices_is_that_of_one():
    """On CPUs, only a single device uses the forms for oneDNN, so results are equal up to rounding."""
    for kind, count, found in _differences("bfloat16"):
        assert found["batch_stats"] < 0.02, (kind, count, found)
        # Rounding alone can flip the adversarial term's mask and change the divergence of nearly equal logits.
        assert kind == "synthesis" or found["losses"] < 0.1, (kind, count, found)


_RESUMED = """
import os, signal, sys
from pathlib import Path
import tiny
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime.errors import StoppedError
from cudfkd_jax.storage import records

def note(path, record):
    append(path, record)
    if len(records.read(path)) < 3:
        os.kill(os.getpid(), signal.SIGTERM)

config, folder = tiny.get_config(), Path(sys.argv[1])
config.distill.update(epochs=3, rounds_per_epoch=1)
config.checkpoint.every_seconds = 0.0
stages.run(config, "teacher", folder, say=lambda text: None)
append, records.append = records.append, note
for count in (1, 2, 1):
    config.devices = count
    try:
        stages.run(config, "distill", folder)
    except StoppedError:
        print("stopped", count, len(records.read(folder / "metrics.jsonl")))
"""


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices(tmp_path):
    """Saves on one device, resumes on two, and then on one again; `test_processes.py` resumes on one of two."""
    process = subprocess.run(
        [sys.executable, "-c", _RESUMED, tmp_path],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "stopped 1 1\n" in process.stdout and "stopped 2 2\n" in process.stdout
    assert process.stdout.count("resuming from step") == 2
    assert f"finished: {tmp_path}" in process.stdout and (tmp_path / "summary.json").exists()


def _measure(precision: str, counts: list[int]) -> dict[str, dict[int, dict[str, float]]]:
    import jax
    import jax.numpy as jnp
    import nets
    import numpy as np

    from cudfkd_jax.config import access, build
    from cudfkd_jax.runtime.devices import local_devices
    from cudfkd_jax.training import distill_steps, supervised_steps

    config = nets.config()
    config.compute_dtype = "bfloat16" if precision == "bfloat16" else "float32"
    dtype = jnp.dtype("float32" if precision == "bfloat16" else precision)

    @jax.jit
    def cast(tree):
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    key = jax.random.key(0)
    network = nets.classifier(8, access.compute_dtype(config))
    teacher_variables = cast(nets.teacher_variables())
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 8, 8, 3), np.uint8)
    labels = random.integers(0, 10, 40, np.int32)
    problem = nets.problem(config)
    distil = functools.partial(distill_steps.init_state, problem=problem, image_shape=nets.IMAGE_SHAPE)
    init = jax.jit(functools.partial(distil, key, teacher_variables))
    epoch = build.supervised_epoch(config, "teacher", len(labels))
    cases = {
        kind: (step, problem, init, (teacher_variables,))
        for kind, step in (("synthesis", distill_steps.synthesis_step), ("student", distill_steps.student_step))
    }
    task = build.supervised_problem(config, "kd", network, epoch, network)
    data = (images, labels, teacher_variables)
    init = jax.jit(functools.partial(supervised_steps.init_state, key, *data, problem=task))
    cases["kd"] = (supervised_steps.supervised_step, task, init, data)

    def start(init):
        """Copies the buffers of a state, because a step donates those of its argument."""
        return cast(init())

    def update(count, step, task, init, frozen):
        devices = local_devices(count, bfloat16=precision == "bfloat16")
        compiled = devices.compile(functools.partial(step, problem=task))
        after = compiled(devices.replicate(start(init)), *devices.replicate(frozen))
        if count > 1:
            same = jax.tree.map(lambda x: bool((np.asarray(x) == np.asarray(x)[:1]).all()), cast_keys(after))
            assert all(jax.tree.leaves(same)), "the devices disagree"
        return jax.device_get(cast_keys(devices.unreplicate(after)))

    def cast_keys(tree):
        return tree.replace(key=jax.random.key_data(tree.key))

    def compare(one, many):
        def relative(a, b):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-12))

        def worst(part):
            return max(jax.tree.leaves(jax.tree.map(relative, part(one), part(many))), default=0.0)

        def losses(tree):
            totals = {**tree.synthesis.total, **tree.training.total}
            return {name: value for name, value in totals.items() if "gradient" not in name}

        def statistics(tree):
            return tree.student.batch_stats, getattr(tree.aux, "batch_stats", ())

        return {
            "student": worst(lambda t: t.student),
            "method": worst(lambda t: t.aux),
            "tallies": worst(lambda t: (t.synthesis, t.training)),
            "batch_stats": worst(statistics),
            "losses": worst(losses),
        }

    result = {}
    for kind, case in cases.items():
        after = {count: update(count, *case) for count in (1, *counts)}
        before = jax.device_get(cast_keys(start(case[2])))
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after[1])
        assert any(jax.tree.leaves((moved.student, moved.aux))), "the step changed nothing"
        result[kind] = {count: compare(after[1], after[count]) for count in counts}
    return result


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], [int(count) for count in sys.argv[2:]])))
