"""Tests of epochs in one call: the next epoch starts before the last is evaluated, if it need not wait."""

import functools
import signal
import time

import jax
import jax.numpy as jnp
import pytest
from helpers import tensorboard_values
from PIL import Image

from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.runtime.errors import StoppedError
from cudfkd_jax.training import trainer
from cudfkd_jax.training.loops import EpochFunction
from cudfkd_jax.training.state import RunningMetrics, RunState
from cudfkd_jax.training.trainer import Callback, Stage, TrainerOptions

_STEPS, _EPOCHS = 2, 4


def _init():
    zero = jnp.zeros((), jnp.int32)
    tallies = {"synthesis": RunningMetrics.zeros({}), "training": RunningMetrics.zeros({"loss": jnp.zeros(())})}
    student, aux = {"sum": jnp.zeros(())}, {"images": jnp.zeros(3)}
    return RunState(
        *(zero, zero, jax.random.key(0), student, aux), **tallies, failed=jnp.zeros((), bool), rollbacks=zero
    )


@functools.partial(jax.jit, donate_argnums=0)
def _epoch(state):
    for _ in range(_STEPS):
        loss = jax.random.uniform(jax.random.fold_in(state.key, state.step))
        student, training = {"sum": state.student["sum"] + loss}, state.training.add({"loss": loss})
        aux = {"images": state.aux["images"] + 1}
        state = state.replace(step=state.step + 1, student=student, aux=aux, training=training)
    return state


class _Events(list):
    """Records a stage's events in order: `begin`, `evaluate`, `measured` and `after` with the epoch's number."""

    def run(self, folder, *, whole=True, inspected=(), on_measured=lambda epoch: None, picture=None, **options):
        folder.mkdir(exist_ok=True)

        def begin(state, progress=None):
            self.append(f"begin {1 + sum(event.startswith('begin') for event in self)}")
            return _epoch(state)

        def evaluate(state):
            epoch, total = int(state.step) // _STEPS, state.student["sum"]
            self.append(f"evaluate {epoch}")

            def measured():
                self.append(f"measured {epoch}")
                on_measured(epoch)
                return {"total": float(total)}

            return measured

        events = self

        class Observer(Callback):
            def inspects(self, epoch):
                return epoch in inspected

            def on_epoch_end(self, state, history):
                epoch = len(history)
                events.append(f"after {epoch}")
                assert state.aux is not None or (whole and epoch not in inspected)
                assert float(state.student["sum"]) == history[-1]["total"]
                return ()

            def pictures(self, epoch):
                return {"samples/epoch": picture} if picture else {}

            def after_checkpoint(self):
                events.append("save")

        stage = Stage(
            name="test",
            folder=folder,
            epochs=_EPOCHS,
            steps_per_epoch=_STEPS,
            images_per_step=1,
            init=_init,
            run_epoch=EpochFunction(begin, begin if whole else None),
            frozen=(),
            evaluate=evaluate,
            devices=local_devices(1),
            callbacks=(Observer(),),
        )
        settings = {"evaluate_every": 1, "checkpoint_seconds": 1e6, "keep": 2, "tensorboard": False} | options
        return trainer.run(stage, TrainerOptions(on_nan="stop", **settings))


def _figures(history):
    return [{k: v for k, v in record.items() if k in ("epoch", "step", "loss", "total")} for record in history]


def _one_after_the_other(*epochs):
    return [f"{what} {epoch}" for epoch in epochs for what in ("begin", "evaluate", "measured", "after")]


def test_the_next_epoch_starts_before_the_last_one_is_evaluated(tmp_path):
    events = _Events()
    events.run(tmp_path)
    expected = ["begin 1"]
    for epoch in range(1, _EPOCHS):
        expected += [f"evaluate {epoch}", f"begin {epoch + 1}", f"measured {epoch}", f"after {epoch}"]
    last = [f"evaluate {_EPOCHS}", f"measured {_EPOCHS}", f"after {_EPOCHS}", "save"]
    assert events == expected + last


def test_the_time_of_each_epoch_is_counted_once(tmp_path):
    _, history = _Events().run(tmp_path, on_measured=lambda epoch: time.sleep(0.05))
    assert all(record["seconds"] >= 0.05 for record in history[1:])  # during which the previous epoch is evaluated
    *others, last = [record["evaluation_seconds"] for record in history]
    assert others == [0.0] * (_EPOCHS - 1) and last >= 0.05


def test_results_are_those_of_one_epoch_after_the_other(tmp_path):
    (state, history), (other_state, other) = (
        _Events().run(tmp_path / str(whole), whole=whole) for whole in (True, False)
    )
    assert _figures(history) == _figures(other)
    assert float(state.student["sum"]) == float(other_state.student["sum"]) == history[-1]["total"]


def test_an_inspected_epoch_ends_before_the_next_one_starts(tmp_path):
    events = _Events()
    events.run(tmp_path, inspected=(2,))
    assert events.index("after 2") < events.index("begin 3")
    assert events.index("begin 2") < events.index("measured 1")


def test_an_epoch_before_a_checkpoint_ends_before_the_next_one_starts(tmp_path):
    events = _Events()
    _, history = events.run(tmp_path, checkpoint_seconds=0.0)
    expected = _one_after_the_other(*range(1, _EPOCHS + 1))
    assert [event for event in events if event != "save"] == expected and events.count("save") == _EPOCHS
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]


def test_a_signal_waits_for_the_epoch_in_progress_alone(tmp_path):
    events = _Events()
    stop = lambda epoch: epoch == 1 and signal.raise_signal(signal.SIGTERM)  # noqa: E731
    with pytest.raises(StoppedError):
        events.run(tmp_path, on_measured=stop)
    assert events[-1] == "save" and "begin 2" in events and "begin 3" not in events
    rest = _Events()
    _, history = rest.run(tmp_path)
    assert rest[0] == "begin 1" and "evaluate 3" in rest and "evaluate 2" not in rest
    _, undisturbed = _Events().run(tmp_path / "undisturbed")
    assert _figures(history) == _figures(undisturbed)


def test_pictures_of_a_callback_are_events(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "any.png")
    _Events().run(tmp_path / "run", picture=tmp_path / "any.png", tensorboard=True)
    found = tensorboard_values(tmp_path / "run/tensorboard")
    assert [step for tag, step in found if tag == "samples/epoch"] == [1, 2, 3, 4]
    assert ("train/loss", 4) in found and ("train/total", 4) in found
