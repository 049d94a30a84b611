"""Compares the test metrics with SciPy and NumPy, over padded, merged and distributed batches."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special
from scipy.spatial import distance

from cudfkd_jax.evaluation import metrics

examples = functools.partial(hypothesis.settings, deadline=None, derandomize=True)


# Compiled as a whole.
top_k_correct = jax.jit(metrics.top_k_correct, static_argnums=2)
loyalty_of, released_loyalty_of = map(jax.jit, (metrics.probability_loyalty, metrics.probability_loyalty_released))
compute = jax.jit(lambda collection: collection.compute())


@functools.partial(jax.jit, static_argnums=0)
def computed(kind, outputs):
    return kind.single_from_model_output(**outputs).compute()


def random_outputs(rows, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    teacher = 3 * rng.normal(size=(rows, classes)).astype(np.float32)
    student = (teacher + 1.5 * rng.normal(size=(rows, classes))).astype(np.float32)
    return {
        "student_logits": student,
        "teacher_logits": teacher,
        "labels": rng.integers(0, classes, rows).astype(np.int32),
        "mask": np.ones(rows, bool),
    }


def expected_metrics(student_logits, teacher_logits, labels, mask):
    """Computes the metrics with NumPy and SciPy in float64, over the unmasked rows."""
    s, t = student_logits[mask].astype(np.float64), teacher_logits[mask].astype(np.float64)
    y = labels[mask]
    p, q = special.softmax(s, -1), special.softmax(t, -1)
    ranks = (s > s[np.arange(len(y)), y][:, None]).sum(-1)
    return {
        "acc1": 100 * np.mean(ranks < 1),
        "acc5": 100 * np.mean(ranks < 5),
        "agree1": 100 * np.mean(s.argmax(-1) == t.argmax(-1)),
        "loyalty": np.mean(1 - distance.jensenshannon(p, q, axis=-1)),
        "loyalty_released": np.mean(1 - np.sqrt(distance.jensenshannon(p + 1e-8, q + 1e-8, axis=-1))),
    }


def assert_metrics(actual, expected, rtol=2e-6):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=rtol), name


def padded_batches(outputs, size):
    """Yields batches of `size` rows; the last is padded with masked garbage."""
    rows = len(outputs["labels"])
    for start in range(0, rows, size):
        batch = {name: value[start : start + size] for name, value in outputs.items()}
        missing = size - len(batch["labels"])
        yield {
            "student_logits": np.pad(batch["student_logits"], ((0, missing), (0, 0)), constant_values=np.nan),
            "teacher_logits": np.pad(batch["teacher_logits"], ((0, missing), (0, 0)), constant_values=7),
            "labels": np.pad(batch["labels"], (0, missing)),
            "mask": np.pad(batch["mask"], (0, missing)),
        }


def test_metrics_equal_scipys():
    outputs = random_outputs(300)
    assert_metrics(computed(metrics.evaluation_metrics(10), outputs), expected_metrics(**outputs))


def test_top_k_by_hand():
    logits = np.array([[0.1, 0.9, 0.5, 0.0]] * 4)
    labels = np.arange(4)
    np.testing.assert_array_equal(top_k_correct(logits, labels, 1), [False, True, False, False])
    np.testing.assert_array_equal(top_k_correct(logits, labels, 2), [False, True, True, False])
    np.testing.assert_array_equal(top_k_correct(logits, labels, 3), [True, True, True, False])


def test_ties_are_broken_as_arg_max_breaks_them():
    logits = np.zeros((3, 3))
    np.testing.assert_array_equal(top_k_correct(logits, np.arange(3), 1), [True, False, False])


def test_loyalty_by_hand():
    # P = [1/2, 1/4, 1/4], Q = [1/4, 1/2, 1/4], natural logarithm.
    s, t = np.log(np.array([[2.0, 1.0, 1.0]])), np.log(np.array([[1.0, 2.0, 1.0]]))
    js = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    np.testing.assert_allclose(loyalty_of(s, t), [1 - js**0.5], rtol=1e-6)
    np.testing.assert_allclose(released_loyalty_of(s, t), [1 - js**0.25], rtol=1e-6)


def test_least_and_greatest_loyalty():
    opposite = np.array([[200.0, 0.0]]), np.array([[0.0, 200.0]])
    np.testing.assert_allclose(loyalty_of(*opposite), [1 - math.log(2) ** 0.5], rtol=1e-6)
    released = released_loyalty_of(*opposite)
    np.testing.assert_allclose(released, [1 - math.log(2) ** 0.25], rtol=1e-5)
    same = random_outputs(50)["teacher_logits"]
    np.testing.assert_array_equal(loyalty_of(same, same), np.ones(50))
    np.testing.assert_array_equal(released_loyalty_of(same, same), np.ones(50))


@examples(max_examples=60)
@hypothesis.given(logits=hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-30, 30, width=32)))
def test_loyalty_range_and_its_relation_to_the_released_one(logits):
    loyalty = np.asarray(loyalty_of(*logits))
    released = np.asarray(released_loyalty_of(*logits))
    assert np.all((loyalty >= 1 - math.sqrt(math.log(2)) - 1e-6) & (loyalty <= 1))
    assert np.all((released >= 1 - math.log(2) ** 0.25 - 1e-6) & (released <= 1))
    assert np.all(released <= loyalty + 1e-6)  # the square root of a number below 1 is larger


def test_agreement_ignores_the_labels():
    s, t = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[0.0, 9.0], [0.0, 1.0]])
    np.testing.assert_array_equal(jax.jit(metrics.agreement)(s, t), [True, False])


@pytest.mark.parametrize("size", [7, 64, 128, 300])
def test_padding_and_batch_size_do_not_change_the_result(size):
    outputs = random_outputs(300)
    outputs["mask"][::11] = False
    kind = metrics.evaluation_metrics(10)
    update = jax.jit(lambda total, batch: total.merge(kind.single_from_model_output(**batch)))
    total = kind.empty()
    for batch in padded_batches(outputs, size):
        total = update(total, batch)
    assert_metrics(compute(total), expected_metrics(**outputs))


def test_gathered_over_devices_as_over_batches():
    """Uses vmap with an axis name, which computes the same as pmap, on one device."""
    outputs = random_outputs(32)
    outputs["mask"][29:] = False
    kind = metrics.evaluation_metrics(10)
    shards = {name: value.reshape(4, 8, *value.shape[1:]) for name, value in outputs.items()}
    gather = jax.vmap(
        lambda shard: kind.gather_from_model_output(axis_name="devices", **shard), axis_name="devices"
    )
    first = jax.tree.map(lambda x: x[0], jax.device_get(jax.jit(gather)(shards)))
    assert_metrics(compute(first), expected_metrics(**outputs))


def test_sums_over_devices_of_merged_metrics_lose_nothing():
    """Checks that a psum may add the fields of four devices, because they are sums."""
    values = np.random.default_rng(3).uniform(0.8, 1.0, (4, 50, 16)).astype(np.float32)
    add = jax.jit(lambda total, batch: total.merge(metrics.Mean.from_model_output(batch)))
    per_device = []
    for device in values:
        total = metrics.Mean.empty()
        for batch in device:
            total = add(total, batch)
        per_device.append(total)
    summed = jax.tree.map(lambda *x: sum(x), *jax.device_get(per_device))
    assert compute(summed) == pytest.approx(values.astype(np.float64).mean(), rel=2e-7)


def test_merging_many_small_batches_keeps_float32_exact():
    """Merges 200,000 single rows, for which a plain float32 sum loses five digits."""
    values = np.random.default_rng(0).uniform(0.7, 1.0, 200_000).astype(np.float32)

    @jax.jit
    def accumulate(values):
        def add(total, value):
            return total.merge(metrics.Mean.from_model_output(value[None])), None

        return jax.lax.scan(add, metrics.Mean.empty(), values)[0]

    exact = np.asarray(values, np.float64).mean()
    total = accumulate(values)
    assert abs(float(total.total) / len(values) - exact) > 1e-6  # hence the correction
    assert float(total.compute()) == pytest.approx(exact, rel=2e-7)


def test_accuracy_is_exact_in_percent():
    correct = np.arange(10_000) < 9571
    percentage = jax.jit(lambda values: metrics.Percentage.from_model_output(values).compute())
    assert float(percentage(correct)) == np.float32(95.71)


def test_five_classes_have_no_top_five():
    assert "acc5" not in metrics.evaluation_metrics(5).empty().compute()
    assert "acc5" in metrics.evaluation_metrics(6).empty().compute()


def test_without_a_teacher_only_accuracies_are_measured():
    outputs = random_outputs(40)
    expected = expected_metrics(**outputs)
    del outputs["teacher_logits"]
    kind = metrics.evaluation_metrics(10, with_teacher=False)
    actual = computed(kind, outputs)
    assert_metrics(actual, {name: expected[name] for name in ("acc1", "acc5")})


def test_the_same_collection_for_the_same_question():
    """Checks that the type is the same, so that steps compile once and collections of two calls can be merged."""
    assert metrics.evaluation_metrics(10) is metrics.evaluation_metrics(10)


def test_bfloat16_logits_are_judged_in_float32():
    outputs = random_outputs(20)
    low = {name: outputs[name].astype(jnp.bfloat16) for name in ("student_logits", "teacher_logits")}
    actual = computed(metrics.evaluation_metrics(10), {**outputs, **low})
    rounded = {name: np.asarray(value, np.float32) for name, value in low.items()}
    expected = expected_metrics(**{**outputs, **rounded})
    assert actual["loyalty"] == pytest.approx(expected["loyalty"], rel=2e-6)
    assert actual["loyalty_released"] == pytest.approx(expected["loyalty_released"], rel=2e-6)


def test_stability_is_mean_and_population_variance():
    assert metrics.stability([90.0, 92.0, 94.0]) == (92.0, pytest.approx(8 / 3))
    assert metrics.stability([90.0]) == (90.0, 0.0)
