"""Checks that PyTorch's round in the benchmark computes the same as ours."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounds import UNOPTIMISED

from benchmarking import peers
from cudfkd_jax.config import build, defaults, networks
from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import STUDENT, SYNTHESIS, purpose_key

torch = pytest.importorskip("torch")
rounds = pytest.importorskip("torch_peer.rounds")
tuned = pytest.importorskip("torch_peer.tuned")

PLAIN, TUNED = rounds.PlainRound, functools.partial(tuned.TunedRound, compiled=False)
CPU = torch.device("cpu")


class Batched(tuned.TunedRound):
    """CUDA's version in full precision: all images of a round in one batch."""

    _on_cuda = True

    def precision(self):
        return contextlib.nullcontext()


def _config(loss: str):
    config = defaults.get_config()
    config.data.image_shape = (8, 8, 3)
    config.teacher.arch, config.student.arch = "wrn10_2", "wrn10_1"
    config.data.num_classes = 3  # few, so that the networks agree on some images
    config.generator.update(latent_dim=8, width=4, initialisation="torch")
    config.distill.update(batch_size=8, student_steps=2, loss=loss, temperature=4.0)
    config.curriculum.adv = 1.5
    return config


@functools.cache
def _problem(loss: str):
    """Returns a problem, a teacher with random statistics, and a state in float64."""
    config = _config(loss)
    net = networks.described(config, "teacher")
    teacher = networks.classifier(config, net)

    @functools.partial(jax.jit, compiler_options=UNOPTIMISED)
    def make():
        variables = teacher.init(jax.random.key(1), net.image_shape)
        keys = iter(jax.random.split(jax.random.key(2), 200))
        variables["batch_stats"] = jax.tree.map(
            lambda x: x + jax.random.uniform(next(keys), x.shape, minval=-0.3, maxval=0.3),
            variables["batch_stats"],
        )
        state = distill_steps.init_state(
            jax.random.key(3), variables, problem=problem, image_shape=net.image_shape
        )
        return jax.tree.map(
            lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, (variables, state)
        )

    shapes = jax.eval_shape(lambda: teacher.init(jax.random.key(1), net.image_shape))
    problem = build.problem(config, networks.pair(config, net, shapes))
    return (config, problem, *make())


@functools.cache
def _ours(loss: str, kind: str):
    """Returns our state after one synthesis step or two student steps, and their losses."""
    _, problem, teacher, state = _problem(loss)
    step = {"synthesis": distill_steps.synthesis_step, "training": distill_steps.student_step}[kind]
    compiled = jax.jit(functools.partial(step, problem=problem, axis=SINGLE), compiler_options=UNOPTIMISED)
    values = []
    for _ in range({"synthesis": 1, "training": 2}[kind]):
        state = compiled(state, teacher)
        values.append({name: float(value) for name, value in getattr(state, kind).last.items()})
    assert not bool(state.failed)
    return state, values


def _latents(config, state, purpose: int, count: int):
    shape = (config.distill.batch_size, config.generator.latent_dim)
    drawn = [jax.random.normal(purpose_key(state.key, purpose, at), shape) for at in range(count)]
    return torch.from_numpy(np.stack(drawn))


def _assert_same(theirs, ours, before):
    """Compares two networks' parameters, to 1e-6 of the largest change of each tensor."""
    names = [name for name, _ in theirs.named_parameters()]
    theirs, ours, before = (dict(net.named_parameters()) for net in (theirs, ours, before))
    for name in names:
        change = (ours[name] - before[name]).abs().max()
        assert change > 0, name
        assert (theirs[name] - ours[name]).abs().max() < 1e-6 * change, name


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("make", [PLAIN, TUNED], ids=["plain", "tuned"])
def test_a_synthesis_step_is_ours(make):
    config, _, teacher, state = _problem("kl")
    networks_ = functools.partial(peers.torch_networks, config, teacher)
    theirs = make(networks_(state), peers.torch_settings(config), CPU)
    (loss,) = theirs.synthesise(_latents(config, state, SYNTHESIS, 1))

    after, (metrics,) = _ours("kl", "synthesis")
    assert loss.dtype == torch.float64
    assert metrics["adversarial_loss"] < 0  # the networks agree on some images
    assert float(loss) == pytest.approx(metrics["synthesis_loss"], rel=1e-10)
    _assert_same(theirs.generator, networks_(after).generator, networks_(state).generator)


@pytest.mark.parametrize(
    ("make", "loss"),
    [(PLAIN, "kl"), (TUNED, "l1"), (functools.partial(Batched, compiled=False), "l1")],
    ids=["plain", "tuned", "batched"],
)
def test_student_steps_are_ours(make, loss):
    config, _, teacher, state = _problem(loss)
    networks_ = functools.partial(peers.torch_networks, config, teacher)
    theirs = make(networks_(state), peers.torch_settings(config), CPU)
    found = theirs.train(_latents(config, state, STUDENT, 2))

    after, metrics = _ours(loss, "training")
    assert [float(loss) for loss in found] == pytest.approx([m["student_loss"] for m in metrics], rel=1e-10)
    _assert_same(theirs.student, networks_(after).student, networks_(state).student)


def test_the_tuned_round_makes_no_gradients_that_nobody_uses():
    config, _, teacher, state = _problem("kl")
    for make, frozen in ((PLAIN, False), (TUNED, True)):
        theirs = make(peers.torch_networks(config, teacher, state), peers.torch_settings(config), CPU)
        theirs.synthesise(_latents(config, state, SYNTHESIS, 1))
        for net in (theirs.teacher, theirs.student):
            assert all((p.grad is None) == frozen for p in net.parameters())
        assert all(p.requires_grad for p in theirs.student.parameters())


@pytest.mark.parametrize(("key", "value"), [("strategy", "soft"), ("granularity", "batch")])
def test_refuses_unsupported_settings(key, value):
    config = _config("kl")
    config.curriculum[key] = value
    with pytest.raises(UserError, match=rf"--peer=torch does not support curriculum\.{key}='{value}'; expected '"):
        peers.check(config, build.devices(config))


def test_rounds_can_be_timed(monkeypatch):
    monkeypatch.setattr(tuned, "compiler_fault", lambda device: "no compiler")
    config, _, teacher, state = _problem("kl")
    theirs = peers.torch_peers(config, teacher, state)
    assert (theirs.version, theirs.device, theirs.fault) == (torch.__version__, "cpu", "no compiler")
    assert list(theirs.rounds) == ["torch, plain", "torch, tuned"]
    for peer_round in theirs.rounds.values():
        for _ in range(2):
            seconds = {kind: values[0] for kind, values in peer_round.run().items()}
            assert seconds["round"] == pytest.approx(seconds["synthesis step"] + 2 * seconds["student step"])
        assert peer_round.step == 4
    assert theirs.rounds["torch, plain"].description == "eager, float32, NCHW"
    assert "channels_last" in theirs.rounds["torch, tuned"].description


def test_tuned_rounds_compute_in_bfloat16_where_ours_does(monkeypatch):
    monkeypatch.setattr(tuned, "compiler_fault", lambda device: "no compiler")
    with jax.enable_x64(False):  # autocast does not change float64
        config, _, teacher, state = _problem.__wrapped__("kl")  # not the stored one, in float64
        config.compute_dtype = "bfloat16"
        theirs = peers.torch_peers(config, teacher, state).rounds["torch, tuned"]
    dtypes = []
    theirs.student.register_forward_hook(lambda module, inputs, logits: dtypes.append(logits.dtype))
    theirs.run()
    assert set(dtypes) == {torch.bfloat16} and theirs.description.startswith("eager, bfloat16 autocast")
