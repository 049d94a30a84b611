"""Tests of non-finite steps: the run stops, or rolls back to its newest checkpoint with another random key."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tensorboard_events

from cudfkd_jax.runs import stages
from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.runtime.errors import RunFailedError, UserError
from cudfkd_jax.training import trainer
from cudfkd_jax.training.loops import EpochFunction
from cudfkd_jax.training.state import RunningMetrics, RunState
from cudfkd_jax.training.trainer import Callback, Stage, TrainerOptions

_STEPS, _EPOCHS = 4, 4


def _init():
    zero = jnp.zeros((), jnp.int32)
    tallies = {"synthesis": RunningMetrics.zeros({}), "training": RunningMetrics.zeros({"loss": jnp.zeros(())})}
    return RunState(
        *(zero, zero, jax.random.key(0), {"sum": jnp.zeros(())}, {}),
        **tallies,
        failed=jnp.zeros((), bool),
        rollbacks=zero,
    )


class _Run(Callback):
    """Steps that sum random numbers; step `bad` fails until the run has rolled back `times` times."""

    whole_epochs = False

    def __init__(self, bad, times):
        self.bad, self.times, self.restored, self.epochs = bad, times, [], []

    def run_epoch(self, state, progress=None):
        end = (int(state.step) // _STEPS + 1) * _STEPS
        while int(state.step) < end:
            step = int(state.step)
            loss = jax.random.uniform(jax.random.fold_in(state.key, step))
            if step == self.bad and int(state.rollbacks) < self.times:
                tally = state.training.replace(last={"loss": jnp.asarray(np.nan)})
                return state.replace(failed=jnp.ones((), bool), training=tally)
            training = state.training.add({"loss": loss})
            state = state.replace(
                step=state.step + 1, student={"sum": state.student["sum"] + loss}, training=training
            )
        return state

    def on_epoch_end(self, state, history):
        self.epochs.append(len(history))
        return ()

    def after_restore(self, epochs):
        self.restored.append(epochs)

    def __call__(self, folder, on_nan, **changes):
        folder.mkdir(exist_ok=True)
        stage = Stage(
            name="test",
            folder=folder,
            epochs=_EPOCHS,
            steps_per_epoch=_STEPS,
            images_per_step=1,
            init=_init,
            run_epoch=EpochFunction(self.run_epoch, self.run_epoch if self.whole_epochs else None),
            frozen=(),
            evaluate=lambda state: dict,
            devices=local_devices(1),
            callbacks=(self,),
        )
        options = {"evaluate_every": 1, "checkpoint_seconds": 0.0, "keep": 2, "tensorboard": False} | changes
        return trainer.run(stage, TrainerOptions(on_nan=on_nan, **options))


@pytest.fixture(autouse=True, params=[False, True], ids=["steps", "whole epochs"])
def _whole_epochs(request, monkeypatch):
    monkeypatch.setattr(_Run, "whole_epochs", request.param)


def _losses(history):
    return [record["loss"] for record in history]


def test_a_run_rolls_back_to_its_newest_checkpoint_with_another_key(tmp_path, capfd):
    plain = _Run(bad=-1, times=0)
    _, undisturbed = plain(tmp_path / "plain", "rollback")
    run = _Run(bad=10, times=1)  # in the third epoch
    state, history = run(tmp_path / "run", "rollback")
    assert [record["epoch"] for record in history] == [1, 2, 3, 4] == run.epochs and run.restored == [0, 2]
    assert _losses(history)[:2] == _losses(undisturbed)[:2]  # the checkpoint's epochs are unchanged
    assert all(a != b for a, b in zip(_losses(history)[2:], _losses(undisturbed)[2:], strict=True))
    assert [record.get("rollbacks") for record in history] == [None, None, 1, 1]
    assert np.isclose(float(state.student["sum"]), _STEPS * sum(_losses(history)), rtol=1e-5)
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert written == history
    said = "".join(capfd.readouterr())
    assert "student step 10 is not finite (loss nan); back to step 8 with another random key, 1 of 3" in said


def test_epochs_that_no_checkpoint_has_are_undone(tmp_path):
    run = _Run(bad=10, times=1)
    _, history = run(tmp_path, "rollback", checkpoint_seconds=1e6, tensorboard=True)
    assert run.epochs == [1, 2, 1, 2, 3, 4]  # only the final state is saved
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    events = tensorboard_events(tmp_path / "tensorboard")
    assert [event.step for event in events if event.HasField("session_log")] == [1, 1]  # dropped from there on
    losses = [event.step for event in events for value in event.summary.value if value.tag == "train/loss"]
    assert losses == run.epochs


def test_a_rollback_is_reproducible(tmp_path):
    one, two = (_Run(bad=10, times=2)(tmp_path / name, "rollback")[0] for name in ("one", "two"))
    assert int(one.rollbacks) == 2 and float(one.student["sum"]) == float(two.student["sum"])


def test_a_run_rolls_back_three_times_at_most(tmp_path):
    run = _Run(bad=10, times=100)
    with pytest.raises(
        RunFailedError, match=r"not finite \(loss nan\), after 3 rollbacks; start again with a lower"
    ):
        run(tmp_path, "rollback")
    assert run.restored == [0, 2, 2, 2]
    state, history = _Run(bad=-1, times=0)(tmp_path, "rollback")  # without the fault, the run resumes
    assert len(history) == _EPOCHS and int(state.rollbacks) == 0


def test_a_run_that_stops_saves_the_state_before_and_can_go_on_with_another_key(tmp_path):
    with pytest.raises(RunFailedError, match=r"the state before it is saved; .*--config\.on_nan=rollback"):
        _Run(bad=10, times=1)(tmp_path, "stop")
    run = _Run(bad=10, times=1)
    state, history = run(tmp_path, "rollback")
    assert run.restored == [2, 2] and len(history) == _EPOCHS and int(state.rollbacks) == 1


def test_an_unknown_on_nan_is_refused(tmp_path, tiny_config):
    tiny_config.on_nan = "retry"
    with pytest.raises(UserError, match="unknown on_nan 'retry'; valid: stop, rollback"):
        stages.run(tiny_config, "all", tmp_path / "run")
    assert not (tmp_path / "run").exists()
