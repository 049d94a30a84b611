"""Tests of whole runs with Flax NNX modules as teacher and student."""

import json
import os
import signal
import subprocess
import sys

import jax
import nnx_nets
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from flax import nnx
from helpers import outcome

import cudfkd_jax
from cudfkd_jax import main
from cudfkd_jax.config.jobs import teacher_source
from cudfkd_jax.data import load
from cudfkd_jax.models import nnx_module
from cudfkd_jax.runs import api
from cudfkd_jax.runs.teacher import find_teacher
from cudfkd_jax.runtime.errors import StoppedError, UserError
from cudfkd_jax.storage import weights

SHAPE = (8, 8, 1)


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def _distill(**changes):
    config = tiny.get_config()
    config.distill.update(epochs=2, rounds_per_epoch=1)
    config.checkpoint.every_seconds = 0.0
    arguments = {
        "teacher": nnx_nets.ready(),
        "student": nnx_nets.small,
        "image_shape": SHAPE,
        "num_classes": 10,
        "mean": 0.3,
        "std": 0.3,
        "config": config,
    }
    return cudfkd_jax.distill(**arguments | changes)


class _Stop(cudfkd_jax.Callback):
    def on_epoch_end(self, state, history):
        if len(history) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return ()


@pytest.fixture(scope="module", name="first")
def _first(request, tmp_path_factory):
    """A run that trains its teacher, by import path, as long as `_distill`'s."""
    folder, tiny_file = tmp_path_factory.mktemp("first") / "run", request.config.rootpath / "tests/support/tiny.py"
    length = ("--config.distill.epochs=2", "--config.distill.rounds_per_epoch=1")
    own = ("--config.teacher.module=nnx:nnx_nets:Net", "--config.student.module=nnx:nnx_nets:small")
    assert main.main([f"--config={tiny_file}", f"--workdir={folder}", *length, *own]) == 0
    return folder


@pytest.fixture(name="net")
def _net(first):
    """Its teacher as an object."""
    net = nnx_nets.Net(rngs=nnx.Rngs(0))
    nnx.update(net, nnx.from_flat_state(_trained(net, weights.load_net(first / "teacher/net").variables)))
    return net


@pytest.mark.long
def test_a_run_by_import_path_is_evaluated_and_its_teacher_read_as_nnx_saves_it(first, net, tmp_path):
    assert json.loads((first / "student/net.json").read_text())["arch"] == "nnx:nnx_nets:small"
    assert main.main(["--stage=evaluate", f"--workdir={first}"]) == 0
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", nnx.state(net))
    config = tiny.get_config()
    config.teacher.update(module="nnx:nnx_nets:Net", checkpoint=str(tmp_path / "saved"))
    found = find_teacher(teacher_source(config), tmp_path / "run")
    assert found.sha256 == weights.load_net(first / "teacher/net").sha256


@pytest.mark.long
def test_a_run_of_objects_that_is_stopped_resumes_with_the_same_bits_and_is_exported(first, net, tmp_path):
    """Nothing depends on the objects: they give the bits of their import paths, dropout and BatchNorm included."""
    test = load("digits", name="digits", directory="", image_shape=SHAPE, num_classes=10, splits=["test"])
    arguments = {"teacher": net, "test": tuple(test.splits["test"]), "workdir": tmp_path / "run"}
    with pytest.raises(StoppedError):
        _distill(**arguments, callbacks=[_Stop()])
    result = _distill(**arguments)
    assert outcome(first)[:2] == outcome(tmp_path / "run")[:2]

    images = arguments["test"][0][:5]
    logits = result.predict(images)
    student = nnx_nets.small(rngs=nnx.Rngs(0))
    nnx.update(student, nnx.from_flat_state(_trained(student, result.student.variables)))
    student.eval()
    np.testing.assert_allclose(student((images / np.float32(255) - 0.3) / 0.3), logits, rtol=1e-4, atol=1e-4)

    assert result.student.net.arch == "nnx:nnx_nets:small"
    program = jax.export.deserialize(bytearray(result.export("stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(images / np.float32(255)), logits, rtol=1e-4, atol=1e-4)
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(result.export("orbax").absolute())
    jax.tree.map(np.testing.assert_array_equal, found, result.student.variables)
    with pytest.raises(UserError, match="no names in PyTorch"):
        result.export("safetensors")


def _trained(net, variables):
    """Returns the flat state of a network with these variables."""
    flat = {
        path: leaf
        for path, leaf in nnx.to_flat_state(nnx.state(net))
        if not isinstance(leaf, nnx.RngState | nnx.Intermediate)
    }
    for path, leaf in flat.items():
        value = variables["params" if isinstance(leaf, nnx.Param) else "batch_stats"]
        for name in path:
            value = value[str(name)]
        flat[path] = leaf.replace(value)
    return flat


def test_a_student_with_weights_starts_from_them():
    config = tiny.get_config()
    student = nnx_nets.ready()
    network, net = api._student(student, config)
    found = network.init(jax.random.key(0), SHAPE)
    jax.tree.map(np.testing.assert_array_equal, found["params"], nnx_module.variables_of(student)["params"])
    assert net.arch == "nnx:nnx_nets:Net"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"teacher": nnx_nets.Net}, "teacher is the class Net, which has no weights; give a trained module"),
        ({"student": nnx_nets.WantsArguments}, r"nnx:nnx_nets:WantsArguments wants arguments \(features\)"),
        ({"student": lambda: 3}, r"gives a int, not a flax\.nnx\.Module"),
    ],
)
def test_what_is_no_network_is_refused(changes, text):
    with pytest.raises(UserError, match=text):
        _distill(**changes)


_ON_DEVICES = """
import functools
import jax, jax.numpy as jnp, nets, nnx_nets, numpy as np
from flax import nnx
from cudfkd_jax.config import build, networks
from cudfkd_jax.models import imported, nnx_module
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.training import distill_steps

config = nets.config()
config.data.update(image_shape=(8, 8, 1), mean=(0.3,), std=(0.3,))
spec = networks.described(config, "teacher")

def wide(tree):
    return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

def make(features, rngs):
    net = nnx_nets.Net(features, rngs=rngs)
    net.dropout.rate = 0.0  # masks are drawn per device
    return net

teacher = make((8, 16), nnx.Rngs(1))
teacher(jax.random.normal(jax.random.key(2), (16, 8, 8, 1)))
classifiers = [
    Classifier(imported.as_linen(network, "net"), (0.3,), (0.3,))
    for network in (teacher, lambda rngs: make((4, 8), rngs))
]
variables = wide(nnx_module.variables_of(teacher))
problem = build.problem(config, networks.Pair(classifiers[0], spec, variables, classifiers[1], spec))
init = jax.jit(functools.partial(distill_steps.init_state, problem=problem, image_shape=(8, 8, 1)))
for step in (distill_steps.synthesis_step, distill_steps.student_step):
    after = []
    for count in (1, 2):
        devices = local_devices(count)
        compiled = devices.compile(functools.partial(step, problem=problem))
        state = compiled(devices.replicate(wide(init(jax.random.key(0), variables))), devices.replicate(variables))
        state = devices.unreplicate(state)
        after.append(jax.device_get((state.student, state.aux, state.synthesis, state.training)))
    for a, b in zip(*map(jax.tree.leaves, after), strict=True):
        assert np.all(np.abs(a - b) <= 1e-9 * max(np.abs(a).max(), 1e-3)), (step, a, b)
"""


@pytest.mark.slow
def test_two_devices_compute_what_one_does():
    process = subprocess.run(
        [sys.executable, "-c", _ON_DEVICES],
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "True",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
