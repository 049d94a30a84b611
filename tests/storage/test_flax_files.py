"""Tests of checkpoints as Orbax and Flax write them: items, steps and wrappers lead to the same variables."""

import warnings

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from flax import serialization
from flax.training import checkpoints
from orbax.checkpoint import v1

from cudfkd_jax.config.jobs import teacher_source
from cudfkd_jax.runs import teacher
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import flax_files


def _variables(fill=1.0):
    return {
        "params": {"Dense_0": {"kernel": np.full((3, 2), fill, np.float32)}},
        "batch_stats": {"BatchNorm_0": {"mean": np.zeros(2, np.float32)}},
    }


def _read(path, key=""):
    return flax_files.read_variables(
        flax_files.find_checkpoint(path) if path.is_dir() else path, _variables(), key
    )


def _assert_equal(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, wanted)


# The writers: each writes variables to a path.


def _items(path, **items):
    args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave({"epoch": 3})))


def _manager(path, **options):
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step in (9, 100):
            manager.save(step, args=ocp.args.StandardSave(_variables(step)))


def _manager_with_items(path):
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(step_prefix="ckpt")) as manager:
        for step in (9, 100):
            state, meta = ocp.args.StandardSave({"model": _variables(step)}), ocp.args.JsonSave({})
            manager.save(step, args=ocp.args.Composite(state=state, meta=meta))


def _flax(path, msgpack):
    flax.config.update("flax_use_orbax_checkpointing", not msgpack)
    for step in (9, 100):
        checkpoints.save_checkpoint(path, _variables(step), step, keep=2)


def _v1_steps(path):
    with v1.training.Checkpointer(path) as checkpointer:
        for step in (9, 100):
            checkpointer.save_pytree(step, _variables(step))


STEPS = {
    "100": _manager,
    "ckpt_100": lambda path: _manager(path, step_prefix="ckpt"),
    "net_00000100": lambda path: _manager(path, step_prefix="net", step_format_fixed_length=8),
    "ckpt_100 of items": _manager_with_items,
    "checkpoint_100": lambda path: _flax(path, msgpack=True),
    "checkpoint_100 of Orbax": lambda path: _flax(path, msgpack=False),
    "100 of v1": _v1_steps,
}
SINGLE = {
    "an item": lambda path: _items(path, model=_variables()),
    "an item beside others": lambda path: _items(path, state=_variables(), optimiser={"mu": np.ones(3)}),
    "params and batch_stats as items": lambda path: _items(path, **_variables()),
    "a tree of v1": lambda path: v1.save_pytree(path, _variables()),
    "items of v1": lambda path: v1.save_checkpointables(path, {"net": _variables(), "other": {"x": np.ones(2)}}),
    "a train state that holds all variables as params": lambda path: path.write_bytes(
        serialization.to_bytes({"step": 3, "params": _variables(), "opt_state": {"0": {"mu": _variables()}}})
    ),
}


@pytest.fixture(autouse=True)
def _quiet():
    before = flax.config.flax_use_orbax_checkpointing
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        yield
    flax.config.update("flax_use_orbax_checkpointing", before)


@pytest.mark.parametrize("write", SINGLE.values(), ids=SINGLE)
def test_items_and_trees_are_read(write, tmp_path):
    write(tmp_path / "saved")
    _assert_equal(_read(tmp_path / "saved").variables, _variables())


@pytest.mark.parametrize("name", STEPS)
def test_the_newest_step_is_read(name, tmp_path):
    path = tmp_path / "saved"
    STEPS[name](path)
    newest = path / name.split()[0]
    (path / "101.orbax-checkpoint-tmp-7").mkdir()  # of a save that was killed
    (path / "epoch_200").write_bytes(b"PK of another program")
    assert flax_files.find_checkpoint(path) == newest
    _assert_equal(_read(path).variables, _variables(100))
    _assert_equal(_read(newest).variables, _variables(100))


def test_of_several_items_one_is_chosen_and_named(tmp_path):
    path = tmp_path / "saved"
    _items(path, model=_variables(1), ema=_variables(2))
    read = _read(path)
    assert read.notes == ("read 'model' of saved, which also has ema (--config.teacher.checkpoint_key)",)
    _assert_equal(read.variables, _variables(1))
    _assert_equal(_read(path, "ema").variables, _variables(2))
    with pytest.raises(UserError, match=r"unknown teacher\.checkpoint_key 'emma' \(did you mean 'ema'"):
        _read(path, "emma")


def test_a_key_chooses_an_entry_of_a_file(tmp_path):
    path = tmp_path / "saved.msgpack"
    path.write_bytes(serialization.to_bytes(_variables(1) | {"ema": _variables(2)}))
    _assert_equal(_read(path).variables, _variables(1))
    _assert_equal(_read(path, "ema").variables, _variables(2))


def test_items_without_variables_are_named(tmp_path):
    _items(tmp_path / "saved", optimiser={"mu": np.ones(3)})
    with pytest.raises(UserError, match="holds no 'params' but optimiser"):
        _read(tmp_path / "saved")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html>", "an HTML page"),
    ],
)
def test_what_lies_in_the_place_of_a_file_is_named(content, text, tmp_path):
    (tmp_path / "saved.msgpack").write_bytes(content)
    with pytest.raises(UserError, match=text):
        _read(tmp_path / "saved.msgpack")


def test_a_folder_of_something_else_holds_no_checkpoint(tmp_path):
    (tmp_path / "run10").mkdir()
    (tmp_path / "epoch_3").write_bytes(b"PK")
    assert flax_files.find_checkpoint(tmp_path) is None


def test_the_step_is_said_and_the_teacher_is_read(tmp_path):
    config, said = tiny.get_config(), []
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), _wanted(config))
    for step in (9, 100):
        checkpoints.save_checkpoint(tmp_path / "saved", variables, step, keep=2)
    config.teacher.checkpoint = str(tmp_path / "saved")
    found = teacher.find_teacher(teacher_source(config), tmp_path / "run", said.append)
    _assert_equal(found.variables, variables)
    assert said == [f"teacher: the newest step in {tmp_path / 'saved'} is checkpoint_100"]
    config.teacher.checkpoint = str(tmp_path / "saved" / "checkpoint_9")
    _assert_equal(teacher.find_teacher(teacher_source(config), tmp_path / "run").variables, variables)


def _wanted(config):
    return teacher_source(config).net.abstract_variables()
