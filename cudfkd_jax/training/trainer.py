"""The trainer of a stage: resuming, epochs, evaluation, records, checkpoints.

It is the same for distilled students and supervised networks; a `Stage` supplies the steps, the evaluation and
the callbacks.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.runtime.errors import RunFailedError
from cudfkd_jax.runtime.signals import Signals, Watch
from cudfkd_jax.storage import checkpoint, records
from cudfkd_jax.storage.records import Record
from cudfkd_jax.training.loops import EpochFunction
from cudfkd_jax.training.progress import Progress
from cudfkd_jax.training.state import ROLLBACK, RunningMetrics, RunState, purpose_key

METRICS, CHECKPOINTS, TENSORBOARD = "metrics.jsonl", "checkpoints", "tensorboard"
ON_NAN = ("stop", "rollback")
_ROLLBACKS = 3  # per run, at most


class Callback:
    """Hooks into the training of a stage; a hook that is not overridden does nothing.

    After a crash or a rollback, hooks run again for the same epochs and overwrite their earlier output.
    """

    def inspects(self, epoch: int) -> bool:
        """Returns whether `on_epoch_end` reads `aux` after `epoch` (from 1), so that the next epoch must wait."""
        del epoch
        return False

    def on_epoch_end(self, state: RunState, history: list[Record]) -> Sequence[str]:
        """Runs before the epoch's checkpoint is written.

        Args:
            state: one copy; its `aux` is None where no callback inspects the epoch.
            history: all records so far; the last is this epoch's.

        Returns:
            Messages for the user.
        """
        del state, history
        return ()

    def pictures(self, epoch: int) -> Mapping[str, Path]:
        """Returns the PNG files that `on_epoch_end` wrote for `epoch`, by their tag in TensorBoard."""
        del epoch
        return {}

    def before_checkpoint(self) -> None:
        """Runs in the process that writes, before a checkpoint; a crash may follow."""

    def after_checkpoint(self) -> None:
        """Runs in the process that writes, once a checkpoint holds all epochs so far."""

    def after_restore(self, epochs: int) -> None:
        """Runs at the start and after a rollback, with the number of epochs restored."""
        del epochs


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run of one network.

    Attributes:
        name: shown to the user.
        folder: holds `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
        epochs, steps_per_epoch, steps_per_round: its length; each round takes the same time.
        images_per_step: images per step for the trained network, over all devices.
        init: returns the initial state; jit-compiled, and traced for the shapes of a checkpoint.
        run_epoch: see `loops.make_epoch_function`.
        frozen: replicated arguments of `run_epoch` after the state.
        evaluate: starts the evaluation of one copy of a state and returns a callable that blocks until the test
            metrics are ready; these are `{}` where there is nothing to evaluate.
        devices: everything above is compiled for these.
        callbacks: called in this order.
        done: returns whether training stops early, after the epoch of this record; None: never.
        waits: whether the next epoch waits for each evaluation, because `evaluate` reads `aux`.
    """

    name: str
    folder: Path
    epochs: int
    steps_per_epoch: int
    images_per_step: int
    init: Callable[[], RunState]
    run_epoch: EpochFunction
    frozen: tuple[Any, ...]
    evaluate: Callable[[RunState], Callable[[], dict[str, float]]]
    devices: Devices
    callbacks: Sequence[Callback] = ()
    done: Callable[[Record], bool] | None = None
    waits: bool = False
    steps_per_round: int = 1

    def is_over(self, history: list[Record]) -> bool:
        """Returns whether training is complete."""
        return len(history) == self.epochs or bool(history and self.done and self.done(history[-1]))

    def inspects(self, epoch: int) -> bool:
        """Returns whether an epoch must be evaluated and recorded before the next one may start."""
        return self.waits or self.done is not None or any(c.inspects(epoch) for c in self.callbacks)


@dataclasses.dataclass(frozen=True)
class TrainerOptions:
    """Options that do not affect results, except those of a run with a non-finite step.

    Attributes:
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        checkpoint_seconds: time between checkpoints, also inside an epoch where Python drives the steps;
            0: at the end of every epoch. The final state is always saved.
        keep: number of checkpoints to keep.
        tensorboard: whether to write events.
        on_nan: one of `ON_NAN`: a non-finite step either stops the run, or rolls it back to its newest checkpoint
            to resume from there with another random key.
    """

    evaluate_every: int
    checkpoint_seconds: float
    keep: int
    tensorboard: bool
    on_nan: str


class _NotFiniteError(Exception):
    """A non-finite step; holds one copy of the state before it, marked as failed."""

    def __init__(self, state: RunState):
        super().__init__()
        self.state = state


def run(stage: Stage, options: TrainerOptions) -> tuple[RunState, list[Record]]:
    """Runs a stage to its end, resuming from its newest checkpoint if it has one.

    Only the first process reads and writes the folder; all processes return the same state and metrics.

    Returns:
        One copy of the final state, and one record per epoch.

    Raises:
        StoppedError: any process received Ctrl-C or another signal to stop; the state is saved.
        RunFailedError: a metric or gradient became NaN or infinite; the state before that step is saved, or with
            `on_nan="rollback"` the run has used up its rollbacks.
        UserError: the checkpoints or records cannot be used.
    """
    state, history, damaged = _start(stage)
    _restored(stage, history)
    first_step = int(state.step)
    if stage.is_over(history):
        return state, history
    progress = Progress(
        stage.name,
        epochs=stage.epochs,
        steps_per_epoch=stage.steps_per_epoch,
        steps_per_round=stage.steps_per_round,
        first_step=first_step,
        tensorboard=stage.folder / TENSORBOARD if options.tensorboard else None,
        shown=processes.is_first(),
    )
    for path in damaged:
        progress.say(f"{path} is damaged and passed over")
    if first_step:
        progress.say(f"{stage.name}: resuming from step {first_step}")
    state = stage.devices.replicate(state)
    saver = _Saver(stage, options)
    part = "epoch" if stage.run_epoch.whole else "step"  # at whose end a run can stop
    stopping = f"stopping after this {part}; press Ctrl-C again to quit"
    with Signals(lambda: progress.say(stopping)) as signals, progress:
        watch = Watch(signals, saver.due)
        begun: float | None = None
        while not stage.is_over(history):
            try:
                one, record, state, begun = _run_epoch(
                    stage, options, state, begun, len(history) + 1, saver, watch, progress
                )
            except _NotFiniteError as error:
                one, history = _roll_back(stage, options, error.state, saver, progress)
                progress.rewind(len(history))
                state, begun = stage.devices.replicate(one), None
                continue
            history.append(record)
            if processes.is_first():
                records.append(stage.folder / METRICS, record)
            progress.epoch(record)
            for callback in stage.callbacks:
                for message in callback.on_epoch_end(one, history):
                    progress.say(f"{stage.name}: epoch {len(history)}: {message}")
                progress.pictures(len(history), callback.pictures(len(history)))
            if begun is None and (watch.interrupts(at_epoch_end=True) or stage.is_over(history)):
                saver.save(stage.devices.unreplicate(state))
                watch.stop_if_told()
    return stage.devices.unreplicate(state), history


def _start(stage: Stage) -> tuple[RunState, list[Record], list[str]]:
    """Returns the state to resume from, the records up to it, and the damaged checkpoints skipped."""
    like = jax.eval_shape(stage.init)

    def read() -> dict[str, Any]:
        state, damaged = checkpoint.restore_newest(stage.folder / CHECKPOINTS, like)
        state = initialise(stage.init) if state is None else state
        return {
            "history": records.cut_back(stage.folder / METRICS, int(state.step) // stage.steps_per_epoch),
            # A dictionary, of which arrays above a gigabyte are sent in pieces.
            "state": {str(n): leaf for n, leaf in enumerate(jax.tree.leaves(checkpoint.to_host(state)))},
            "damaged": [str(path) for path in damaged],
        }

    found = processes.from_first(read)
    leaves = [found["state"][str(n)] for n in range(len(found["state"]))]
    state = checkpoint.with_keys(jax.tree.unflatten(jax.tree.structure(like), leaves), like)
    return state, found["history"], found["damaged"]


def _roll_back(
    stage: Stage, options: TrainerOptions, failed: RunState, saver: "_Saver", progress: Progress
) -> tuple[RunState, list[Record]]:
    """Returns one copy of the newest checkpoint's state, with another random key, and the records up to it.

    Raises:
        RunFailedError: `on_nan` is "stop", or no rollback is left.
    """
    what, times = _failure(stage.name, failed), int(failed.rollbacks)
    if options.on_nan == "stop":
        saver.save(failed.replace(failed=jnp.zeros((), bool)))
        raise RunFailedError(
            f"{what}; the state before it is saved; start again with a lower learning rate in another --workdir, "
            "or resume from here with another random key (--config.on_nan=rollback)"
        )
    if times == _ROLLBACKS:
        raise RunFailedError(
            f"{what}, after {times} rollbacks; start again with a lower learning rate in another --workdir"
        )
    state, history, _ = _start(stage)
    _restored(stage, history)
    progress.say(f"{what}; back to step {int(state.step)} with another random key, {times + 1} of {_ROLLBACKS}")
    key = purpose_key(state.key, ROLLBACK, times)
    return state.replace(key=key, rollbacks=jnp.int32(times + 1)), history


def _restored(stage: Stage, history: list[Record]) -> None:
    for callback in stage.callbacks:
        callback.after_restore(len(history))


class _Saver:
    """Writer of checkpoints that knows when the next one is due."""

    def __init__(self, stage: Stage, options: TrainerOptions):
        self._stage, self._options, self._saved_at = stage, options, time.monotonic()

    def due(self, *, at_epoch_end: bool) -> bool:
        """Returns whether a checkpoint is due; at an interval of 0 s, only at the end of every epoch."""
        every = self._options.checkpoint_seconds
        return (every > 0 or at_epoch_end) and time.monotonic() - self._saved_at >= every

    def save(self, state: RunState) -> None:
        """Writes one copy of a state, between the two callback hooks, in the first process; all fail with it."""
        processes.from_first(lambda: self._write(state))
        self._saved_at = time.monotonic()

    def _write(self, state: RunState) -> None:
        folder = self._stage.folder / CHECKPOINTS
        for callback in self._stage.callbacks:
            callback.before_checkpoint()
        checkpoint.save(folder, int(state.step + state.synthesis_step), state, keep=self._options.keep)
        for callback in self._stage.callbacks:
            callback.after_checkpoint()


def _run_epoch(
    stage: Stage,
    options: TrainerOptions,
    state: RunState,
    begun: float | None,
    epoch: int,
    saver: _Saver,
    watch: Watch,
    progress: Progress,
) -> tuple[RunState, Record, RunState, float | None]:
    """Runs the rest of an epoch, saving checkpoints as they fall due, and makes its record.

    Where possible, the next epoch starts before this one is evaluated, so that devices that run whole epochs never
    wait for Python.

    Args:
        state: replicated; in or before the epoch if `begun` is None, else already on its way to the end.
        begun: start of the epoch on the monotonic clock.
        epoch: counted from 1.

    Returns:
        One copy of the state at the end of the epoch, its record, and the next `state` and `begun`.
    """
    end = epoch * stage.steps_per_epoch
    first_step = end - stage.steps_per_epoch
    if begun is None:
        first_step, begun = int(stage.devices.unreplicate(state.step)), time.monotonic()
        state = _to_the_end(stage, state, end, saver, watch, progress)
    _check_finite(stage, state)
    computed = time.monotonic()
    progress.step(end)

    whole = None if stage.inspects(epoch) or epoch == stage.epochs else stage.run_epoch.whole
    if whole and watch.interrupts(at_epoch_end=True):
        whole = None
    one = stage.devices.snapshot(state.replace(aux=None)) if whole else stage.devices.unreplicate(state)
    evaluated = epoch % options.evaluate_every == 0 or epoch == stage.epochs
    measured = stage.evaluate(one) if evaluated else dict
    state = state.start_epoch()
    if whole:
        state = whole(state, *stage.frozen)
    means, metrics = _means(one.synthesis) | _means(one.training), measured()
    # An evaluation that overlaps the next epoch adds no time; that epoch has been running since this one ended.
    evaluation_s = 0.0 if whole else time.monotonic() - computed
    record = {
        "epoch": epoch,
        "step": end,
        **means,
        **({"rollbacks": int(one.rollbacks)} if one.rollbacks else {}),
        **metrics,
        "seconds": computed - begun,
        "evaluation_seconds": evaluation_s,
        "images_per_s": (end - first_step) * stage.images_per_step / (computed - begun),
    }
    return one, record, state, computed if whole else None


def _to_the_end(
    stage: Stage, state: RunState, end: int, saver: _Saver, watch: Watch, progress: Progress
) -> RunState:
    """Advances a state to step `end`, the end of its epoch."""

    def on_step(steps_in_epoch: int) -> bool:
        progress.step(end - stage.steps_per_epoch + steps_in_epoch)
        return watch.interrupts()

    while True:
        state = stage.run_epoch(state, *stage.frozen, progress=on_step)
        _check_finite(stage, state)
        if int(stage.devices.unreplicate(state.step)) == end:
            return state
        saver.save(stage.devices.unreplicate(state))
        watch.stop_if_told()


def _check_finite(stage: Stage, state: RunState) -> None:
    """Waits for a replicated state and raises if a step on the way to it was non-finite."""
    if stage.devices.unreplicate(state.failed):
        raise _NotFiniteError(stage.devices.unreplicate(state))


def initialise(init: Callable[[], Any]) -> Any:
    """Compiles and calls a function that runs once, such as an initialisation."""
    # On CPUs, optimising code that runs once costs far more compile time than it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, compiler_options=options)()


def _means(tally: RunningMetrics) -> dict[str, float]:
    count = max(int(tally.count), 1)
    return {name: float(total) / count for name, total in jax.device_get(tally.total).items()}


def _failure(name: str, state: RunState) -> str:
    kinds = {"synthesis": (state.synthesis, state.synthesis_step), "student": (state.training, state.step)}
    for kind, (tally, counter) in kinds.items():
        values = {key: float(value) for key, value in jax.device_get(tally.last).items()}
        if not np.isfinite(list(values.values())).all():
            terms = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
            return f"{name}: {kind} step {int(counter)} is not finite ({terms})"
    raise AssertionError("a state is marked failed and all its terms are finite")
