"""Tests of size and latency: what is counted and timed, and what is not measured."""

import types

import jax
import numpy as np
import pytest

from cudfkd_jax.evaluation import latency
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.weights import NetworkSpec

_NET = NetworkSpec("wrn10_1", 10, (8, 8, 1), (0.4,), (0.3,), {})


def _variables():
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), _NET.abstract_variables())


def _measure():
    return latency.measure(_NET, _variables(), jax.local_devices()[0])


@pytest.fixture
def clock(monkeypatch):
    """Replaces the network by one that takes `clock[batch_size]` seconds, and counts its calls."""
    times, now, calls = {1: 0.001, 256: 0.1}, [0.0], []

    class Network:
        def __init__(self, batch_size):
            self.batch_size = batch_size

        def memory_analysis(self):
            return types.SimpleNamespace(temp_size_in_bytes=times.get("bytes", 0))

        def __call__(self, variables, images):
            calls.append(self.batch_size)
            if times[self.batch_size] is None:
                raise MemoryError
            now[0] += times[self.batch_size]

    class Lowered:
        def lower(self, variables, images):
            return types.SimpleNamespace(compile=lambda: Network(images.shape[0]))

    monkeypatch.setattr(latency.jax, "jit", lambda function: Lowered())
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    times["calls"] = calls
    return times


def test_a_real_network_is_counted_and_timed():
    found = _measure()
    leaves = jax.tree.leaves(_NET.abstract_variables())
    assert found["bytes"] == 4 * sum(leaf.size for leaf in leaves)
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(_NET.abstract_variables()["params"]))
    assert set(found["latency_ms"]) == {"1", "256"} and 0 < found["latency_ms"]["1"] < found["latency_ms"]["256"]


def test_the_first_call_does_not_count(clock, monkeypatch):
    assert _measure()["latency_ms"] == {"1": pytest.approx(1), "256": pytest.approx(100)}
    assert clock["calls"].count(1) == 31 and 5 < clock["calls"].count(256) < 31


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ({256: None}, 1),  # out of memory
        ({1: 0.1}, 0),  # 256 times that takes longer than anybody waits
    ],
)
def test_a_batch_that_does_not_fit_or_takes_too_long_is_not_measured(clock, change, calls):
    clock.update(change)
    found = _measure()["latency_ms"]
    assert found["1"] and found["256"] is None
    assert clock["calls"].count(256) == calls


def test_a_batch_that_a_cpu_would_swap_for_is_not_begun(clock):
    clock["bytes"] = 2**60
    assert _measure()["latency_ms"] == {"1": None, "256": None}
    assert clock["calls"] == []


def test_a_slow_batch_is_called_twice(clock):
    clock[256] = 4.0
    assert _measure()["latency_ms"]["256"] == pytest.approx(4000)
    assert clock["calls"].count(256) == 2


def test_other_errors_are_not_hidden():
    net = NetworkSpec("wrn11_1", 10, (8, 8, 1), (0.4,), (0.3,), {})
    with pytest.raises(UserError):
        latency.measure(net, _variables(), jax.local_devices()[0])


def test_the_table_fits_80_columns_and_compares():
    teacher = {
        "arch": "wrn40_2",
        "parameters": 2_243_546,
        "bytes": 8_990_000,
        "latency_ms": {"1": 4.5, "256": None},
    }
    student = {"arch": "wrn16_1", "parameters": 174_778, "bytes": 704_000, "latency_ms": {"1": 0.9, "256": 123.4}}
    text = latency.describe({"teacher": teacher, "student": student}, "cpu")
    assert text.splitlines() == [
        "          parameters        MB     ms, batch 1   ms, batch 256",
        "teacher    2,243,546      8.99             4.5    not measured  wrn40_2",
        "student      174,778      0.70             0.9             123  wrn16_1",
        "student: 12.8× smaller, 5.0× as fast at batch 1",
        "on cpu, float32",
    ]
    assert latency.describe({"student": student}, "cpu").splitlines()[1:] == [
        "student      174,778      0.70             0.9             123  wrn16_1",
        "on cpu, float32",
    ]
