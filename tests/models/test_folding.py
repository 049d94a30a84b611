"""Tests of BatchNorm folded into convolutions, and of student steps with one large teacher batch."""

import functools
import types

import flax.linen as nn
import jax
import nets
import numpy as np
import pytest
import rounds

from cudfkd_jax import models
from cudfkd_jax.config import validate
from cudfkd_jax.models.capture import BN, FEATURES, STAGES
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.vgg import VGG
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.training import batching
from cudfkd_jax.training.loops import Epoch, distillation_steps, make_epoch_function

_SHAPE = (16, 16, 3)


def _images(shape):
    return np.random.default_rng(2).random((4, *shape), np.float32)


_outputs = jax.jit(Classifier.__call__, static_argnums=0, static_argnames=("train", "capture", "fold"))


def test_folding_changes_no_logits():
    classifier = Classifier(VGG(((4,), (4, 8)), 10), (0.5,) * 3, (0.3,) * 3)
    variables = nets.variables(classifier, _SHAPE)
    plain, folded = (
        np.asarray(_outputs(classifier, variables, _images(_SHAPE), fold=fold).value) for fold in (False, True)
    )
    np.testing.assert_allclose(folded, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())
    assert not np.array_equal(folded, plain)  # BatchNorm was folded


class _Mixed(nn.Module):
    """A dilated convolution with bias, one whose result is used twice, and a BatchNorm without convolution."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3), kernel_dilation=2, padding="VALID")(x)
        x = nn.BatchNorm(use_running_average=not train, use_scale=False)(x)
        y = nn.Conv(4, (1, 1), feature_group_count=2)(nn.relu(x))
        x = nn.BatchNorm(use_running_average=not train, use_bias=False)(y) + y
        x = nn.BatchNorm(use_running_average=not train)(nn.relu(x))
        return nn.Dense(10)(x.mean((1, 2)))


def test_all_kinds_of_convolutions_and_norms():
    classifier = Classifier(_Mixed(), (0.5,) * 3, (0.3,) * 3)
    variables = nets.variables(classifier, _SHAPE)
    plain, folded = (_outputs(classifier, variables, _images(_SHAPE), fold=fold) for fold in (False, True))
    np.testing.assert_allclose(folded.value, plain.value, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(folded.value, plain.value)


def test_what_is_captured_stays():
    classifier = Classifier(models.build_classifier("wrn10_1", 10, None), (0.5,) * 3, (0.3,) * 3)
    variables = nets.variables(classifier, _SHAPE)
    images = _images(_SHAPE)
    plain, folded = (
        str(jax.make_jaxpr(functools.partial(classifier, capture=(BN,), fold=fold))(variables, images))
        for fold in (False, True)
    )
    assert plain == folded  # no folding with captured BatchNorm inputs
    capture = (FEATURES, STAGES)
    plain, folded = (_outputs(classifier, variables, images, capture=capture, fold=fold) for fold in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), folded, plain)


def test_training_is_never_folded():
    classifier, variables = nets.classifier(8), nets.teacher_variables()
    images = _images(nets.IMAGE_SHAPE)
    plain, folded = (_outputs(classifier, variables, images, train=True, fold=fold) for fold in (False, True))
    jax.tree.map(np.testing.assert_array_equal, folded, plain)


EPOCH = Epoch(rounds=2, synthesis_steps=1, student_steps=4)


def _synthesis(state, teacher, axis):
    """Stands in for a step of synthesis: changes the generator and takes no time to compile."""
    aux = state.aux.replace(params=jax.tree.map(lambda x: 1.5 * x, state.aux.params))
    return state.replace(aux=aux, synthesis_step=state.synthesis_step + 1)


def _epoch(kind, batches, fold):
    config = nets.config()
    config.fold_bn = fold
    problem, teacher = nets.problem(config), nets.teacher_variables()
    steps = distillation_steps(problem)._replace(synthesis=_synthesis)
    drive = make_epoch_function(kind, EPOCH, rounds.ONE_DEVICE, steps, batches=batches)
    return jax.device_get(drive(nets.initial_state(problem), teacher, progress=lambda _: False))


def test_epoch_with_large_batches_for_the_teacher_is_the_same():
    plain, batched = _epoch("python", 1, False), _epoch("scan", 2, True)
    assert (int(batched.step), int(batched.synthesis_step), int(batched.training.count)) == (8, 2, 8)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
        (plain.student.params, plain.training.total),
        (batched.student.params, batched.training.total),
    )


def _devices(memory):
    device = types.SimpleNamespace(memory_stats=lambda: memory)
    return types.SimpleNamespace(local=(device,), devices=(device,))


def test_as_many_batches_at_once_as_memory_allows(monkeypatch):
    problem, teacher = nets.problem(nets.config()), nets.teacher_variables()

    def found(memory, steps=10):
        epoch = Epoch(rounds=1, synthesis_steps=1, student_steps=steps)
        return batching.batches_at_once(problem, teacher, _devices(memory), epoch)

    assert found(None) == found({}) == 1  # a CPU does not report its memory
    # The largest array is a layer's, [16, 8, 8, 8] floats; images and logits are [16, 8, 8, 3] and [16, 10].
    step = 4 * (16 * 8 * 8 * 8) * 4 + (16 * 8 * 8 * 3 + 16 * 10) * 4
    assert found({"bytes_limit": 4 * 10 * step}) == 10 and found({"bytes_limit": 4 * 10 * step - 8}) == 5
    assert found({"bytes_limit": 1}) == 1 and found({"bytes_limit": 1 << 40}, steps=7) == 7
    # Another process, whose devices have room for two.
    monkeypatch.setattr(processes, "largest", lambda value: max(value, -2))
    assert found({"bytes_limit": 4 * 10 * step}) == 2 and found({"bytes_limit": 1}) == 1


def test_batches_at_once_divide_a_round():
    config = nets.config()
    config.batches_at_once = 3
    with pytest.raises(UserError, match=r"batches_at_once=3 does not divide distill\.student_steps=2; set"):
        validate.check(config)
