"""Tests of networks on disk: the same weights are the same bytes, and only weights are accepted."""

import dataclasses
import hashlib
import json
import os
import resource
import struct

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from helpers import flip_byte

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import weights
from cudfkd_jax.storage.weights import DESCRIPTION, WEIGHTS, NetworkSpec

NET = NetworkSpec("wrn10_1", 10, (8, 8, 1), (0.3,), (0.25,), {"acc1": 99.5})


def _variables():
    return {
        "params": {"conv": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}, "b": np.float32([1, 2])},
        "batch_stats": {"bn": {"mean": np.zeros(4, np.float32)}},
    }


def _write(folder, content: bytes):
    """Writes a network with these bytes as weights, and their digest."""
    weights.save_net(folder, NET, _variables())
    (folder / WEIGHTS).write_bytes(content)
    description = json.loads((folder / DESCRIPTION).read_text())
    description["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / DESCRIPTION).write_text(json.dumps(description))


def _describe(folder, **changes):
    description = json.loads((folder / DESCRIPTION).read_text()) | changes
    (folder / DESCRIPTION).write_text(json.dumps({k: v for k, v in description.items() if v != "absent"}))


def test_a_network_is_restored(tmp_path):
    weights.save_net(tmp_path, NET, _variables())
    trained = weights.load_net(tmp_path)
    assert trained.net == NET
    jax.tree.map(np.testing.assert_array_equal, trained.variables, _variables())
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.variables)} == {np.dtype("float32")}
    assert trained.sha256 == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()


def test_the_same_weights_are_the_same_bytes(tmp_path):
    weights.save_net(tmp_path / "a", NET, _variables())
    shuffled = {
        "batch_stats": _variables()["batch_stats"],
        "params": dict(reversed(jax.tree.map(jnp.asarray, _variables()["params"]).items())),
    }
    weights.save_net(tmp_path / "b", NET, shuffled)
    for name in (WEIGHTS, DESCRIPTION):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted((WEIGHTS, DESCRIPTION))


class _KilledError(BaseException):
    pass


def _kill_at(patch, moment):
    """Interrupts the code before its call number `moment`, from 0, that changes the disk."""
    done = []

    def counted(function):
        def call(*arguments):
            if len(done) == moment:
                raise _KilledError
            done.append(function)
            return function(*arguments)

        return call

    for name in ("replace", "unlink", "fsync"):
        patch.setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("moment", range(7))
def test_a_kill_leaves_the_old_network_or_the_new_one(tmp_path, monkeypatch, moment, there):
    old, new = (dataclasses.replace(NET, metrics={"acc1": value}) for value in (1.0, 2.0))
    changed = jax.tree.map(lambda x: x + 1, _variables())
    if there:
        weights.save_net(tmp_path, old, _variables())
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        _kill_at(patch, moment)
        weights.save_net(tmp_path, new, changed)
    if (tmp_path / DESCRIPTION).exists():
        found = weights.load_net(tmp_path)
        assert found.net in (old, new) and (there or found.net == new)
        jax.tree.map(np.testing.assert_array_equal, found.variables, changed if found.net == new else _variables())
    else:
        assert not there
    # A later save succeeds and leaves no other files.
    weights.save_net(tmp_path, new, changed)
    weights.stage_net(tmp_path, old, _variables())
    assert weights.load_net(tmp_path).net == new
    weights.settle_net(tmp_path, lambda metrics: metrics == new.metrics)
    assert weights.load_net(tmp_path).net == new
    weights.stage_net(tmp_path, old, _variables())
    weights.settle_net(tmp_path, lambda metrics: metrics == old.metrics)
    assert weights.load_net(tmp_path).net == old
    assert {WEIGHTS, DESCRIPTION} == {path.name for path in tmp_path.iterdir() if path.suffix != ".tmp"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": 3}'])
def test_a_damaged_description_of_what_is_staged_is_dropped(tmp_path, content):
    weights.save_net(tmp_path, NET, _variables())
    weights.stage_net(tmp_path, dataclasses.replace(NET, metrics={}), jax.tree.map(lambda x: x + 1, _variables()))
    (tmp_path / "next.json").write_text(content)
    weights.settle_net(tmp_path, lambda metrics: True)
    assert weights.load_net(tmp_path).net == NET
    assert {WEIGHTS, DESCRIPTION} == {path.name for path in tmp_path.iterdir()}


def test_a_network_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """With the old description and the new weights, the network is read again."""
    weights.save_net(tmp_path, NET, _variables())
    loads, new = json.loads, dataclasses.replace(NET, metrics={"acc1": 1.0})

    def replaced_after(text):
        value = loads(text)
        monkeypatch.undo()
        weights.save_net(tmp_path, new, jax.tree.map(lambda x: x + 1, _variables()))
        return value

    monkeypatch.setattr(json, "loads", replaced_after)
    assert weights.load_net(tmp_path).net == new


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_missing_file_is_named(tmp_path, name):
    weights.save_net(tmp_path, NET, _variables())
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"no network in .*No such file.*{name}"):
        weights.load_net(tmp_path)


@pytest.mark.parametrize("at", [0, 40, -1])
def test_one_changed_byte_is_noticed(tmp_path, at):
    weights.save_net(tmp_path, NET, _variables())
    flip_byte(tmp_path / WEIGHTS, at)
    with pytest.raises(UserError, match="its SHA-256 differs"):
        weights.load_net(tmp_path)


def test_truncated_weights_are_noticed(tmp_path):
    weights.save_net(tmp_path, NET, _variables())
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="its SHA-256 differs"):
        weights.load_net(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"sha256": "0"}', "\0\1"])
def test_a_broken_description_is_an_error(tmp_path, content):
    weights.save_net(tmp_path, NET, _variables())
    (tmp_path / DESCRIPTION).write_text(content)
    with pytest.raises(UserError, match=f"{DESCRIPTION} is damaged"):
        weights.load_net(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"std": [0.0]},
        {"std": [0.1, 0.2]},
        {"mean": ["a"]},
        {"mean": [float("nan")]},
        {"mean": 3},
        {"image_shape": 8},
        {"image_shape": [8, 8]},
        {"more": 1},
        {"arch": "absent"},
        {"sha256": "absent"},
    ],
)
def test_an_inconsistent_description_is_an_error(tmp_path, changes):
    weights.save_net(tmp_path, NET, _variables())
    _describe(tmp_path, **changes)
    with pytest.raises(UserError, match=f"{DESCRIPTION} is damaged"):
        weights.load_net(tmp_path)


def _array(shape, dtype: str, buffer: bytes) -> bytes:
    return msgpack.packb({"params": {"a": msgpack.ExtType(1, msgpack.packb((shape, dtype, buffer)))}})


_HUGE = 2**31 - 1
HOSTILE = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "not a dictionary": msgpack.packb(3),
    "a list": msgpack.packb([1, 2]),
    "an array alone": msgpack.packb(msgpack.ExtType(1, msgpack.packb(((1,), "float32", bytes(4))))),
    "a number for an array": msgpack.packb({"params": {"a": 1.0}}),
    "an unknown extension": msgpack.packb({"params": {"a": msgpack.ExtType(42, b"x")}}),
    "bytes as a name": msgpack.packb({b"params": {}}),
    "a huge list": b"\xdd" + struct.pack(">I", _HUGE),
    "a huge dictionary": b"\xdf" + struct.pack(">I", _HUGE),
    "a huge string": b"\xdb" + struct.pack(">I", _HUGE),
    "a huge extension": b"\xc9" + struct.pack(">I", _HUGE) + b"\x01",
    "huge lists in lists": (b"\xdd" + struct.pack(">I", 5000)) * 1000,
    "an array of a huge shape": _array((2**40,), "float32", bytes(4)),
    "an array of objects": _array((1,), "object", bytes(8)),
    "an array of an unknown type": _array((1,), "float31", bytes(8)),
    "chunks of a huge shape": msgpack.packb(
        {"params": {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {"0": 1}}}}
    ),
    "deep nesting": b"\x81\xa1a" * 100_000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_weights_with_a_right_digest_are_refused_and_take_no_memory(tmp_path, content):
    _write(tmp_path, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes; the peak never shrinks
    with pytest.raises(UserError, match=f"{WEIGHTS} does not hold a network's weights"):
        weights.load_net(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_weights_of_another_network_are_listed(tmp_path):
    shapes = jax.eval_shape(_variables)
    weights.check_weights(_variables(), shapes, tmp_path)
    other = _variables()
    other["params"]["conv"]["kernel"] = np.zeros((4, 3), np.float32)
    other["params"]["b"] = np.zeros(2, np.float64)
    del other["batch_stats"]
    other["params"]["more"] = {"x": np.zeros(())}
    with pytest.raises(UserError) as caught:
        weights.check_weights(other, shapes, tmp_path)
    text = str(caught.value)
    assert "batch_stats/bn/mean is missing and should be float32[4]" in text
    assert "params/b is float64[2] and should be float32[2]" in text
    assert "params/conv/kernel is float32[4, 3] and should be float32[3, 4]" in text
    assert "(4 differ)" in text
