"""Tests of CMI: the contrastive loss against NumPy, the step against its definition, and the kept iterate."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import pytest
import rounds
from scipy.special import log_softmax, softmax

from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.methods.cmi import Settings, contrastive_method
from cudfkd_jax.methods.memory.ring import Ring
from cudfkd_jax.models.capture import BN, INSTANCES, STAGES, Outputs, apply
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.generator import Generator
from cudfkd_jax.objectives import contrastive as contrast
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.contrastive import Views
from cudfkd_jax.objectives.inversion import InversionLoss
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.training.state import SYNTHESIS, purpose_key

GENERATOR = Generator(nets.IMAGE_SHAPE, latent_dim=5, ngf=4, stages=1)
PARTS = {"bn_loss": 2.0, "class_loss": 1.0, "adversarial_loss": 0.5, "contrastive_loss": 0.8}
BANK = {"bank_rows": 16, "bank_draws": 16}
FEATURE_DIM, TEMPERATURE = 16, 0.1  # two BatchNorm layers of 8 channels


def method(pool=None, *, rate=None, bn_weight=2.0, adversarial_weight=0.5, generator=GENERATOR, **settings):
    features = settings.get("features", "bn")
    return contrastive_method(
        pool=pool or rounds.pool(),
        num_classes=10,
        generator=generator,
        latent_dim=5,
        optimiser=optax.sgd(rate) if rate else optax.adam(1e-2, b1=0.5, b2=0.999),
        head_optimiser=optax.sgd(rate) if rate else optax.adam(1e-2),
        inversion=InversionLoss(
            bn_weight,
            1.0,
            adversarial_weight,
            functools.partial(losses.masked_adversarial, temperature=1.0),
        ),
        settings=Settings(contrastive_temperature=TEMPERATURE, head_width=7, **{**BANK, **settings}),
        feature_dim={"bn": FEATURE_DIM, "stages": 3 + 2 + 3}[features],
        student_loss=rounds.STUDENT_LOSS,
    )


# With a border of 4 pixels around 8×8 images, the features of a view differ from the image's.
METHOD = method(rounds.pool(padding=4))


@pytest.fixture(scope="module", name="teacher")
def _teacher():
    return nets.teacher_variables()


@pytest.fixture(scope="module", name="parts")
def _parts():
    return rounds.compiled(METHOD)


def _state():
    return rounds.copy(rounds.initial_state(METHOD))


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _project(params, x):
    """Computes the head in NumPy."""
    hidden, out = (jax.tree.map(lambda w: np.asarray(w, np.float64), params[name]) for name in ("hidden", "out"))
    x = np.maximum(np.asarray(x, np.float64) @ hidden["kernel"] + hidden["bias"], 0)
    return _unit(x @ out["kernel"] + out["bias"])


def _contrast(queries, keys, batch_size):
    """Computes the batch mean plus the bank mean of the cross entropy of similarities to the diagonal."""
    losses = -np.diagonal(log_softmax(queries @ keys.T / TEMPERATURE, axis=1))
    return losses[:batch_size].mean() + (losses[batch_size:].mean() if len(losses) > batch_size else 0)


quick_jit = functools.partial(jax.jit, compiler_options=rounds.UNOPTIMISED)


@quick_jit
def _seen(state, teacher):
    """Returns the images of the next synthesis step, and what teacher and student make of their global views."""
    params = state.aux.synthesis.params
    variables = {"params": params["generator"], "batch_stats": state.aux.synthesis.batch_stats}
    images = apply(GENERATOR, variables, params["latents"], train=True).value
    _, views_key = jax.random.split(purpose_key(state.key, SYNTHESIS, state.synthesis_step))
    view = random_crop_flip(jax.random.split(views_key, 3)[0], images, padding=4, flip=True)
    student = nets.classifier(4)(state.student.variables, view).value
    return images, nets.classifier(8)(teacher, view, capture=(BN, INSTANCES)), student


def test_head_is_two_layers_and_a_unit_vector():
    x = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    head = contrast.Head(5)
    params = jax.jit(head.init)(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(jax.jit(head.apply)({"params": params}, x), _project(params, x), atol=1e-6)
    assert params["hidden"]["kernel"].shape == (9, 9) and params["out"]["kernel"].shape == (9, 5)
    for leaf in jax.tree.leaves(params):  # U(−1/3, 1/3)
        assert 0.2 < np.abs(leaf).max() <= 1 / 3


def test_head_has_a_gradient_where_its_output_is_zero():
    head = contrast.Head(5)
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.ones((1, 3)))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(head.apply({"params": p}, jnp.ones((2, 3))))))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("filled", [0, 3, 6])
def test_contrast_of_batch_and_bank_is_that_of_the_rows_there_are(filled):
    """Uses unit vectors as features; undrawn rows contain values that must have no effect."""
    random = np.random.default_rng(filled)
    local, whole = (_unit(random.normal(size=(4 + 6, 5))) for _ in range(2))
    hidden = [np.where(np.arange(10)[:, None] < 4 + filled, x, 1e3) for x in (local, whole)]
    batch, bank = Views(*(x[:4] for x in hidden)), Views(*(x[4:] for x in hidden))
    drawn = np.arange(6) < filled
    loss = jax.jit(lambda *rows: contrast.contrastive_loss(lambda x: x, *rows, TEMPERATURE))
    found = loss(batch, bank, drawn)
    n = 4 + filled
    np.testing.assert_allclose(found, _contrast(local[:n], whole[:n], 4), rtol=1e-5)


@pytest.mark.parametrize("filled", [0, 3])
def test_gradient_of_the_contrast_leaves_out_the_global_side(filled):
    """Checks that the gradient is only d/d q_i of the cross entropy, (Σ_j p_ij k_j − k_i) / τ."""
    random = np.random.default_rng(5)
    local, whole = (random.normal(size=(4 + 3, 5)).astype(np.float32) for _ in range(2))
    drawn = np.arange(3) < filled

    def loss(local, whole, scale):
        batch, bank = Views(local[:4], whole[:4]), Views(local[4:], whole[4:])
        return contrast.contrastive_loss(lambda x: x * scale, batch, bank, drawn, 1.0)

    of_local, of_whole, of_scale = jax.jit(jax.grad(loss, (0, 1, 2)))(local, whole, 1.0)
    n = 4 + filled
    p = softmax(local[:n] @ whole[:n].T, axis=1)
    share = np.r_[np.full(4, 1 / 4), np.full(filled, 1 / max(filled, 1))]
    expected = np.zeros_like(local)
    expected[:n] = share[:, None] * (p @ whole[:n] - whole[:n])
    np.testing.assert_allclose(of_local, expected, atol=1e-5)
    assert not np.any(of_whole)
    np.testing.assert_allclose(of_scale, np.sum(expected * local), rtol=1e-4)  # the head's, only through queries


class Staged(nn.Module):
    """A network of three stages with 2, 3 and 4 channels, without BatchNorm."""

    @nn.compact
    def __call__(self, x, train: bool):
        self.sow("intermediates", "stages", x)
        for features in (2, 3, 4):
            x = nn.Conv(features, (3, 3), 2)(x)
            self.sow("intermediates", "stages", x)
        return nn.Dense(10)(x.mean((1, 2)))


def test_instance_features_are_channel_means_at_the_inputs():
    random = np.random.default_rng(0)
    means = tuple(random.normal(size=(2, n)).astype(np.float32) for n in (3, 5))
    maps = tuple(random.normal(size=(2, 4, 3, n)).astype(np.float32) for n in (3, 2, 6))
    outputs = Outputs(jnp.zeros((2, 10)), {}, instances=means, stages=maps)
    features = jax.jit(contrast.instance_features, static_argnums=1)
    np.testing.assert_array_equal(features(outputs, "bn"), np.hstack(means))
    expected = np.hstack([np.einsum("bhwc->bc", m) / 12 for m in maps[:2]])  # the last map is not an input
    np.testing.assert_allclose(features(outputs, "stages"), expected, atol=1e-6)
    assert contrast.FEATURES == {"bn": INSTANCES, "stages": STAGES}


def test_feature_dim_is_known_before_anything_is_computed():
    staged = Classifier(Staged(), (0.5,) * 3, (0.5,) * 3)
    assert contrast.feature_dim(nets.classifier(8), nets.IMAGE_SHAPE, "bn") == FEATURE_DIM
    assert contrast.feature_dim(staged, nets.IMAGE_SHAPE, "stages") == 3 + 2 + 3
    with pytest.raises(UserError, match=r"Staged has no BatchNorm.*'stages'"):
        contrast.feature_dim(staged, nets.IMAGE_SHAPE, "bn")
    with pytest.raises(UserError, match="stages"):
        contrast.feature_dim(nets.classifier(8), nets.IMAGE_SHAPE, "stages")


def test_step_reports_the_terms_of_its_images(teacher, parts):
    """Computes each term in NumPy on global views of generator and latents, over three rounds of one step.

    Of the contrast only the features are taken from the state: those of the kept iterate, the round's only one,
    and in later rounds those of the rounds before it, all of which fit into a draw. After two rounds the bank
    is exactly full. The pool gets the images themselves.
    """
    state = _state()
    held = {"local": [], "whole": []}
    for turn in range(3):
        state = parts.begin(state, teacher)
        before = jax.device_get(state.aux)
        images, seen, student = jax.device_get(_seen(state, teacher))
        t, s = (np.asarray(logits, np.float64) for logits in (seen.value, student))
        state = parts.finish(parts.synthesis(state, teacher), teacher)
        metrics = jax.device_get(state.synthesis.last)
        np.testing.assert_allclose(np.asarray(state.aux.pool.values[turn]) / 255, images, atol=0.51 / 255)

        bn = sum(
            np.linalg.norm(layer.mean - layer.running_mean) + np.linalg.norm(layer.var - layer.running_var)
            for layer in seen.bn
        )
        kl = np.sum(softmax(t, axis=1) * (log_softmax(t, axis=1) - log_softmax(s, axis=1)), axis=1)
        np.testing.assert_allclose(metrics["bn_loss"], bn, rtol=1e-4)
        expected = -log_softmax(t, axis=1)[np.arange(8), np.asarray(before.targets)].mean()
        np.testing.assert_allclose(metrics["class_loss"], expected, rtol=1e-4)
        expected = -np.mean(kl * (t.argmax(1) == s.argmax(1)))
        np.testing.assert_allclose(metrics["adversarial_loss"], expected, rtol=1e-3, atol=1e-6)

        local, whole = np.split(np.asarray(state.aux.bank.values[turn % 2]), 2, axis=1)
        np.testing.assert_allclose(whole, np.hstack(seen.instances), rtol=1e-4, atol=1e-5)
        assert np.abs(local - whole).max() > 1e-3  # from other views
        queries, keys = (
            _project(before.head.params, np.concatenate([new, *held[view]]))
            for view, new in (("local", local), ("whole", whole))
        )
        np.testing.assert_allclose(metrics["contrastive_loss"], _contrast(queries, keys, 8), rtol=1e-3)
        weighted = sum(weight * metrics[name] for name, weight in PARTS.items())
        np.testing.assert_allclose(metrics["synthesis_loss"], weighted, rtol=1e-5)
        held["local"].append(local)
        held["whole"].append(whole)
    assert int(state.aux.bank.filled) == 2 and int(state.aux.bank.pushes) == 3


def test_a_round_resets_all_but_head_pool_and_bank(teacher, parts):
    state = parts.finish(parts.synthesis(_state(), teacher), teacher)
    old = jax.device_get(state.aux)
    new = jax.device_get(parts.begin(state, teacher).aux)
    for name in ("head", "pool", "bank"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(old, name))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(old.head.opt_state))
    assert not np.any(np.isclose(new.synthesis.params["latents"], old.synthesis.params["latents"]))
    kernels = [aux.synthesis.params["generator"]["linear"]["kernel"] for aux in (old, new)]
    assert not np.any(np.isclose(*kernels).all(0))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(new.synthesis.opt_state))
    assert not np.array_equal(new.targets, old.targets) and {int(t) for t in new.targets} <= set(range(10))
    np.testing.assert_allclose(new.synthesis.params["latents"].std(), 1, atol=0.35)
    assert np.isinf(new.best.loss)


def test_generator_latents_and_head_are_trained(teacher, parts):
    state = _state()
    old = jax.device_get(state.aux)
    new = jax.device_get(parts.synthesis(state, teacher).aux)
    for a, b in ((old.synthesis, new.synthesis), (old.head, new.head)):
        moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), a.params, b.params)
        assert all(jax.tree.leaves(moved))
    assert np.all(np.any(new.synthesis.params["latents"] != old.synthesis.params["latents"], axis=1))


def test_pool_and_bank_get_the_iterate_with_the_least_loss(teacher, parts):
    state = _state()
    seen = []
    for _ in range(10):
        images, outputs, _ = jax.device_get(_seen(state, teacher))
        state = parts.synthesis(state, teacher)
        seen.append((float(state.synthesis.last["synthesis_loss"]), images, np.hstack(outputs.instances)))
    best = min(range(10), key=lambda i: seen[i][0])
    assert best not in (0, 9)  # neither first nor last, so the test would detect either being kept
    aux = parts.finish(state, teacher).aux
    np.testing.assert_allclose(np.asarray(aux.pool.values[0]) / 255, seen[best][1], atol=0.51 / 255)
    whole = np.asarray(aux.bank.values[0])[:, FEATURE_DIM:]
    np.testing.assert_allclose(whole, seen[best][2], rtol=1e-3, atol=1e-4)


def test_images_get_better_in_a_round(teacher, parts):
    state, seen = _state(), []
    for _ in range(40):
        state = parts.synthesis(state, teacher)
        seen.append(float(state.synthesis.last["synthesis_loss"]))
    assert np.mean(seen[-5:]) < 0.8 * np.mean(seen[:5])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bank_rows": 20}, "bank_rows=20 .*batch_size=8.* 16"),
        ({"bank_rows": 4, "bank_draws": 4}, "bank_rows=4 .* 8"),
        ({"bank_draws": 17}, "bank_draws=17 of bank_rows=16"),
        ({"bank_draws": 0}, "bank_draws=0 "),
    ],
)
def test_a_bank_that_does_not_fit_is_refused(changes, words):
    with pytest.raises(UserError, match=words) as refusal:
        method(**changes)
    assert "\n" not in str(refusal.value)


def test_terms_of_weight_zero_are_not_computed_and_the_student_not_asked(teacher):
    made = method(adversarial_weight=0.0, bn_weight=0.0)

    def nobody(*_, **__):
        raise AssertionError("the student was asked")

    net = functools.partial(nets.classifier(8), teacher)
    _, metrics = jax.eval_shape(
        lambda key: made.synthesise(made.init(key), net, nobody, key, jnp.zeros((), jnp.int32), SINGLE),
        jax.random.key(0),
    )
    assert metrics.keys() == {"class_loss", "contrastive_loss", "synthesis_loss", "synthesis_gradient_norm"}


def test_student_and_preview_are_from_the_pool(teacher, parts):
    state = parts.finish(parts.synthesis(_state(), teacher), teacher)
    aux, rows = state.aux, np.asarray(state.aux.pool.values[0]) / 255

    def found(images):
        return {int(np.abs(rows - image).max((1, 2, 3)).argmin()) for image in images}

    plain = method(rounds.pool(padding=0, flip=False, student_batch_size=48))
    draw = quick_jit(lambda aux, key: (plain.sample(aux, None, key, SINGLE), plain.preview(aux, key, 20)))
    drawn, shown = map(np.asarray, draw(aux, jax.random.key(0)))
    assert found(drawn) == set(range(6)) and found(shown) == {6, 7}
    for image in (*drawn, *shown):
        assert np.abs(rows - image).max((1, 2, 3)).min() < 1e-6


def test_two_rounds_run_and_resume_with_the_same_bits():
    end = rounds.check_runs(METHOD)
    assert int(end.aux.pool.pushes) == int(end.aux.bank.pushes) == 2
    assert end.synthesis.total.keys() == {*PARTS, "synthesis_loss", "synthesis_gradient_norm"}
    assert np.all(np.isfinite(end.aux.bank.values)) and np.any(end.aux.bank.values)


class Linear(nn.Module):
    """A generator that compiles in no time."""

    @nn.compact
    def __call__(self, z, train: bool):
        return nn.sigmoid(nn.Dense(192)(z)).reshape(-1, *nets.IMAGE_SHAPE)


def test_devices_share_the_contrast():
    """In float64, with SGD: the features that two devices gather, the bank and the gradients through both."""
    made = method(rate=0.05, bn_weight=0.0, adversarial_weight=0.0, generator=Linear(), features="stages")
    staged = Classifier(Staged(), (0.5,) * 3, (0.5,) * 3)
    past = np.random.default_rng(0).normal(size=(8, 16))

    def step(aux, variables, axis):
        teacher = functools.partial(staged, variables, axis=axis)
        return made.synthesise(aux, teacher, None, jax.random.key(1), jnp.int32(0), axis)

    with jax.enable_x64(True):
        start = jax.jit(lambda key: (made.init(key), staged.init(key, nets.IMAGE_SHAPE)))
        aux, variables = rounds.in_float64(start(jax.random.key(0)))
        aux = aux.replace(bank=jax.jit(Ring.push)(aux.bank, past))
        one = quick_jit(functools.partial(step, axis=SINGLE))(aux, variables)
        both = jax.vmap(lambda _: step(aux, variables, Axis("devices", 2)), axis_name="devices")
        two = quick_jit(both)(np.arange(2))
        kernels = [np.asarray(each.head.params["out"]["kernel"]) for each in (aux, one[0])]
    assert np.all(kernels[0] != kernels[1])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(lambda ours, whole: close(ours, np.stack([whole, whole])), *jax.device_get((two, one)))


@pytest.mark.slow  # test_devices_share_the_contrast
def test_two_devices_compute_what_one_computes():
    found = rounds.device_differences(__file__)
    assert found.keys() == {"synthesis", "targets", "head", "best", "pool", "bank", "student", "tallies"}
    assert max(found.values()) < 1e-9, found


if __name__ == "__main__":
    # With SGD, a factor in the gradient is a factor in the update.
    rounds.measure_devices(method(rate=0.05))
