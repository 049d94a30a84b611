"""Tests that a run fitted into a time budget reaches the same values of its schedules."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cudfkd_jax.config import budget, loading
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.config.methods import method_settings

_FILE = "configs/cifar10.py:teacher=wrn40_2,student=wrn16_1"


def _total_steps(config):
    return config.distill.epochs * config.distill.rounds_per_epoch * config.distill.student_steps


@given(seconds=st.floats(10.1, 5000), epoch_s=st.floats(0.1, 100))
def test_the_fitted_run_fills_the_time_and_no_more(seconds, epoch_s):
    config = loading.load(_FILE)
    pace, before = Pace(10.0, epoch_s), _total_steps(config)
    round_s = epoch_s / config.distill.rounds_per_epoch
    share = budget.fit(config, seconds, pace)
    rounds = config.distill.epochs * config.distill.rounds_per_epoch
    assert share == pytest.approx(_total_steps(config) / before)
    assert rounds == 1 or rounds * round_s <= seconds - pace.start_s + 1e-6
    assert share == 1 or rounds * round_s >= 0.9 * (seconds - pace.start_s) - round_s
    assert share == 1 or config.distill.epochs >= min(20, math.floor((seconds - pace.start_s) / round_s) or 1)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_the_schedules_pass_through_the_same_values(share):
    whole, fitted = loading.load(_FILE), loading.load(_FILE)
    assert budget.fit(fitted, share * 250, Pace(0.0, 1.0)) == pytest.approx(share, rel=0.01)
    coarse = 1.5 * fitted.curriculum.alpha  # α_adv moves after whole epochs, of which there are fewer
    for schedule, tolerance in (
        (lambda config: method_settings(config).lambda_t(), 0.01),
        (lambda config: method_settings(config).alpha_adv(), coarse),
    ):
        for part in (0.1, 0.4, 0.6, 0.8, 0.999):
            expected, found = (
                float(schedule(config)(int(part * _total_steps(config)))) for config in (whole, fitted)
            )
            assert found == pytest.approx(expected, abs=tolerance + 0.02 * expected)


def test_a_run_that_fits_is_unchanged():
    config = loading.load(_FILE)
    assert budget.fit(config, 251.0, Pace(1.0, 1.0)) == 1
    assert config == loading.load(_FILE)


def test_a_method_of_one_round_per_epoch_gets_fewer_epochs():
    config = loading.load("configs/cifar10.py:method=cmi")
    assert budget.fit(config, 5.0, Pace(0.0, 1.0)) == pytest.approx(5 / 200)
    assert (config.distill.epochs, config.distill.rounds_per_epoch) == (5, 1)


def test_warm_up_and_reset_come_after_the_same_share_of_the_rounds():
    config = loading.load("configs/cifar10.py:method=fastdfkd")
    before = config.copy_and_resolve_references()
    share = budget.fit(config, 50.0, Pace(0.0, 1.0))
    assert config.distill.warmup_rounds == round(before.distill.warmup_rounds * share) >= 1
    assert config.fastdfkd.reset_round == round(before.fastdfkd.reset_round * share) >= 1
