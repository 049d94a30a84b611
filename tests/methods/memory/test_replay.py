"""Tests of replay, past synthetic images in a method's batches, and of MB-DFKD, which uses it."""

import functools
import json

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import replay_nets
import rounds
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax

from cudfkd_jax.methods.base import Method
from cudfkd_jax.methods.mb_dfkd import disagreement_term
from cudfkd_jax.methods.memory.replay import slots_for, with_memory
from cudfkd_jax.methods.memory.ring import Ring
from cudfkd_jax.models.capture import FEATURES, Outputs, apply
from cudfkd_jax.objectives.terms import Synthetic
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.training.state import STUDENT, SYNTHESIS, purpose_key

SHAPE, B, R, SLOTS, STEPS_PER_EPOCH = (2, 2, 1), 6, 2, 3, 4


def _plain(count):
    """Returns a `Method.sample` that draws noise around the number of rounds."""
    return lambda aux, teacher, key, axis: axis.shard(aux + jax.random.normal(key, (count, *SHAPE)))


PLAIN = Method(
    init=lambda key: jnp.zeros(()),
    synthesise=lambda aux, teacher, student, key, step, axis: (aux + 100, {"loss": aux}),
    sample=_plain(B),
    student_loss=lambda student, teacher, step, axis: (jnp.zeros(()), {}),
    preview=lambda aux, key, count: aux + jnp.zeros((count, *SHAPE)),
)


def _with_memory(method=PLAIN, every_epochs=5, slots=SLOTS):
    return with_memory(
        method,
        sample_rows=_plain(R),
        slots=slots,
        rows=R,
        steps_per_epoch=STEPS_PER_EPOCH,
        every_epochs=every_epochs,
    )


@pytest.mark.parametrize(("every_epochs", "epochs"), [(5, [0, 5, 10]), (1, list(range(12)))])
def test_images_are_stored_after_epochs_0_5_10_and_the_newest_slots_are_kept(every_epochs, epochs):
    method = _with_memory(every_epochs=every_epochs)
    begin = jax.jit(lambda aux, key, step: method.begin(aux, None, key, step, SINGLE))
    aux = method.init(jax.random.key(0))
    assert aux.ring.values.shape == (SLOTS, R, *SHAPE)
    pushed = {}
    for step in range(0, 12 * STEPS_PER_EPOCH + 1, 2):
        key = jax.random.fold_in(jax.random.key(1), step)
        before, aux = aux, begin(aux, key, jnp.asarray(step))
        if int(aux.ring.pushes) > int(before.ring.pushes):
            slot = int(before.ring.pushes) % SLOTS
            pushed[step] = np.asarray(aux.ring.values[slot])
            expected = _plain(B)(before.inner, None, jax.random.split(key)[0], SINGLE)[:R]
            np.testing.assert_array_equal(pushed[step], expected)  # from the generator before this round
        else:
            np.testing.assert_array_equal(aux.ring.values, before.ring.values)
        aux, _ = method.synthesise(aux, None, None, key, step, SINGLE)
    assert list(pushed) == [(e + 1) * STEPS_PER_EPOCH for e in epochs]
    newest = np.stack(list(pushed.values())[-SLOTS:])
    kept = np.asarray(aux.ring.values)
    assert sorted(kept[:, 0, 0, 0, 0]) == sorted(newest[:, 0, 0, 0, 0])


def test_a_batch_ends_with_a_whole_slot_and_each_is_as_likely():
    method = _with_memory()
    aux = method.init(jax.random.key(0))
    for value in (1, 2):
        aux = aux.replace(ring=aux.ring.push(jnp.full((R, *SHAPE), 1000.0 * value)))
    draw = jax.jit(jax.vmap(lambda key: method.sample(aux, None, key, SINGLE)))
    batches = np.asarray(draw(jax.random.split(jax.random.key(2), 400)))
    assert batches.shape == (400, B + R, *SHAPE)
    assert np.abs(batches[:, :B]).max() < 10  # new ones
    replayed = batches[:, B:].reshape(400, -1)
    assert (replayed == replayed[:, :1]).all() and set(replayed[:, 0]) == {1000.0, 2000.0}
    assert abs((replayed[:, 0] == 1000).mean() - 0.5) < 0.1  # 4 standard deviations


def test_until_something_is_stored_all_images_are_new():
    method = _with_memory()
    aux = method.init(jax.random.key(0)).replace(inner=jnp.asarray(5.0))
    images = np.asarray(jax.jit(lambda aux: method.sample(aux, None, jax.random.key(3), SINGLE))(aux))
    assert images.shape == (B + R, *SHAPE)
    assert len(np.unique(images)) == images.size and abs(images[B:].mean() - 5) < 2


def test_the_methods_own_phases_are_kept():
    assert _with_memory().finish is None
    method = _with_memory(
        PLAIN._replace(
            begin=lambda aux, teacher, key, step, axis: aux + 1, finish=lambda aux, teacher, key, step, axis: -aux
        )
    )
    aux = method.init(jax.random.key(0))
    step = jnp.asarray(STEPS_PER_EPOCH)
    begun = method.begin(aux, None, jax.random.key(1), step, SINGLE)
    assert float(begun.inner) == 1 and int(begun.ring.pushes) == 1
    assert abs(float(begun.ring.values[0].mean())) < 1  # synthesised before the inner method's round
    finished = method.finish(begun, None, jax.random.key(1), step, SINGLE)
    assert float(finished.inner) == -1 and int(finished.ring.pushes) == 1
    trained, metrics = method.synthesise(begun, None, None, jax.random.key(1), step, SINGLE)
    assert float(trained.inner) == 101 and float(metrics["loss"]) == 1
    assert method.preview(begun, jax.random.key(0), 7).shape == (7, *SHAPE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (functools.partial(_with_memory, slots=0), "slots=0"),
        (functools.partial(_with_memory, every_epochs=0), "every_epochs=0"),
        (functools.partial(slots_for, 100, 16), "capacity=100"),
        (functools.partial(slots_for, 0, 16), "capacity=0"),
        (functools.partial(replay_nets.mb_method, batch_size=12), "batch_size=12"),
        (functools.partial(replay_nets.mb_method, batch_size=4), "batch_size=4"),
        (functools.partial(replay_nets.mb_method, slots=0), "slots=0"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
    assert slots_for(96, 16) == 6


def test_rows_that_the_devices_cannot_share_are_refused():
    method = _with_memory()
    with pytest.raises(UserError, match="2 rows of the memory cannot be shared by 3 devices"):
        method.sample(method.init(jax.random.key(0)), None, jax.random.key(0), Axis("devices", 3))


@pytest.mark.parametrize("released", [False, True])
def test_disagreement_is_one_minus_js_an_element_of_the_teacher_as_a_constant(released):
    random = np.random.default_rng(0)
    z_t, z_s = random.normal(0, 6, (2, 5, 10))
    p, q = softmax(z_t / 3, axis=1), softmax(z_s / 3, axis=1)
    if released:
        p, q, m = (np.clip(x, 0.01, 0.99) for x in (p, q, (p + q) / 2))
        js = (0.5 * m * (np.log(m) - np.log(p)) + 0.5 * m * (np.log(m) - np.log(q))).mean()
    else:
        js = (jensenshannon(p, q, axis=1) ** 2).sum() / p.size
    assert 0 < js < 1

    def value(z_t, z_s):
        term = disagreement_term(1.0, released_js=released)
        return term.value(Synthetic(jnp.zeros(()), Outputs(z_t, {}), Outputs(z_s, {})), SINGLE)

    found, (from_teacher, from_student) = jax.device_get(jax.jit(jax.value_and_grad(value, (0, 1)))(z_t, z_s))
    np.testing.assert_allclose(1 - found, js, rtol=1e-4)
    assert not from_teacher.any() and from_student.any()


def test_released_js_below_zero_counts_as_zero():
    # Classes below 1 % in both are raised to 1 %; M is raised less, so it loses against P and Q.
    p, q = np.full((2, 160), 1e-4)
    p[:80], q[80:] = 0.0124, 0.0124
    logits = [3 * np.log(x / x.sum()).astype(np.float32)[None] for x in (p, q)]
    synthetic = Synthetic(np.zeros(()), Outputs(logits[0], {}), Outputs(logits[1], {}))
    clamped = [np.clip(softmax(x / 3), 0.01, 0.99) for x in logits]
    middle = np.clip(sum(softmax(x / 3) for x in logits) / 2, 0.01, 0.99)
    assert np.sum(middle * (np.log(middle) - 0.5 * np.log(clamped[0]) - 0.5 * np.log(clamped[1]))) < 0
    term = disagreement_term(1.0, released_js=True)
    assert float(jax.jit(term.value, static_argnums=1)(synthetic, SINGLE)) == 1


def test_a_term_without_weight_is_left_out():
    names = ("class", "balance", "feature", "adversarial")
    for name in names:
        left = [term.name for term in replay_nets.objective(**{f"{name}_weight": 0.0})]
        assert left == [f"{other}_loss" for other in names if other != name]


@pytest.fixture(scope="module", name="run")
def _run():
    method = replay_nets.mb_method()
    return method, nets.teacher_variables(), rounds.initial_state(method)


def test_objective_of_mb_dfkd_written_out(run):
    """Computes L_oh + 5 Σ p̄ log10 p̄ − 0.1 mean|φ| + 1 − JS for the images of one synthesis step."""
    method, teacher, state = run
    problem = rounds.problem(method)
    after = replay_nets.step("synthesis", method)(state, teacher)
    last = {name: float(value) for name, value in after.synthesis.last.items()}

    @replay_nets.jit
    def outputs(state):
        z = jax.random.normal(purpose_key(state.key, SYNTHESIS, 0), (replay_nets.BATCH, replay_nets.LATENT))
        images = apply(replay_nets.generator(), state.aux.inner.variables, z, train=True).value
        seen = problem.teacher(teacher, images, capture=(FEATURES,))
        return seen.value, problem.student(state.student.variables, images).value, seen.features

    t, s, features = (np.asarray(x, np.float64) for x in outputs(state))
    mean_p = softmax(t, axis=1).mean(axis=0)
    js = (jensenshannon(softmax(t / 3, axis=1), softmax(s / 3, axis=1), axis=1) ** 2).sum() / t.size
    oh, feature = -np.mean(log_softmax(t, axis=1).max(axis=1)), -np.abs(features).mean()
    for name, value in {
        "class_loss": oh,
        "balance_loss": np.sum(mean_p * np.log(mean_p)),
        "feature_loss": feature,
        "adversarial_loss": 1 - js,
        "synthesis_loss": oh + 5 * np.sum(mean_p * np.log10(mean_p)) + 0.1 * feature + 1 - js,
    }.items():
        np.testing.assert_allclose(last[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    assert (np.asarray(after.aux.ring.values) == 0).all()


def test_student_of_mb_dfkd_minimises_l1_over_new_and_replayed_images(run):
    method, teacher, state = run
    stored = np.random.default_rng(1).random(state.aux.ring.values.shape[1:], np.float32)
    state = state.replace(aux=state.aux.replace(ring=jax.jit(Ring.push)(state.aux.ring, stored)))
    after = replay_nets.step("student", method)(state, teacher)
    key = purpose_key(state.key, STUDENT, 0)
    images, *logits = map(np.asarray, replay_nets.student_batch(method)(state, teacher, key))
    assert images.shape[0] == replay_nets.BATCH * 9 // 8
    np.testing.assert_array_equal(images[replay_nets.BATCH :], stored)
    t, s = (x.astype(np.float64) for x in logits)
    np.testing.assert_allclose(after.training.last["student_loss"], np.abs(t - s).mean(), rtol=1e-4)


def test_new_images_are_normalised_with_their_own_batch(run):
    method, teacher, state = run
    other = jax.tree.map(lambda x: 3 * x + 1, jax.device_get(state.aux.inner.batch_stats))
    changed = state.aux.replace(inner=state.aux.inner.replace(batch_stats=other))
    images, same = (
        np.asarray(replay_nets.student_batch(method)(state.replace(aux=aux), teacher, jax.random.key(0))[0])
        for aux in (state.aux, changed)
    )
    np.testing.assert_array_equal(images, same)
    new = np.asarray(images[: replay_nets.BATCH], np.float64)
    np.testing.assert_allclose(new.mean(axis=(0, 1, 2)), replay_nets.MEAN, atol=1e-5)
    np.testing.assert_allclose(new.std(axis=(0, 1, 2)), replay_nets.STD, rtol=0.1)  # BatchNorm's epsilon
    shown = np.asarray(replay_nets.jit(lambda aux: method.preview(aux, jax.random.key(0), 5))(state.aux))
    assert shown.shape == (5, *nets.IMAGE_SHAPE) and not (shown[0] == images[0]).all()


def test_two_epochs_fill_the_memory_and_resume_at_any_step_with_the_same_bits(run):
    method, _, state = run
    whole = replay_nets.run_epochs(method, state, 2, piecewise=False)
    assert [int(end.aux.ring.pushes) for end in whole] == [0, 1]  # stored at the start of the next epoch
    assert not bool(whole[-1].failed) and int(whole[-1].step) == 2 * rounds.EPOCH.steps
    assert np.asarray(whole[-1].aux.ring.values[0]).std() > 0.1
    (*_, piecewise) = replay_nets.run_epochs(method, state, 2, piecewise=True)
    pairs = zip(rounds.bits(whole[-1]), rounds.bits(piecewise), strict=True)
    assert all(a.dtype == b.dtype and (a == b).all() for a, b in pairs)


@pytest.mark.slow
def test_two_devices_compute_what_one_does():
    found = rounds.device_differences(__file__)
    assert set(found) == {"begin", "synthesis", "student_without", "student_with"}
    assert max(found.values()) < 1e-9, found


def _measure():
    def stored(state):
        images = jax.random.uniform(jax.random.key(1), state.aux.ring.values.shape[1:])
        return state.replace(aux=state.aux.replace(ring=state.aux.ring.push(images)))

    def after_an_epoch(state):
        return state.replace(step=state.step + rounds.EPOCH.steps)

    def as_it_is(state):
        return state

    return replay_nets.measure(
        replay_nets.mb_method(optimiser=replay_nets.SGD),
        {
            "begin": ("begin", after_an_epoch),
            "synthesis": ("synthesis", as_it_is),
            "student_without": ("student", as_it_is),
            "student_with": ("student", stored),
        },
    )


if __name__ == "__main__":
    print(json.dumps(_measure()))
