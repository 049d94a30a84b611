"""The benchmark script runs a tiny distillation and its figures fit together."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cudfkd_jax import defaults
from cudfkd_jax.errors import UserError

_SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_script", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tiny_config():
    config = defaults.get_config()
    config.data.update(image_shape=(8, 8, 1), mean=(0.5,), std=(0.5,))
    config.teacher.arch = config.student.arch = "wrn10_1"
    config.generator.update(latent_dim=4, width=4)
    config.distill.update(batch_size=8, student_steps=3)
    return config


@pytest.mark.slow
def test_measures_and_prints_every_kind_of_step(benchmark):
    measured = json.loads(json.dumps(benchmark.measure(_tiny_config(), rounds=2)))

    timings = measured["timings"]
    assert list(timings)[:3] == ["synthesis step", "student step", "round"]
    for kind, images in (("synthesis step", 8), ("student step", 8), ("round", 24)):
        assert timings[kind]["seconds"] > 0
        assert timings[kind]["seconds"] * timings[kind]["images_per_s"] == pytest.approx(images)
    start = measured["start"]
    parts = ("imports_s", "set_up_s", "first_synthesis_step_s", "first_student_step_s")
    assert start["to_first_step_s"] == pytest.approx(sum(start[part] for part in parts), abs=0.1)

    lines = benchmark.table(measured).splitlines()
    assert lines[0].startswith("wrn10_1 -> wrn10_1, batch 8, a round of 1 synthesis and 3 student steps")
    shown = {line[:16].strip(): line.split()[-2] for line in lines if line.startswith(tuple(timings))}
    assert shown == {kind: f"{1000 * timing['seconds']:,.1f}" for kind, timing in timings.items()}


def test_refuses_a_wrong_setting_before_compiling(benchmark):
    config = _tiny_config()
    config.distill.temperature = -1.0
    with pytest.raises(UserError, match=r"distill\.temperature"):
        benchmark.set_up(config)


def test_says_in_one_line_that_the_configuration_is_missing():
    done = subprocess.run([sys.executable, str(_SCRIPT)], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip() == "benchmark: no configuration; give one, e.g. --config=configs/digits.py"
