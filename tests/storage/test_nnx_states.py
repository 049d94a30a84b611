"""Tests of weights that programs in Flax NNX save, read as those of the network."""

import jax
import nnx_nets
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

from cudfkd_jax.models import nnx_module
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import flax_files


@pytest.fixture(name="net", scope="module")
def _net():
    net = nnx_nets.Net(rngs=nnx.Rngs(3))
    net(np.ones((2, 8, 8, 1), np.float32))
    nnx.pop(net, nnx.Intermediate)
    return net


def _read(path, net, key=""):
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx_module.variables_of(net))
    place = flax_files.find_checkpoint(path) if path.is_dir() else path
    return flax_files.read_variables(place, expected, key).variables


def _check_equal(found, net):
    wanted = nnx_module.variables_of(net)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, wanted)


def _split(net):
    return {"params": nnx.state(net, nnx.Param), "batch_stats": nnx.state(net, nnx.BatchStat)}


@pytest.mark.parametrize(
    "tree",
    [
        nnx.state,
        lambda net: nnx.to_pure_dict(nnx.state(net)),
        lambda net: nnx.state(net, nnx.Not(nnx.RngState)),
        lambda net: {"step": np.ones(()), "model": nnx.state(net, nnx.Not(nnx.RngState))},
        _split,
        nnx_module.variables_of,
    ],
    ids=["state", "pure", "without streams", "wrapped", "by kind", "linen"],
)
def test_orbax_folders_of_a_state_are_read(tree, net, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", tree(net))
    found = _read(tmp_path / "saved", net)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, nnx_module.variables_of(net)
    )


def test_msgpack_of_a_pure_state_is_read(net, tmp_path):
    state = nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.RngState)))
    content = serialization.msgpack_serialize(serialization.to_state_dict(jax.tree.map(np.asarray, state)))
    (tmp_path / "saved.msgpack").write_bytes(content)
    jax.tree.map(
        np.testing.assert_array_equal, _read(tmp_path / "saved.msgpack", net), nnx_module.variables_of(net)
    )


def test_variables_of_other_kinds_are_read(tmp_path):
    net = nnx_nets.Counting(nnx.Rngs(0))
    net.steps[...] += 5
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", nnx.state(net))
    found = _read(tmp_path / "saved", net)
    _check_equal(found, net)
    assert found["Steps"]["steps"] == 5 and found["arrays"]["scale"] == 2


def test_items_and_keys_are_named(net, tmp_path):
    other = nnx_nets.Net(rngs=nnx.Rngs(4))
    states = {
        name: nnx.to_pure_dict(nnx.state(n, nnx.Not(nnx.RngState))) for name, n in (("a", net), ("b", other))
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", states)
    for key, wanted in (("", net), ("a", net), ("b", other)):
        found = _read(tmp_path / "saved", net, key)
        jax.tree.map(np.testing.assert_array_equal, found, nnx_module.variables_of(wanted))


def test_the_state_of_another_network_is_refused_by_name(net, tmp_path):
    other = nnx_nets.Net((8, 12), rngs=nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", nnx.state(other))
    with pytest.raises(UserError, match=r"another network: .*blocks/1/bn/mean is \[12\] and should be \[16\]"):
        _read(tmp_path / "saved", net)
