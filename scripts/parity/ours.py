"""Our side of the comparison: a configuration of `configs/` with small sizes, and its individual steps."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from torch import nn

from cudfkd_jax.config import build, identity, loading, networks
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.runtime.devices import SINGLE, local_devices
from cudfkd_jax.storage import torch_names
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.state import STUDENT, SYNTHESIS, RunState, purpose_key
from parity.networks import Sizes, ours_of, variables

CONFIGS = Path(__file__).parents[2] / "configs"
_OPTIONS = {"xla_backend_optimization_level": 1}  # compiles faster; at 0 the convolutions are slow


class Ours(NamedTuple):
    """The problem, the teacher's variables, and the state before the first step."""

    problem: Problem
    teacher: Any
    state: RunState


def load(name: str, arguments: str, sizes: Sizes, changes: Mapping[str, Any] | None = None) -> Any:
    """Loads a configuration of `configs/` with these sizes.

    Args:
        name: the configuration's name.
        arguments: arguments after the colon of `--config`, except the networks.
        sizes: the sizes of the case.
        changes: further settings by dotted key.
    """
    pair = f"teacher={ours_of(sizes.teacher)},student={ours_of(sizes.student)}"
    config = loading.load(f"{CONFIGS / name}.py:{','.join(filter(None, (pair, arguments)))}")
    config.data.image_shape = (sizes.image, sizes.image, 3)
    config.distill.update(batch_size=sizes.batch, student_steps=2, rounds_per_epoch=2, epochs=8)
    config.generator.update(latent_dim=sizes.latent, width=sizes.width, stages=sizes.stages)
    config.update_from_flattened_dict(dict(changes or {}))
    return config


def start(config: Any, teacher: nn.Module, student: nn.Module) -> Ours:
    """Builds a run with the weights of these networks; the method's own state is zeros."""
    net = networks.described(config, "teacher")
    of_teacher = variables(teacher, networks.classifier(config, net), net.image_shape)
    pair = networks.pair(config, net, of_teacher)
    problem = build.problem(config, pair)
    key = identity.root_key(config, "distill")
    # Only the structure: weights come from the release, a round's initial values from `distill_steps.begin_round`.
    state = jax.tree.map(
        lambda leaf: key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(
            lambda: distill_steps.init_state(key, of_teacher, problem=problem, image_shape=net.image_shape)
        ),
    )
    of_student = variables(student, pair.student, net.image_shape)
    return Ours(problem, of_teacher, state.replace(student=TrainState.create(of_student, problem.optimiser)))


def compiled(function: Any, **arguments: Any) -> Any:
    """Compiles a function with some of its arguments fixed."""
    return jax.jit(functools.partial(function, **arguments), compiler_options=_OPTIONS)


def step(function: Any, ours: Ours, *, devices: int = 1) -> Any:
    """Compiles a step function; on several devices, the state is replicated before and unreplicated after it."""
    if devices == 1:
        return compiled(function, problem=ours.problem, axis=SINGLE)
    several = local_devices(devices)
    on_all = several.compile(functools.partial(function, problem=ours.problem), donate_state=False)
    return lambda *trees: several.unreplicate(on_all(*(several.replicate(tree) for tree in trees)))


def latents(state: RunState, sizes: Sizes, purpose: int, ahead: int = 0) -> np.ndarray:
    """Returns the latents of the synthesis or student step `ahead` steps after the state."""
    counter = state.synthesis_step if purpose == SYNTHESIS else state.step
    assert purpose in (SYNTHESIS, STUDENT)
    key = purpose_key(state.key, purpose, counter + ahead)
    return np.asarray(jax.random.normal(key, (sizes.batch, sizes.latent)))


def metrics(tally: Any) -> dict[str, float]:
    """Returns the metrics of the newest step."""
    return {name: float(value) for name, value in tally.last.items()}


def adam_gradient(state: Any, beta1: float) -> Any:
    """Computes the gradient of Adam's first step from its first moment."""
    return jax.tree.map(lambda moment: moment / (1 - beta1), adam(state).mu)


def named(student: TrainState, *, statistics: bool) -> dict[str, np.ndarray]:
    """Returns a student's weights by PyTorch's names: BatchNorm's statistics, or all others."""
    everything = torch_names.to_state_dict({"params": student.params, "batch_stats": student.batch_stats})
    return {
        key: np.asarray(value)
        for key, value in everything.items()
        if "num_batches" not in key and ("running_" in key) == statistics
    }


def difference(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.asarray(x) - jnp.asarray(y), a, b)


def adam(state: Any) -> optax.ScaleByAdamState:
    """Returns the moments in an optimiser's state with one Adam."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    return next(x for x in found if isinstance(x, optax.ScaleByAdamState))
