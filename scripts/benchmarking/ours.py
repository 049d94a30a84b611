"""The distillation of a configuration, compiled program by program and ready to be timed."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarking.costs import Cost, least_bytes, operations, traffic
from benchmarking.timing import Seconds
from cudfkd_jax.runs.timing import Setup, timed
from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.training.loops import EpochFunction
from cudfkd_jax.training.state import RunState

SYNTHESIS, STUDENT = "synthesis step", "student step"


class Program(NamedTuple):
    """A compiled step `(state, *frozen) -> state` and its compilation time."""

    call: Any  # a `jax.stages.Compiled`
    compile_s: float


class Ours:
    """A distillation that advances on demand.

    Attributes:
        setup: the steps and their arguments; its state is donated.
        state: the current state.
        programs: the programs compiled so far, by kind of step.
    """

    def __init__(self, setup: Setup):
        """Takes over the setup; programs are compiled on first use."""
        self.setup, self.state = setup, setup.state
        self.programs: dict[str, Program] = {}
        parts = setup.parts
        steps = {"begin": parts.begin, SYNTHESIS: parts.synthesis, "finish": parts.finish, STUDENT: parts.student}
        self._steps = {kind: step for kind, step in steps.items() if step}

    @property
    def kinds(self) -> list[str]:
        """The kinds of steps of a round, in order."""
        return [kind for kind, _ in self._turns()]

    def first(self, kind: str) -> float:
        """Compiles a step, runs it, and returns the seconds of both."""
        self.state, seconds = timed(lambda: self._program(kind).call(self.state, *self.setup.frozen))
        return seconds

    def each_step(self) -> Seconds:
        """Runs a round and blocks after every step."""
        seconds: Seconds = {}
        for kind, count in self._turns():
            for _ in range(count):
                self.state, taken = timed(self._program(kind).call, self.state, *self.setup.frozen)
                seconds.setdefault(kind, []).append(taken)
        return seconds

    def round(self) -> Seconds:
        """Runs a round as the training loop does and blocks only at its end."""
        if self.setup.loop == "scan":
            return {"round": [self._in_one_call(self._one_round)]}
        self.state, seconds = timed(self._round_by_steps)
        return {"round": [seconds]}

    def epoch(self) -> Seconds:
        """Runs an epoch in one call."""
        return {"epoch": [self._in_one_call(self._one_epoch)]}

    def costs(self) -> dict[str, Cost]:
        """Returns the costs of each compiled step, of a round and of an epoch, by kind."""
        devices = self.setup.devices
        arguments = jax.eval_shape(devices.unreplicate, (self.state, *self.setup.frozen))
        costs = {}
        for kind, program in self.programs.items():
            step = functools.partial(self._steps[kind], axis=SINGLE)
            moved = len(devices.devices) * traffic(program.call)
            costs[kind] = Cost(operations(step, *arguments), moved, least_bytes(step, *arguments))
        a_round = functools.reduce(Cost.__add__, (costs[kind].times(count) for kind, count in self._turns()))
        return costs | {"round": a_round, "epoch": a_round.times(self.setup.epoch.rounds)}

    def _turns(self) -> list[tuple[str, int]]:
        """Returns the kinds of steps that a round of this method has, in order, each with its count."""
        epoch = self.setup.epoch
        turns = [("begin", 1), (SYNTHESIS, epoch.synthesis_steps), ("finish", 1), (STUDENT, epoch.student_steps)]
        return [(kind, count) for kind, count in turns if kind in self._steps]

    def _program(self, kind: str) -> Program:
        if kind not in self.programs:
            step: Any = self.setup.devices.compile(self._steps[kind])
            lowered, lowering_s = timed(step.lower, self.state, *self.setup.frozen)
            compiled, compile_s = timed(lowered.compile)
            self.programs[kind] = Program(compiled, lowering_s + compile_s)
        return self.programs[kind]

    def _round_by_steps(self) -> RunState:
        state = self.state
        for kind, count in self._turns():
            for _ in range(count):
                state = self._program(kind).call(state, *self.setup.frozen)
        return state

    def _in_one_call(self, drive: EpochFunction) -> float:
        """Runs from the first step of an epoch, the only one at which the scan starts; returns the seconds."""
        counters = {name: jnp.zeros_like(getattr(self.state, name)) for name in ("step", "synthesis_step")}
        start = jax.block_until_ready(self.state.replace(**counters))
        self.state, seconds = timed(lambda: drive(start, *self.setup.frozen, progress=lambda _: False))
        return seconds

    @functools.cached_property
    def _one_round(self) -> EpochFunction:
        return self.setup.scan(rounds=1)

    @functools.cached_property
    def _one_epoch(self) -> EpochFunction:
        return self.setup.scan(self.setup.epoch.rounds)
