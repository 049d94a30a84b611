"""Tests of checkpoints: a saved state is restored bit for bit, and damaged ones never are."""

import json
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flip_byte, snapshot

from cudfkd_jax.models.optimisers import sgd
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import checkpoint


def _state(value: float = 1.0):
    """All parts of a run's state: a train state, a typed key, counters, a flag and empty trees."""
    variables = {"params": {"w": jnp.linspace(0, value, 7), "none": {}}}
    return {
        "student": TrainState.create(variables, sgd(lambda step: 0.1, momentum=0.9, weight_decay=1e-4)),
        "key": jax.random.key(int(value)),
        "step": jnp.int32(7),
        "failed": jnp.zeros((), bool),
        "aux": (),
        "half": jnp.ones(3, jnp.bfloat16),
    }


def _assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _damage(path, how):
    largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    manifest = path.with_name(path.name + ".sha256.json")
    if how == "flipped byte":
        flip_byte(largest, 1)
    elif how == "truncated file":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif how == "missing file":
        largest.unlink()
    elif how == "added file":
        (path / "more").touch()
    elif how == "missing folder":
        shutil.rmtree(path)
    elif how == "broken manifest":
        manifest.write_text("{")
    elif how == "missing manifest":
        manifest.unlink()


def test_a_state_is_restored_bit_for_bit(tmp_path):
    state = _state(3.0)
    checkpoint.save(tmp_path / "checkpoints", 7, state, keep=1)
    for like in (_state(), jax.eval_shape(_state)):
        restored, damaged = checkpoint.restore_newest(tmp_path / "checkpoints", like)
        _assert_same(restored, state)
        assert damaged == []
    # The key is typed and draws the same numbers.
    assert jax.random.normal(restored["key"]) == jax.random.normal(state["key"])


def test_without_checkpoints_there_is_no_state(tmp_path):
    assert checkpoint.restore_newest(tmp_path / "none", _state()) == (None, [])
    (tmp_path / "empty").mkdir()
    assert checkpoint.restore_newest(tmp_path / "empty", _state()) == (None, [])


def test_the_newest_few_are_kept(tmp_path):
    for step in (5, 90, 100):
        checkpoint.save(tmp_path, step, _state(step), keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["000000090", "000000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("000000090", "000000090.sha256.json", "000000100", "000000100.sha256.json")
    ]
    _assert_same(checkpoint.restore_newest(tmp_path, _state())[0], _state(100))


def test_an_intact_checkpoint_is_not_written_again(tmp_path):
    checkpoint.save(tmp_path, 1, _state(1), keep=1)
    before = snapshot(tmp_path)
    checkpoint.save(tmp_path, 1, _state(2), keep=1)
    assert snapshot(tmp_path) == before


DAMAGES = ["flipped byte", "truncated file", "missing file", "added file", "missing folder", "broken manifest"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, how):
    checkpoint.save(tmp_path, 1, _state(1), keep=2)
    checkpoint.save(tmp_path, 2, _state(2), keep=2)
    _damage(tmp_path / "000000002", how)
    restored, damaged = checkpoint.restore_newest(tmp_path, _state())
    _assert_same(restored, _state(1))
    assert damaged == [tmp_path / "000000002"]
    # The run reaches the same step again and then has both.
    checkpoint.save(tmp_path, 2, _state(2), keep=2)
    restored, damaged = checkpoint.restore_newest(tmp_path, _state())
    _assert_same(restored, _state(2))
    assert damaged == []


@pytest.mark.parametrize("how", DAMAGES)
def test_only_damaged_checkpoints_are_an_error(tmp_path, how):
    checkpoint.save(tmp_path, 1, _state(), keep=1)
    _damage(tmp_path / "000000001", how)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        checkpoint.restore_newest(tmp_path, _state())
    assert snapshot(tmp_path) == before


def test_what_orbax_cannot_read_is_refused_and_nothing_else_is_said(tmp_path, capfd, caplog):
    checkpoint.save(tmp_path, 1, _state(), keep=1)
    path = tmp_path / "000000001"
    for file in path.glob("**/manifest.ocdbt"):
        file.write_bytes(file.read_bytes()[:3])
    (tmp_path / "000000001.sha256.json").write_text(json.dumps(checkpoint.digests(path)))
    caplog.clear()
    with pytest.raises(UserError, match="that its manifest names, and Orbax cannot read them"):
        checkpoint.restore_newest(tmp_path, _state())
    assert caplog.text == "" and capfd.readouterr() == ("", "")


def test_a_checkpoint_without_manifest_counts_as_not_written(tmp_path):
    checkpoint.save(tmp_path, 1, _state(1), keep=2)
    checkpoint.save(tmp_path, 2, _state(2), keep=2)
    _damage(tmp_path / "000000002", "missing manifest")
    restored, damaged = checkpoint.restore_newest(tmp_path, _state())
    _assert_same(restored, _state(1))
    assert damaged == []
    checkpoint.save(tmp_path, 3, _state(3), keep=2)
    assert not (tmp_path / "000000002").exists()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_save_before_a_damaged_checkpoint_is_the_one_that_stays(tmp_path, keep):
    checkpoint.save(tmp_path, 1, _state(1), keep=2)
    checkpoint.save(tmp_path, 9, _state(9), keep=2)
    _damage(tmp_path / "000000009", "flipped byte")
    checkpoint.save(tmp_path, 5, _state(5), keep=keep)  # the run resumed from step 1 and stopped at 5
    restored, damaged = checkpoint.restore_newest(tmp_path, _state())
    _assert_same(restored, _state(5))
    assert damaged == []


def test_a_save_that_stops_before_the_manifest_does_not_count(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    checkpoint.save(tmp_path, 1, _state(1), keep=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write_json", killed)
        checkpoint.save(tmp_path, 2, _state(2), keep=1)
    assert (tmp_path / "000000002").exists()
    restored, damaged = checkpoint.restore_newest(tmp_path, _state())
    _assert_same(restored, _state(1))
    assert damaged == []
    checkpoint.save(tmp_path, 2, _state(2), keep=1)
    _assert_same(checkpoint.restore_newest(tmp_path, _state())[0], _state(2))


_SAVE_TWICE = """
import sys, pathlib, numpy
from cudfkd_jax.storage import checkpoint
state = {"w": numpy.random.default_rng(0).random(20_000_000, numpy.float32)}  # takes a while to write
for step in (1, 2):
    checkpoint.save(pathlib.Path(sys.argv[1]), step, state, keep=2)
"""


def test_a_process_killed_in_a_save_leaves_nothing_that_counts(tmp_path):
    with subprocess.Popen([sys.executable, "-c", _SAVE_TWICE, tmp_path]) as process:
        while not any(path.name.startswith("000000002") for path in tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["000000001"]
    restored, damaged = checkpoint.restore_newest(tmp_path, {"w": np.zeros(20_000_000, np.float32)})
    np.testing.assert_array_equal(restored["w"], np.random.default_rng(0).random(20_000_000, np.float32))
    assert damaged == []
    checkpoint.save(tmp_path, 3, _state(3), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000003", "000000003.sha256.json"]


def test_the_manifest_names_every_file(tmp_path):
    checkpoint.save(tmp_path, 1, _state(), keep=1)
    named = json.loads((tmp_path / "000000001.sha256.json").read_text())
    files = [path for path in (tmp_path / "000000001").rglob("*") if path.is_file()]
    assert sorted(named) == sorted(str(path.relative_to(tmp_path / "000000001")) for path in files)
    assert checkpoint.is_intact(tmp_path / "000000001")
