"""Tests that the initial state and the steps of a problem share their traces."""

import dataclasses
import functools

import jax
import nets
import pytest

from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.training import distill_steps


@pytest.mark.parametrize("name", ["synthesise", "sample", "student_loss"])
def test_parts_of_a_method_are_traced_once(name):
    traced = []
    problem = nets.problem(nets.config())
    part = getattr(problem.method, name)

    def counted(*arguments):
        traced.append(name)
        return part(*arguments)

    problem = dataclasses.replace(problem, method=problem.method._replace(**{name: counted}))
    init = functools.partial(distill_steps.init_state, problem=problem, image_shape=nets.IMAGE_SHAPE)
    state = jax.eval_shape(init, jax.random.key(0), nets.teacher_variables())
    for step in (distill_steps.synthesis_step, distill_steps.student_step):
        jax.eval_shape(functools.partial(step, problem=problem, axis=SINGLE), state, nets.teacher_variables())
    assert traced == [name]
