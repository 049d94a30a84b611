"""Tiny problems of the methods with replay, and the results of a step on one and two devices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import rounds

from cudfkd_jax.methods import mb_dfkd, pre_dfkd
from cudfkd_jax.methods.base import Method
from cudfkd_jax.methods.memory.generative_memory import GenerativeMemory
from cudfkd_jax.models.vae import Encoder, NormalisedGenerator
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.student import plain_student_loss
from cudfkd_jax.runtime.devices import SINGLE, local_devices
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.loops import EpochFunction, make_epoch_function
from cudfkd_jax.training.state import RunState

LATENT, BATCH, WIDTH = 6, 16, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)  # the classifiers of `nets.classifier`
# Adam takes a full step for a gradient that is only rounding, and hides a constant factor in any gradient.
SGD = optax.sgd(0.1)
_ADAM = optax.adam(0.02)

_STEPS = {
    "begin": distill_steps.begin_round,
    "synthesis": distill_steps.synthesis_step,
    "finish": distill_steps.finish_round,
    "student": distill_steps.student_step,
}


def generator(*, stages: int = 1, **settings) -> NormalisedGenerator:
    return NormalisedGenerator(nets.IMAGE_SHAPE, LATENT, MEAN, STD, width=WIDTH, stages=stages, **settings)


def objective(**settings):
    weights = {"class_weight": 1.0, "balance_weight": 5.0, "feature_weight": 0.1, "adversarial_weight": 1.0}
    return mb_dfkd.synthesis_terms(**(weights | {"released_js": False} | settings))


def mb_method(*, optimiser=_ADAM, **settings) -> Method:
    shape = {"slots": 2, "steps_per_epoch": rounds.EPOCH.steps, "every_epochs": 1, "batch_size": BATCH}
    return mb_dfkd.mb_dfkd_method(
        generator=generator(),
        optimiser=optimiser,
        latent_dim=LATENT,
        terms=objective(),
        student_loss=plain_student_loss(losses.l1_distance),
        **(shape | settings),
    )


def pre_method(
    *, optimiser=_ADAM, memory_optimiser=_ADAM, batch_size: int = BATCH, rows: int = 4, memory_steps: int = 1
) -> Method:
    memory = GenerativeMemory(
        encoder=Encoder(LATENT, MEAN, STD, width=WIDTH),
        decoder=generator(),
        optimiser=memory_optimiser,
        rows=rows,
        class_weight=1.0,
        balance_weight=5.0,
        learning_rate=0.02,
        kl_weight=1e-5,
    )
    return pre_dfkd.pre_dfkd_method(
        generator=generator(spectral_norm=True),
        optimiser=optimiser,
        latent_dim=LATENT,
        batch_size=batch_size,
        terms=objective(),
        student_loss=plain_student_loss(losses.l1_distance),
        memory=memory,
        memory_steps=memory_steps,
    )


def jit(function):
    """Compiles quickly, because functions that are called a few times need not be fast."""
    return jax.jit(function, compiler_options=rounds.UNOPTIMISED)


def step(kind: str, method: Method):
    """Returns a compiled step `(state, teacher variables) -> state`, that of the loop, which keeps its state."""
    compiled = getattr(rounds.compiled(method), kind)
    return lambda state, teacher: compiled(rounds.copy(state), teacher)


@functools.cache
def student_batch(method: Method):
    """Returns a compiled `(state, teacher variables, key) -> (images, teacher's logits, student's logits)`."""
    task = rounds.problem(method)

    @jit
    def batch(state, teacher, key):
        classify = functools.partial(task.teacher, teacher)
        images = method.sample(state.aux, classify, key, SINGLE)
        return images, classify(images).value, task.student(state.student.variables, images, train=True).value

    return batch


@functools.cache
def _loop(method: Method) -> EpochFunction:
    return make_epoch_function("python", rounds.EPOCH, rounds.ONE_DEVICE, rounds.steps(method))


def run_epochs(method: Method, state: RunState, epochs: int, *, piecewise: bool) -> list[RunState]:
    """Returns the states at the end of each epoch; `piecewise` interrupts and resumes the loop at every step."""
    ends = []
    for epoch in range(1, epochs + 1):
        state = rounds.copy(state)
        while int(state.step) < epoch * rounds.EPOCH.steps:
            state = _loop(method)(state, nets.teacher_variables(), progress=lambda _: piecewise)
        ends.append(state)
    return ends


def measure(method: Method, cases: dict[str, tuple[str, Callable]]) -> dict[str, float]:
    """Computes the largest difference between two devices and one, by case (kind of step, state -> initial state).

    Differences are relative to the largest value of each tensor.
    """
    task = rounds.problem(method)

    @jax.jit
    def initial():
        teacher = nets.teacher_variables()
        state = distill_steps.init_state(jax.random.key(0), teacher, problem=task, image_shape=nets.IMAGE_SHAPE)
        cast = jax.tree.map(
            lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, (state, teacher)
        )
        return {name: prepare(cast[0]) for name, (_, prepare) in cases.items()}, cast[1]

    @functools.cache
    def compiled(count, kind):
        return local_devices(count).compile(functools.partial(_STEPS[kind], problem=task), donate_state=False)

    def update(count, kind, start):
        devices = local_devices(count)
        after = compiled(count, kind)(devices.replicate(start), devices.replicate(teacher))
        after = host(after)
        if count > 1:
            assert all((x == x[:1]).all() for x in jax.tree.leaves(after)), "the devices disagree"
            after = jax.tree.map(lambda x: x[0], after)
        return after

    def host(state):
        return jax.tree.map(np.asarray, jax.device_get(state.replace(key=jax.random.key_data(state.key))))

    def relative(a, b):
        return float(np.max(np.abs(a.astype(float) - b.astype(float))) / max(np.max(np.abs(a)), 1e-4))

    starts, teacher = initial()
    found = {}
    for name, (kind, _) in cases.items():
        before, one, two = host(starts[name]), update(1, kind, starts[name]), update(2, kind, starts[name])
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()), (before.aux, before.student), (one.aux, one.student)
        )
        assert any(jax.tree.leaves(moved)), f"{name} changed nothing"
        found[name] = max(jax.tree.leaves(jax.tree.map(relative, one, two)))
    return found
