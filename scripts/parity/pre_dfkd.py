"""PRE-DFKD compared with its authors' release: generator, VAE, replay and student."""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.methods.generative import generator_optimiser
from cudfkd_jax.methods.memory.generative_memory import GenerativeMemory, MemoryState
from cudfkd_jax.methods.pre_dfkd import PreDfkdState
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.distill_steps import Batch, Problem
from cudfkd_jax.training.state import RunState
from parity import networks, ours
from parity.networks import Sizes
from parity.released import DataFree, PreDfkd
from parity.replay import biased_running_variance, feeding, patched, traced
from parity.rows import Report

METHOD = "PRE-DFKD"
_LEFT_OVER = "the decoder's left-over gradient: docstring of methods/pre_dfkd.py"
_EPSILON = "1e-8 in our logarithm: docstring of methods/pre_dfkd.py"
_CANCELLED = "without biases that a BatchNorm cancels, whose gradients are rounding"
# By our layer names. Adam takes a full step even if a gradient is only rounding.
_BIASES = {"generator": ("conv1", "conv2"), "encoder": ("conv1", "conv2", "conv3")}
_SIZES = Sizes(batch=16, image=16, latent=24, width=64)  # the release's networks have this width


def all_steps(release: DataFree, original: PreDfkd, report: Report) -> None:
    """Compares a step of the generator, of the VAE and of the student, and the replayed images.

    Args:
        release: provides the classifiers' weights.
        original: PRE-DFKD's modules.
        report: receives the rows.
    """
    sizes, rows = _SIZES, _SIZES.batch // 8
    config = ours.load("cifar10", "method=pre_dfkd,released", sizes)
    normalise = release.normaliser(config.data.mean, config.data.std)
    teacher, student = networks.pair(release, sizes, normalise)
    g, s, p = config.generator, config.synthesis, config.pre_dfkd
    options = SimpleNamespace(
        img_size=sizes.image,
        latent_dim=sizes.latent,
        batch_size=sizes.batch,
        num_mem_samples=rows,
        lr_G=g.learning_rate,
        oh=s.class_weight,
        ie=s.balance_weight,
        a=s.activation_weight,
        dataset="cifar10",
        student_rehearse_period=1,
    )
    torch.manual_seed(0)
    module = original.generator
    generator, decoder, encoder = (
        made(options, {"cifar10": 3}) for made in (module.Generator, module.MemoryGenerator, module.Encoder)
    )
    mine = ours.start(config, teacher, student)
    adam = optax.adam(p.memory_learning_rate)
    state = mine.state.replace(
        aux=PreDfkdState(
            _state(mine.state.aux.generator, _decoder(generator), generator_optimiser(method_settings(config))),
            MemoryState(
                _state(mine.state.aux.memory.encoder, _encoder(encoder), adam),
                _state(mine.state.aux.memory.decoder, _decoder(decoder), adam),
            ),
        )
    )
    with patched(torch.Tensor, cuda=lambda self, *arguments, **keywords: self):
        _generator_step(report, config, mine, state, original, options, generator, teacher, student)
        memory = _memory(mine.problem)
        nets = decoder, encoder
        images = np.random.default_rng(1).normal(size=(sizes.batch, 3, sizes.image, sizes.image))
        for left_over in (True, False):
            _memory_step(report, config, mine, state, memory, original, options, nets, teacher, images, left_over)
        _student_step(report, config, mine, state, memory, original, options, decoder, teacher, student, images)


def _generator_step(
    report: Report,
    config: Any,
    mine: ours.Ours,
    state: RunState,
    original: PreDfkd,
    options: Any,
    generator: nn.Module,
    teacher: nn.Module,
    student: nn.Module,
) -> None:
    case = report.case(METHOD, "released, a generator step")
    optimiser = torch.optim.Adam(generator.parameters(), lr=options.lr_G)
    key = jax.random.key(5)
    z = np.asarray(jax.random.normal(key, (options.batch_size, options.latent_dim)))
    generator.train(), student.eval(), teacher.eval()
    with (
        biased_running_variance(),
        feeding([z]),
        traced(original.distillation.train_novel_generator) as seen,
    ):
        original.distillation.train_novel_generator(
            options, generator, optimiser, _WithFeatures(teacher), _WithFeatures(student)
        )
    aux, found = ours.compiled(_synthesise, problem=mine.problem)(state, mine.teacher, key)
    m, theirs = {name: float(value) for name, value in found.items()}, seen.returned
    case.compare("class term", m["class_loss"], theirs["loss_one_hot"].item())
    balance = m["balance_loss"] / np.log(10)
    case.compare("balance term", balance, theirs["loss_information_entropy"].item(), note=_EPSILON)
    case.compare("activation term", m["feature_loss"], theirs["loss_activation"].item())
    case.compare("1 − JS", m["adversarial_loss"], theirs["loss_disaggreement"].item())
    case.compare("total synthesis loss", m["synthesis_loss"], theirs["loss_gen"].item())
    after = aux.generator
    gradient = _live(ours.adam_gradient(after.opt_state, config.generator.beta1), "generator")
    case.compare(
        "generator's gradient, through spectral norm",
        gradient,
        _live(_decoder(generator, networks.gradient)["params"], "generator"),
        note=_CANCELLED,
    )
    params, statistics = _decoder(generator)["params"], _decoder(generator)["batch_stats"]
    case.compare(
        "generator's parameters after its step", _live(after.params, "generator"), _live(params, "generator")
    )
    norms = [name for name in statistics if not name.startswith("norm")]
    case.compare(
        "generator's statistics", *({n: tree[n] for n in norms} for tree in (after.batch_stats, statistics))
    )
    vectors = [
        {n: tree[n][f"conv{n[-1]}/kernel/u"] for n in statistics if n.startswith("norm")}
        for tree in (after.batch_stats, statistics)
    ]
    case.compare("estimates of the spectral norm's singular vectors", *vectors)


def _synthesise(state: RunState, teacher: Any, key: jax.Array, *, problem: Problem) -> Any:
    frozen = functools.partial(problem.teacher, teacher, axis=SINGLE)
    student = functools.partial(problem.student, state.student.variables, axis=SINGLE)
    return problem.method.synthesise(state.aux, frozen, student, key, jnp.int32(0), SINGLE)


def _memory_step(
    report: Report,
    config: Any,
    mine: ours.Ours,
    state: RunState,
    memory: GenerativeMemory,
    original: PreDfkd,
    options: Any,
    nets: tuple[nn.Module, nn.Module],
    teacher: nn.Module,
    images: np.ndarray,
    left_over: bool,
) -> None:
    case = report.case(METHOD, "a VAE step" + ("" if left_over else ", the left-over gradient removed"))
    named = _LEFT_OVER if left_over else ""
    decoder, encoder = (copy.deepcopy(net) for net in nets)
    adams = [
        torch.optim.Adam(net.parameters(), lr=config.pre_dfkd.memory_learning_rate) for net in (decoder, encoder)
    ]
    rows, half = options.num_mem_samples, options.batch_size // 2
    key = jax.random.key(9)
    replay_key, noise_key = jax.random.split(key)
    z = np.asarray(jax.random.normal(replay_key, (rows, options.latent_dim)))
    noise = np.asarray(jax.random.normal(noise_key, (half + rows, options.latent_dim)))
    with (
        biased_running_variance(),
        feeding([z]),
        patched(torch, randn_like=lambda like: torch.from_numpy(noise[: len(like)].copy()).to(like.dtype)),
        contextlib.nullcontext() if left_over else _without_left_over(decoder),
    ):
        original.distillation.train_memory_generator(
            *(options, 0, 1, decoder, encoder, *adams, _WithFeatures(teacher)),
            torch.from_numpy(images).to(torch.get_default_dtype()),
        )
    new = _images(config, images[:half])
    instead = jnp.zeros((rows, *new.shape[1:]))

    def update(held: MemoryState, variables: Any) -> MemoryState:
        frozen = functools.partial(mine.problem.teacher, variables)
        return memory.update(held, frozen, new, instead, key, jnp.asarray(False), SINGLE)

    after = ours.compiled(update)(state.aux.memory, mine.teacher)
    for name, held, before, theirs, names in (
        ("decoder", after.decoder, state.aux.memory.decoder, _decoder(decoder), named),
        ("encoder", after.encoder, state.aux.memory.encoder, _encoder(encoder), ""),
    ):
        kind = "encoder" if name == "encoder" else "generator"
        params = _live(held.params, kind), _live(theirs["params"], kind)
        case.compare(f"{name}'s parameters after its step", *params, named=names, note=_CANCELLED)
        start = _live(before.params, kind)
        change = (ours.difference(tree, start) for tree in params)
        case.compare(f"change of the {name}'s parameters", *change, named=names)
        case.compare(f"{name}'s statistics", held.batch_stats, theirs["batch_stats"])


def _student_step(
    report: Report,
    config: Any,
    mine: ours.Ours,
    state: RunState,
    memory: GenerativeMemory,
    original: PreDfkd,
    options: Any,
    decoder: nn.Module,
    teacher: nn.Module,
    student: nn.Module,
    images: np.ndarray,
) -> None:
    case = report.case(METHOD, "a student step on new and replayed images")
    d = config.distill
    optimiser = torch.optim.SGD(
        student.parameters(), d.learning_rate, momentum=d.momentum, weight_decay=d.weight_decay
    )
    key = jax.random.key(21)
    z = np.asarray(jax.random.normal(key, (options.num_mem_samples, options.latent_dim)))
    student.train()
    with biased_running_variance(), feeding([z]), traced(original.distillation.distill_knowledge) as seen:
        original.distillation.distill_knowledge(
            *(options, 0, _WithFeatures(student), _WithFeatures(teacher), copy.deepcopy(decoder), optimiser),
            torch.from_numpy(images).to(torch.get_default_dtype()),
        )

    def replay(held: TrainState, variables: Any) -> jax.Array:
        frozen = functools.partial(mine.problem.teacher, variables)
        return memory.replay(held, frozen, key, SINGLE, train=False)[0]

    replayed = ours.compiled(replay)(state.aux.memory.decoder, mine.teacher)
    normalised = (replayed - jnp.asarray(config.data.mean)) / jnp.asarray(config.data.std)
    theirs = seen.returned["gen_imgs"][options.batch_size :].detach()
    case.compare("replayed images, of tuned latents", networks.channels_first(normalised), theirs)
    batch = jnp.concatenate([_images(config, images), replayed])
    after, m = ours.compiled(_train, problem=mine.problem)(state, mine.teacher, batch)
    case.compare("student's loss", float(m["student_loss"]), seen.returned["loss_kd"].item())
    for quantity, statistics in (("parameters", False), ("statistics", True)):
        case.compare(
            f"student's {quantity} after its step",
            ours.named(after, statistics=statistics),
            networks.named(student, statistics=statistics),
        )


def _train(state: RunState, teacher: Any, images: Any, *, problem: Problem) -> Any:
    return distill_steps._train(state, Batch(images, problem.teacher(teacher, images)), problem, SINGLE)


def _memory(problem: Problem) -> GenerativeMemory:
    """Returns the VAE from inside our method, whose public interface is a whole round."""
    assert problem.method.finish is not None
    remember = inspect.getclosurevars(problem.method.finish).nonlocals["remember"]
    memory = inspect.getclosurevars(remember).nonlocals["memory"]
    assert isinstance(memory, GenerativeMemory)
    return memory


def _images(config: Any, normalised: np.ndarray) -> jax.Array:
    """Converts normalised images to our classifiers' inputs: channels last, normalisation undone."""
    images = jnp.asarray(normalised.transpose(0, 2, 3, 1))
    return images * jnp.asarray(config.data.std) + jnp.asarray(config.data.mean)


class _WithFeatures(nn.Module):
    """A classifier with the call signature of PRE-DFKD's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor, out_feature: bool = False) -> Any:
        logits, features = self.net(images, return_features=True)
        return (logits, [features]) if out_feature else logits


@contextlib.contextmanager
def _without_left_over(decoder: nn.Module) -> Iterator[None]:
    """Clears the decoder's gradient after the first backward pass, which is that of the latents' loss."""
    original, count = torch.Tensor.backward, 0

    def backward(self: torch.Tensor, *arguments: Any, **options: Any) -> None:
        nonlocal count
        original(self, *arguments, **options)
        count += 1
        if count == 1:
            decoder.zero_grad()

    with patched(torch.Tensor, backward=backward):
        yield


def _state(like: TrainState, variables: dict[str, Any], optimiser: optax.GradientTransformation) -> TrainState:
    """Creates a train state from these variables.

    Raises:
        ValueError: their structure differs from our network's.
    """
    for part in ("params", "batch_stats"):
        found, wanted = jax.tree.structure(variables[part]), jax.tree.structure(dict(getattr(like, part)))
        if str(found) != str(wanted):
            raise ValueError(f"the release's {part} are {found}; expected ours, {wanted}")
    return TrainState.create(variables, optimiser)


def _live(params: Any, kind: str) -> dict[str, Any]:
    """Returns the parameters without the biases that a BatchNorm cancels."""
    return {
        layer: {name: value for name, value in held.items() if not (name == "bias" and layer in _BIASES[kind])}
        for layer, held in params.items()
    }


def _array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().numpy().copy()


def _decoder(net: Any, value: Callable[[torch.Tensor], torch.Tensor] = lambda p: p) -> dict[str, Any]:
    """Returns the variables of a generator or decoder in our layout, with each parameter mapped by `value`."""
    norms = [net.conv_blocks0[0], net.conv_blocks1[1], net.conv_blocks2[1]]
    convolutions = [net.conv_blocks1[0], net.conv_blocks2[0], net.conv_blocks3[0]]
    linear, channels = net.l1[0], norms[0].num_features
    projection = networks.projection(_array(value(linear.weight)), _array(value(linear.bias)), channels)
    params: dict[str, Any] = {"linear": projection}
    statistics = {f"bn{i}": _statistics(norm) for i, norm in enumerate(norms)}
    statistics["output"] = _statistics(net.conv_blocks3[2])
    for i, norm in enumerate(norms):
        params[f"bn{i}"] = {"scale": _array(value(norm.weight)), "bias": _array(value(norm.bias))}
    for i, convolution in enumerate(convolutions, 1):
        spectral = hasattr(convolution, "weight_orig")
        kernel = convolution.weight_orig if spectral else convolution.weight
        params[f"conv{i}"] = {
            "kernel": _array(value(kernel)).transpose(2, 3, 1, 0),
            "bias": _array(value(convolution.bias)),
        }
        if spectral:
            u = _array(convolution.weight_u)[None]
            statistics[f"norm{i}"] = {f"conv{i}/kernel/u": u, f"conv{i}/kernel/sigma": np.ones((), u.dtype)}
    return _ours({"params": params, "batch_stats": statistics})


def _encoder(net: Any) -> dict[str, Any]:
    """Returns the variables of an encoder in our layout."""
    params: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    for i, block in enumerate((net.conv_blocks0, net.conv_blocks1, net.conv_blocks2), 1):
        convolution, norm = block[0], block[1]
        params[f"conv{i}"] = {
            "kernel": _array(convolution.weight).transpose(2, 3, 1, 0),
            "bias": _array(convolution.bias),
        }
        params[f"bn{i}"] = {"scale": _array(norm.weight), "bias": _array(norm.bias)}
        statistics[f"bn{i}"] = _statistics(norm)
    channels = net.conv_blocks2[0].out_channels
    for name, head in (("mean_head", net.fc_mu), ("log_var_head", net.fc_var)):
        weight = _array(head.weight)
        size = round((weight.shape[1] // channels) ** 0.5)
        kernel = weight.reshape(-1, channels, size, size).transpose(2, 3, 1, 0).reshape(weight.shape[1], -1)
        params[name] = {"kernel": kernel, "bias": _array(head.bias)}
    return _ours({"params": params, "batch_stats": statistics})


def _statistics(norm: Any) -> dict[str, np.ndarray]:
    return {"mean": _array(norm.running_mean), "var": _array(norm.running_var)}


def _ours(tree: Any) -> dict[str, Any]:
    made = jax.tree.map(lambda leaf: jnp.asarray(np.ascontiguousarray(leaf)), tree)
    assert isinstance(made, dict)
    return made
