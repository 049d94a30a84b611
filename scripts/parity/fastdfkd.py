"""FastDFKD compared with its release: `FastMetaSynthesizer.synthesize` and `train`, round by round."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from PIL import Image

from cudfkd_jax.config import loading
from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.methods import fastdfkd
from cudfkd_jax.models.optimisers import cosine_learning_rate
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import BEGIN, SYNTHESIS, RunState, purpose_key
from parity import networks, ours, released
from parity.networks import Sizes
from parity.pooled import StudentTraining, without_loaders
from parity.released import DataFree
from parity.replay import biased_running_variance, feeding, patched, recording_gradients, traced
from parity.rows import Case, Report

METHOD = "FastDFKD"
_ROUNDING = "the release cuts off, here it is rounded: docstring of methods/fastdfkd.py"
_BATCH, _WARMUP, _RESET = 16, 2, 4
_SINCE_WARMUP = 120  # rounds from the release's warm-up to its reset


def rounds(release: DataFree, report: Report, *, count: int, step_count: int) -> None:
    """Compares rounds: synthesis steps, the meta step, the kept batch, and after the warm-up two student steps.

    Args:
        release: the modules of zju-vipa/Fast-Datafree.
        report: receives the rows.
        count: number of rounds: the first has no memory of statistics and no adversarial term, the first two no
            student steps, and the first layer is drawn anew before the fourth.
        step_count: synthesis steps per round, a number with published learning rates.
    """
    case = report.case(METHOD, f"{count} rounds of {step_count} synthesis steps")
    sizes = Sizes(batch=12)
    config = ours.load(
        "cifar10",
        "method=fastdfkd",
        sizes,
        {
            "distill.synthesis_steps": step_count,
            "distill.rounds_per_epoch": 1,
            "distill.warmup_rounds": _WARMUP,
            "synthesis.batch_size": _BATCH,
            "fastdfkd.reset_round": _RESET,
        },
    )
    normalise = release.normaliser(config.data.mean, config.data.std)
    teacher, student = networks.pair(release, sizes, normalise)
    generator: Any = networks.generator(release, "small", sizes)
    mine = ours.start(config, teacher, student)
    begin, step, finish = (
        ours.step(f, mine)
        for f in (distill_steps.begin_round, distill_steps.synthesis_step, distill_steps.finish_round)
    )
    module, s, g = release.synthesis.fast_meta, config.synthesis, config.generator
    lr_g, lr_z = fastdfkd.learning_rates(method_settings(config).own, step_count)
    trained = {
        "params": networks.generator_params(generator),
        "batch_stats": networks.generator_statistics(generator),
    }
    meta = TrainState.create(trained, optax.adam(step_count * lr_g, b1=g.beta1, b2=g.beta2))
    state = mine.state.replace(aux=mine.state.aux.replace(meta=meta))
    with tempfile.TemporaryDirectory() as folder, without_loaders(module):
        synthesiser = release.synthesis.FastMetaSynthesizer(
            *(teacher, student, generator, sizes.latent, sizes.classes, (3, sizes.image, sizes.image)),
            iterations=step_count,
            lr_g=lr_g,
            lr_z=lr_z,
            synthesis_batch_size=_BATCH,
            sample_batch_size=sizes.batch,
            adv=s.adversarial_weight,
            bn=s.bn_weight,
            oh=s.class_weight,
            save_dir=folder,
            normalizer=normalise,
            warmup=_WARMUP,
            reset_l0=1,
            bn_mmt=config.fastdfkd.bn_memory,
        )
        training = StudentTraining(release, config, "fast_meta", mine, teacher, student, normalise)
        for number in range(1, count + 1):
            before, state = state, begin(state, mine.teacher)
            drawn: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if number == _RESET:
                synthesiser.ep = _SINCE_WARMUP + _WARMUP - 1
                drawn = _first_layer(before, state)
            with drawn:
                state = _round(case, config, mine, step, state, synthesiser)
            best = np.asarray(state.aux.best.value)
            state = finish(state, mine.teacher)
            _compare_meta_step(case, state, synthesiser)
            stored = np.asarray(state.aux.pool.values[number - 1], float)
            case.compare("pool, as rounded levels of the kept images", stored, np.round(255 * np.clip(best, 0, 1)))
            images = [np.asarray(Image.open(Path(folder) / f"{number - 1}-{i}.png"), float) for i in range(_BATCH)]
            case.compare("pool, as the release's files", stored, np.stack(images), named=_ROUNDING)
            if number > _WARMUP:
                state = training.epoch(case, state)


def _round(case: Case, config: Any, mine: ours.Ours, step: Any, state: RunState, synthesiser: Any) -> RunState:
    """Compares the synthesis steps of a round, from latents and targets to the kept images."""
    count = config.distill.synthesis_steps
    adversarial = int(state.aux.rounds) >= _WARMUP
    keys = [purpose_key(state.key, SYNTHESIS, state.synthesis_step + ahead) for ahead in range(count)]
    with (
        feeding([np.asarray(state.aux.fast.params["latents"])]),
        _targets(state, config.data.num_classes),
        _augmentation(synthesiser, keys, config),
        biased_running_variance(),
        recording_gradients() as gradients,
        traced(type(synthesiser).synthesize, "optimizer.zero_grad()") as seen,
    ):
        synthesiser.synthesize()
    adapted = seen.returned["fast_generator"]
    for i, theirs in enumerate(seen.steps):
        state = step(state, mine.teacher)
        m = ours.metrics(state.synthesis)
        memory = ", with memory" if synthesiser.ep > 1 else ""
        case.compare("BN term" + memory, m["bn_loss"], theirs["loss_bn"].item())
        case.compare("class term", m["class_loss"], theirs["loss_oh"].item())
        if adversarial:
            case.compare("adversarial term", m["adversarial_loss"], theirs["loss_adv"].item())
        elif theirs["loss_adv"].item():
            raise AssertionError("the release's adversarial term begins before ours")
        case.compare("total synthesis loss", m["synthesis_loss"], theirs["loss"].item())
        if i == 0:
            _compare_augmented(case, config, keys[0], theirs)
            found = dict(zip(adapted.parameters(), gradients[0][:-1], strict=True))
            theirs_of = networks.generator_params(adapted, found.__getitem__)
            case.compare("generator's gradient", state.aux.slope, theirs_of)
            of_latents = state.aux.fast.opt_state.inner_states["latents"]
            mine_of = ours.adam_gradient(of_latents, config.generator.beta1)["latents"]
            case.compare("gradient of the latents", mine_of, gradients[0][-1])
    params = state.aux.fast.params
    case.compare("adapted generator after the round", params["generator"], networks.generator_params(adapted))
    statistics = networks.generator_statistics(adapted)
    case.compare("its running statistics", state.aux.fast.batch_stats, statistics)
    case.compare("latents after the round", params["latents"], seen.returned["z"].detach())
    kept = networks.channels_first(state.aux.best.value)
    case.compare("kept images", kept, seen.returned["best_inputs"])
    return state


def _compare_augmented(case: Case, config: Any, key: jax.Array, theirs: dict[str, Any]) -> None:
    """Compares the crops and flips of the release's images."""
    images = jnp.asarray(networks.channels_last(theirs["inputs"]))
    made = random_crop_flip(key, images, padding=config.data.padding, flip=config.data.flip)
    normalised = (made - jnp.asarray(config.data.mean)) / jnp.asarray(config.data.std)
    case.compare("cropped and mirrored images", networks.channels_first(normalised), theirs["inputs_aug"].detach())


def _compare_meta_step(case: Case, state: RunState, synthesiser: Any) -> None:
    """Compares the meta generator after its step, the state of its Adam, and the averages of the statistics."""
    generator, optimiser = synthesiser.generator, synthesiser.meta_optimizer
    gradient = networks.generator_params(generator, networks.gradient)
    case.compare("meta generator's gradient, a sum over the steps", state.aux.slope, gradient)
    case.compare("meta generator after its step", state.aux.meta.params, networks.generator_params(generator))
    case.compare(
        "meta generator's running statistics",
        state.aux.meta.batch_stats,
        networks.generator_statistics(generator),
    )
    moments = ours.adam(state.aux.meta.opt_state)
    for name, mine in (("exp_avg", moments.mu), ("exp_avg_sq", moments.nu)):
        held = {parameter: each[name] for parameter, each in optimiser.state.items()}
        theirs = networks.generator_params(generator, held.__getitem__)
        case.compare(f"meta generator's Adam, {name}", mine, theirs)
    averages = {str(i): hook.mmt for i, hook in enumerate(synthesiser.hooks)}
    remembered = {str(i): pair for i, pair in enumerate(state.aux.remembered)}
    case.compare("averages of the BatchNorm statistics", remembered, averages)


@contextlib.contextmanager
def _targets(state: RunState, classes: int) -> Iterator[None]:
    """Makes `torch.randint` return our target classes."""
    targets = torch.from_numpy(np.asarray(state.aux.targets).astype(np.int64))

    def randint(low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        if (low, high, tuple(size)) != (0, classes, tuple(targets.shape)):
            raise ValueError(f"the release draws {size} of {low} to {high}; we draw {tuple(targets.shape)}")
        return targets

    with patched(torch, randint=randint):
        yield


@contextlib.contextmanager
def _augmentation(synthesiser: Any, keys: list[jax.Array], config: Any) -> Iterator[None]:
    """Makes the release's crops and flips draw what ours draw from these keys, one key per step."""
    crop, flip = synthesiser.aug.transforms[:2]
    boxes: list[torch.Tensor] = []
    mirrored: list[torch.Tensor] = []
    size = config.data.image_shape[0] - 1
    square = torch.tensor([[0, 0], [size, 0], [size, size], [0, size]])
    for key in keys:
        crop_key, flip_key = jax.random.split(key)
        corners = np.array(jax.random.randint(crop_key, (_BATCH, 2), 0, 2 * config.data.padding + 1))
        boxes.append(torch.from_numpy(corners[:, None, ::-1].copy()) + square)
        draws = np.array(jax.random.bernoulli(flip_key, shape=(_BATCH, 1, 1, 1)), float)
        mirrored.append(torch.from_numpy(draws.reshape(-1)))

    def box(shape: Any) -> dict[str, torch.Tensor]:
        return {"src": boxes.pop(0).double(), "dst": square.double().expand(_BATCH, 4, 2)}

    with (
        patched(crop, generate_parameters=box),
        patched(flip, __batch_prob_generator__=lambda *arguments: mirrored.pop(0)),
    ):
        yield
    if boxes or mirrored:
        raise ValueError(f"the release leaves {len(boxes)} crops and {len(mirrored)} flips unused")


@contextlib.contextmanager
def _first_layer(before: RunState, state: RunState) -> Iterator[None]:
    """Makes the release's reset draw the standard normal numbers that ours scales."""
    key = jax.random.split(purpose_key(before.key, BEGIN, before.synthesis_step))[0]
    params = state.aux.meta.params
    kernel, scale = (
        np.asarray(jax.random.normal(each, like.shape))
        for each, like in zip(
            jax.random.split(key), (params["linear"]["kernel"], params["bn0"]["scale"]), strict=True
        )
    )
    waiting = [networks.weight_of_projection(kernel, len(scale)), scale]

    def normal(tensor: torch.Tensor, mean: float, std: float) -> torch.Tensor:
        with torch.no_grad():
            return tensor.copy_(mean + std * torch.from_numpy(waiting.pop(0).copy()))

    with patched(torch.nn.init, normal_=normal):
        yield
    if waiting:
        raise ValueError("the release resets no layer where we reset one")


def script(folder: Path, report: Report) -> None:
    """Compares every setting of each command of the release's script, and the student's learning rate.

    Args:
        folder: a checkout of zju-vipa/Fast-Datafree.
        report: receives the rows.
    """
    found = released.commands(folder, "fast_cifar")
    case = report.case(METHOD, f"settings of the {len(found)} commands of scripts/fast_cifar.sh")
    for given in found:
        given = {"teacher": "wrn40_2", "student": "wrn16_1"} | given  # the defaults of datafree_kd.py
        steps = int(given["g_steps"])
        pair = f"teacher={given['teacher']},student={given['student']}"
        config = loading.load(f"{ours.CONFIGS / given['dataset']}.py:{pair},method=fastdfkd")
        loading.override(config, [f"--config.distill.synthesis_steps={steps}"])
        for setting, (mine, theirs) in _settings(config, given, steps).items():
            case.compare(setting, float(mine), float(theirs))
        case.compare("student's learning rate", *_rates(config, given))


def _settings(config: Any, given: dict[str, str], steps: int) -> dict[str, tuple[Any, Any]]:
    reset = _SINCE_WARMUP + int(given["warmup"]) if int(given["reset_l0"]) else 0
    d, g, s, own = config.distill, config.generator, config.synthesis, config.fastdfkd
    lr_g, lr_z = fastdfkd.learning_rates(method_settings(config).own, steps)
    batch_size = method_settings(config).synthesis.batch_size
    return {
        "batch size": (d.batch_size, given["batch_size"]),
        "synthetic batch": (batch_size, given["batch_size"]),  # the default of datafree_kd.py
        "rounds in all": (d.warmup_rounds + d.epochs * d.rounds_per_epoch, given["epochs"]),
        "warm-up": (d.warmup_rounds, given["warmup"]),
        "rounds an epoch": (d.rounds_per_epoch, int(given["ep_steps"]) // int(given["kd_steps"])),
        "student steps a round": (d.student_steps, given["kd_steps"]),
        "synthesis steps a round": (d.synthesis_steps, given["g_steps"]),
        "T": (d.temperature, given["T"]),
        "student's learning rate at the start": (d.learning_rate, given["lr"]),
        "weight decay": (d.weight_decay, 1e-4),
        "momentum": (d.momentum, 0.9),
        "learning rate of the adapted generator": (lr_g, given["lr_g"]),
        "learning rate of the latents": (lr_z, given["lr_z"]),
        "beta1": (g.beta1, 0.5),
        "beta2": (g.beta2, 0.999),
        "length of z": (g.latent_dim, 256),
        "channels of the generator": (g.width, 64),
        "weight of BN": (s.bn_weight, given["bn"]),
        "weight of the class term": (s.class_weight, given["oh"]),
        "weight of the adversarial term": (s.adversarial_weight, given["adv"]),
        "memory of the statistics": (own.bn_memory, given["bn_mmt"]),
        "round of the reset": (own.reset_round, reset),
        "other terms and forms": (0, float(given["act"]) + float(given["balance"]) + float(given["reset_bn"])),
        "first-order MAML": (1, given["is_maml"]),
    }


def _rates(config: Any, given: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the student's learning rates per epoch after the warm-up, as in datafree_kd.py."""
    d = config.distill
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], float(given["lr"]))
    schedule, theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200, eta_min=2e-4), []
    for _ in range(int(given["epochs"]) - int(given["warmup"])):
        theirs.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    mine = cosine_learning_rate(d.learning_rate, d.epochs, 1, end=d.learning_rate_end)
    return np.asarray(mine(jnp.arange(d.epochs))), np.array(theirs)
