"""The benchmark script runs a tiny distillation and its figures fit together."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cudfkd_jax import defaults, timing
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


def _set_up(compiled_round=None):
    """Steps that do nothing, two to make images and three of the student a round."""
    nothing = {"student": lambda state: state, "synthesis": lambda state: state}
    return timing.Setup(None, timing.Epoch(1, 2, 3), timing.Steps(**nothing), compiled_round, 0, ())


def test_pace_counts_every_step_of_every_round(monkeypatch):
    config = _tiny_config()
    config.distill.rounds_per_epoch = 7
    found = {"synthesis step": [2.0, 0.1, 2.0], "student step": [1.0]}
    monkeypatch.setattr(timing, "set_up", lambda config: _set_up())
    monkeypatch.setattr(timing, "step_by_step", lambda setup, state, most: (state, found))
    assert timing.distillation_pace(config).epoch_s == 7 * (2 * 2.0 + 3 * 1.0)


def test_pace_is_that_of_compiled_rounds_where_runs_compile_them(monkeypatch):
    config = _tiny_config()
    config.distill.rounds_per_epoch = 7
    monkeypatch.setattr(timing, "set_up", lambda config: _set_up(lambda state: state + 1))
    monkeypatch.setattr(timing, "timed", lambda step, state: (step(state), 5.0 + state))
    assert timing.distillation_pace(config).epoch_s == 7 * 6.0  # of the second round, for the first one compiles


def test_no_more_steps_of_a_kind_are_taken_than_asked_for():
    _, seconds = timing.step_by_step(_set_up(), 0, most=1)
    assert {kind: len(found) for kind, found in seconds.items()} == {"synthesis step": 1, "student step": 1}
    _, seconds = timing.step_by_step(_set_up(), 0)
    assert {kind: len(found) for kind, found in seconds.items()} == {"synthesis step": 2, "student step": 3}


def test_pace_of_training_with_data_counts_its_steps(tiny_config, monkeypatch):
    """1,438 images in batches of 256 are five steps."""
    monkeypatch.setattr(timing.statistics, "median", lambda seconds: 2.0)
    assert timing.supervised_pace(tiny_config, "teacher").epoch_s == 10.0


def test_says_in_one_line_that_the_configuration_is_missing():
    done = subprocess.run([sys.executable, str(_SCRIPT)], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip() == "benchmark: no configuration; give one, e.g. --config=configs/digits.py"
