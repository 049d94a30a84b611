"""Tests Eq. 8 before and after real student steps, against another formulation and in cases with known results."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import pytest
from rounds import copy
from scipy.integrate import quad

from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.evaluation.convergence import MajoriseMinimise
from cudfkd_jax.objectives import curriculum
from cudfkd_jax.objectives.losses import l1_distance
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import records
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.loops import distillation_steps
from cudfkd_jax.training.state import HELD_OUT, purpose_key

UPDATES, BATCH_SIZE, _LAMBDA_0 = 3, 12, 12.0


def _config():
    config = nets.config()
    config.distill.loss = "l1"
    config.curriculum.update(lambda_0=_LAMBDA_0, lambda_max=0.0)  # near the first losses
    return config


@functools.cache
def _problem():
    optimiser = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)  # the same programs for every rate
    return dataclasses.replace(nets.problem(_config()), optimiser=optimiser)


@functools.cache
def _initial_state():
    init = functools.partial(distill_steps.init_state, problem=_problem(), image_shape=nets.IMAGE_SHAPE)
    return jax.jit(init)(jax.random.key(1), nets.teacher_variables())


def _state(learning_rate):
    state = _initial_state()
    hyperparams = {"learning_rate": jnp.float32(learning_rate)}
    opt_state = state.student.opt_state._replace(hyperparams=hyperparams)
    return state.replace(student=state.student.replace(opt_state=opt_state))


def _diagnostic(*, updates=UPDATES, strategy="log"):
    settings = method_settings(_config())
    return MajoriseMinimise(
        _problem(),
        nets.teacher_variables(),
        local_devices(1),
        sample_loss=settings.sample_loss(),
        strategy=strategy,
        lambda_t=settings.lambda_t(),
        batch_size=BATCH_SIZE,
        updates=updates,
    )


def _bits(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def _by_hand():
    """Returns a function of the state: objective, bound and outcome of each update by quadrature of v*."""
    problem = _problem()

    @jax.jit
    def fixed(state, teacher):
        images = problem.method.preview(state.aux, purpose_key(state.key, HELD_OUT), BATCH_SIZE)
        return images, problem.teacher(teacher, images).value

    images, teacher_logits = fixed(_initial_state(), nets.teacher_variables())
    step = distillation_steps(problem).compile(local_devices(1)).student

    @jax.jit
    def sample_losses(variables):
        student = problem.student(variables, images, train=True, key=jax.random.key(0)).value
        return l1_distance(teacher_logits, student)

    def losses(state):
        return np.asarray(sample_losses(state.student.variables), np.float64)

    def weight(loss, lam):
        return (1 + np.exp(-lam)) / (1 + np.exp(loss - lam))

    def compute(state):
        state, found = local_devices(1).replicate(copy(state)), []
        for update in range(UPDATES):
            lam = _LAMBDA_0 + 1e-4 * (int(state.step))
            before = losses(state)
            state = step(state, nets.teacher_variables())
            after = losses(state)
            latent, reached = (
                np.array([quad(weight, 0, loss, args=(lam,), epsabs=1e-12)[0] for loss in each])
                for each in (before, after)
            )
            bound = latent + weight(before, lam) * (after - before)
            found.append((latent.mean(), bound.mean(), reached.mean()))
            assert int(state.step) == update + 1
        return np.array(found).T

    return compute


def test_shares_are_those_of_the_inequalities():
    """A step downhill descends and one uphill does not."""
    diagnostic, by_hand = _diagnostic(), _by_hand()
    for learning_rate, share in ((0.1, 100), (-0.1, 0)):
        state = _state(learning_rate)
        before = _bits(state)
        found = diagnostic(state)
        jax.tree.map(np.testing.assert_array_equal, before, _bits(state))  # training continues from the same state

        objective, bound, reached = by_hand(state)
        assert found["latent_objective"] == pytest.approx(objective[0], rel=1e-4)
        assert np.abs(bound - objective).min() > 1e-4 * objective[0]  # so that the shares are unambiguous
        assert found["minimised"] == pytest.approx(100 * np.mean(bound <= objective))
        assert found["descended"] == pytest.approx(100 * np.mean(reached <= objective))
        assert found["minimised"] == found["descended"] == share and found["majorised"] == 100


def test_an_invalid_majoriser_is_detected(monkeypatch):
    """Checks that Q with v* at the free point, as printed in Eq. 8, does not bound F from above."""

    def as_printed(strategy, losses, losses_ref, lam):
        slope = curriculum.spl_weights(strategy, losses, lam)
        return curriculum.latent_objective(strategy, losses_ref, lam) + slope * (losses - losses_ref)

    monkeypatch.setattr(curriculum, "majoriser", as_printed)
    assert _diagnostic(updates=1)(_state(1.0))["majorised"] == 0


def test_without_weights_the_bound_is_the_loss():
    found = _diagnostic(updates=1, strategy="none")(_state(0.1))
    assert found["minimised"] == found["descended"] and jnp.isfinite(found["latent_objective"])


@pytest.mark.slow
def test_a_run_records_the_shares_and_shows_them(finished_run, tmp_path, tiny_config):
    tiny_config.teacher.checkpoint = str(finished_run)
    tiny_config.log.update(majorise_minimise_updates=2, report=True)
    stages.run(tiny_config, "distill", tmp_path, say=lambda text: None)
    record, *_ = records.read(tmp_path / "metrics.jsonl")
    assert record["majorised"] == 100 and record["minimised"] in (0, 50, 100) and record["latent_objective"] > 0
    assert "Majorise–minimise inequality (Eq. 8)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    first, *_ = records.read(finished_run / "metrics.jsonl")
    assert first["student_loss"] == record["student_loss"]  # all other metrics are unchanged


def test_methods_without_weights_are_refused(tmp_path, tiny_config):
    tiny_config.method, tiny_config.log.majorise_minimise_updates = "dafl", 1
    with pytest.raises(UserError, match=r"log\.majorise_minimise_updates=1 is for cudfkd"):
        stages.run(tiny_config, "all", tmp_path / "run")
    assert not (tmp_path / "run").exists()
