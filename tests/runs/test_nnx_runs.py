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
from cudfkd_jax.data import load
from cudfkd_jax.models import nnx_module
from cudfkd_jax.runs import api
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


@pytest.mark.long
def test_a_run_that_is_stopped_resumes_and_is_exported(tmp_path):
    """Between, nothing depends on the objects: the same bits, from a function, dropout and BatchNorm included."""
    test = load("digits", name="digits", directory="", image_shape=SHAPE, num_classes=10, splits=["test"])
    split = tuple(test.splits["test"])
    whole = _distill(workdir=tmp_path / "whole", test=split)
    with pytest.raises(StoppedError):
        _distill(workdir=tmp_path / "stopped", test=split, callbacks=[_Stop()])
    resumed = _distill(workdir=tmp_path / "stopped", test=split)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "stopped")

    images = split[0][:5]
    logits = whole.predict(images)
    np.testing.assert_array_equal(resumed.predict(images), logits)
    net = nnx_nets.small(rngs=nnx.Rngs(0))
    nnx.update(net, nnx.from_flat_state(_trained(net, whole.student.variables)))
    net.eval()
    np.testing.assert_allclose(net((images / np.float32(255) - 0.3) / 0.3), logits, rtol=1e-4, atol=1e-4)

    assert whole.student.net.arch == "nnx:nnx_nets:small"
    program = jax.export.deserialize(bytearray(whole.export("stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(images / np.float32(255)), logits, rtol=1e-4, atol=1e-4)
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(whole.export("orbax").absolute())
    jax.tree.map(np.testing.assert_array_equal, found, whole.student.variables)
    with pytest.raises(UserError, match="no names in PyTorch"):
        whole.export("safetensors")


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


# As long as `_distill`'s, whose compiled steps it finds.
RUN = ("--config=tests/support/tiny.py", "--config.distill.epochs=2", "--config.distill.rounds_per_epoch=1")


@pytest.mark.long
def test_a_run_by_import_path(tmp_path, capsys):
    """Trains, distils, evaluates and exports, then distils again from the teacher as NNX saves it with Orbax."""
    own = ("--config.teacher.module=nnx:nnx_nets:Net", "--config.student.module=nnx:nnx_nets:small")
    first, second = tmp_path / "first", tmp_path / "second"
    assert main.main([*RUN, f"--workdir={first}", *own]) == 0
    assert json.loads((first / "student/net.json").read_text())["arch"] == "nnx:nnx_nets:small"
    assert main.main(["--stage=evaluate", f"--workdir={first}"]) == 0
    assert main.main(["--stage=export", "--format=stablehlo", f"--workdir={first}"]) == 0

    net = nnx_nets.Net(rngs=nnx.Rngs(0))
    nnx.update(net, nnx.from_flat_state(_trained(net, weights.load_net(first / "teacher/net").variables)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", nnx.state(net))
    arguments = (*RUN, f"--workdir={second}", *own, f"--config.teacher.checkpoint={tmp_path / 'saved'}")
    assert main.main(arguments) == 0
    assert weights.load_net(first / "student").sha256 == weights.load_net(second / "student").sha256


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
