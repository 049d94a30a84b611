"""Tests of the estimate of a run's speed from a few steps."""

import pytest

from cudfkd_jax.config import jobs
from cudfkd_jax.runs import timing
from cudfkd_jax.runs.timing import Setup
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.training.loops import Epoch, Steps


@pytest.fixture
def clock(monkeypatch):
    """Makes calls take the seconds listed under the function's name, in order."""
    taken = {}

    def timed(call, *arguments):
        result = call(*arguments)
        return result, taken[getattr(call, "__name__", "round")].pop(0)

    monkeypatch.setattr(timing, "timed", timed)
    return taken


class _Steps(Steps):
    def compile(self, devices):
        return self


def _begin(state):
    return state


def _synthesis(state):
    return state


def _student(state):
    return state


def _setup(loop):
    """Returns seven rounds of two synthesis steps and five student steps."""
    parts = _Steps(_student, _synthesis, _begin)
    return Setup(Devices(()), Epoch(7, 2, 5), loop, parts, 0, ())


def test_every_step_of_every_round_is_counted(clock, monkeypatch):
    monkeypatch.setattr(timing, "set_up", lambda job: _setup("python"))
    # The first of each compiles; the others give the median.
    clock |= {"_begin": [4.0, 0.5], "_synthesis": [8.0, 0.1, 0.3], "_student": [16.0, 1.0, 1.0, 9.0]}
    clock["<lambda>"] = [32.0]
    pace = timing.distillation_pace(lambda: None)
    assert pace.start_s == 32.0 + 4.0 + 8.0 + 16.0
    assert pace.epoch_s == pytest.approx(7 * (0.5 + 2 * 0.2 + 5 * 1.0))
    assert not any(clock.values())


def test_rounds_of_warmup_are_part_of_the_start(clock, monkeypatch):
    setup = _setup("scan")  # which drives them by steps
    warm = setup._replace(epoch=setup.epoch._replace(warmup_rounds=20))
    monkeypatch.setattr(timing, "set_up", lambda job: warm)
    clock |= {"_begin": [4.0, 0.5], "_synthesis": [8.0, 0.1, 0.3], "_student": [16.0, 1.0, 1.0, 9.0]}
    clock["<lambda>"] = [32.0]
    pace = timing.distillation_pace(lambda: None)
    assert pace.start_s == pytest.approx(32.0 + 4.0 + 8.0 + 16.0 + 20 * (0.5 + 2 * 0.2))
    assert pace.epoch_s == pytest.approx(7 * (0.5 + 2 * 0.2 + 5 * 1.0))


def test_where_runs_compile_rounds_they_are_timed_whole(clock, monkeypatch):
    monkeypatch.setattr(timing, "set_up", lambda job: _setup("scan"))
    monkeypatch.setattr(timing, "make_epoch_function", lambda *_, batches: lambda state, progress: state)
    clock |= {"<lambda>": [32.0], "round": [10.0, 3.0]}
    assert timing.distillation_pace(lambda: None) == (42.0, 7 * 3.0)


def test_training_with_data_counts_its_steps(tiny_config, monkeypatch):
    """Checks that 1,438 images in batches of 256 are five steps."""
    monkeypatch.setattr(timing.statistics, "median", lambda seconds: 2.0)
    assert timing.supervised_pace(lambda: jobs.first_supervised_job(tiny_config, "teacher")).epoch_s == 10.0
