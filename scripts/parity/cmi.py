"""CMI compared with `CMISynthesizer.synthesize` and `train`: rounds with an empty and with a filled bank."""

import tempfile
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional

from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.methods import cmi
from cudfkd_jax.methods.generative import generator_optimiser
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import SYNTHESIS, RunState, purpose_key
from parity import networks, ours
from parity.networks import Sizes
from parity.pooled import StudentTraining, without_loaders
from parity.released import DataFree
from parity.replay import feeding, patched, recording_gradients, traced
from parity.rows import Case, Report

METHOD = "CMI"
_BATCH, _BANK, _DRAWN = 16, 64, 24
_PADDING, _SHIFT = 4, (2, 5)  # for the global view
_HALF = _BATCH // 2  # images to mirror


def rounds(release: DataFree, report: Report, *, count: int = 3, step_count: int = 3) -> None:
    """Compares rounds: synthesis steps, the kept batch, the bank, and two student steps each.

    Both sides use the same two fixed views, which are linear in the images; the drawing of views is not compared.

    Args:
        release: the release's modules.
        report: receives the rows.
        count: number of rounds; the bank is empty in the first and has fewer rows than draws in the second.
        step_count: synthesis steps per round.
    """
    case = report.case(METHOD, f"{count} rounds of {step_count} synthesis steps, on given views")
    sizes = Sizes(batch=12)
    config = ours.load(
        "cifar10",
        "method=cmi",
        sizes,
        {
            "distill.synthesis_steps": step_count,
            "distill.rounds_per_epoch": 1,
            "synthesis.batch_size": _BATCH,
            "cmi.bank_rows": _BANK,
            "cmi.bank_draws": _DRAWN,
        },
    )
    normalise = release.normaliser(config.data.mean, config.data.std)
    teacher, student = networks.pair(release, sizes, normalise)
    blurs = _blurs(sizes.image)
    with patched(cmi, _views=lambda key, images, pool: _our_views(images, blurs)):
        mine = ours.start(config, teacher, student)
        begin, step, finish = (
            ours.step(f, mine)
            for f in (distill_steps.begin_round, distill_steps.synthesis_step, distill_steps.finish_round)
        )
        generator = networks.generator(release, "small", sizes)
        module, s, c = release.synthesis.contrastive, config.synthesis, config.cmi
        with tempfile.TemporaryDirectory() as folder, without_loaders(module):
            synthesiser = release.synthesis.CMISynthesizer(
                *(teacher, student, generator, sizes.latent, sizes.classes, (3, sizes.image, sizes.image)),
                bank_size=_BANK,
                n_neg=_DRAWN,
                head_dim=c.head_width,
                iterations=step_count,
                lr_g=config.generator.learning_rate,
                synthesis_batch_size=_BATCH,
                sample_batch_size=sizes.batch,
                adv=s.adversarial_weight,
                bn=s.bn_weight,
                oh=s.class_weight,
                cr=c.contrastive_weight,
                cr_T=c.contrastive_temperature,
                save_dir=folder,
                normalizer=normalise,
            )
            synthesiser.aug = lambda images: _their_views(images, blurs, normalise)
            head = TrainState.create({"params": _head(synthesiser)}, optax.adam(c.head_learning_rate))
            state = mine.state.replace(aux=mine.state.aux.replace(head=head))
            training = StudentTraining(release, config, "cmi", mine, teacher, student, normalise)
            for number in range(count):
                state = begin(state, mine.teacher)
                state = _with_generator(state, config, release, sizes, seed=3 + number)
                if number:
                    held = np.asarray(state.aux.bank.values).reshape(_BANK, -1)[: number * _BATCH]
                    case.compare("bank before the round", held, synthesiser.mem_bank.data[: number * _BATCH])
                state = _round(case, config, release, mine, step, state, synthesiser, sizes, number)
                best = np.asarray(state.aux.best.value[0])
                state = finish(state, mine.teacher)
                levels = np.round(255 * np.clip(best, 0, 1))
                case.compare(
                    "pool, as rounded levels of the kept images",
                    np.asarray(state.aux.pool.values[number], float),
                    levels,
                )
                state = training.epoch(case, state)


def _round(
    case: Case,
    config: Any,
    release: DataFree,
    mine: ours.Ours,
    step: Any,
    state: RunState,
    synthesiser: Any,
    sizes: Sizes,
    number: int,
) -> RunState:
    module, generator = release.synthesis.contrastive, synthesiser.generator
    weights = networks.generator(release, "small", sizes, seed=3 + number).state_dict()
    z = np.asarray(state.aux.synthesis.params["latents"])
    targets = torch.from_numpy(np.asarray(state.aux.targets).astype(np.int64))
    draws = [_rows_drawn(state, ahead, number) for ahead in range(config.distill.synthesis_steps)]

    def sample(population: list[int], k: int) -> list[int]:
        rows = draws.pop(0)
        if len(rows) != k or not set(rows) <= set(population):
            raise ValueError(f"the release draws {k} of {len(population)} rows where we draw {rows}")
        return rows

    with (
        patched(
            module, reset_model=lambda net: net.load_state_dict(weights), random=SimpleNamespace(sample=sample)
        ),
        feeding([z]),
        recording_gradients() as gradients,
        traced(release.synthesis.CMISynthesizer.synthesize, "optimizer.zero_grad()") as seen,
    ):
        synthesiser.synthesize(targets)
    for i, theirs in enumerate(seen.steps):
        state = step(state, mine.teacher)
        m = ours.metrics(state.synthesis)
        case.compare("BN term", m["bn_loss"], theirs["loss_bn"].item())
        case.compare("class term", m["class_loss"], theirs["loss_oh"].item())
        case.compare("adversarial term", m["adversarial_loss"], theirs["loss_adv"].item())
        case.compare("contrastive term", m["contrastive_loss"], theirs["loss_cr"].item())
        case.compare("total synthesis loss", m["synthesis_loss"], theirs["loss"].item())
        if i == 0:
            _compare_gradients(case, config, state, generator, gradients, first_round=number == 0)
    trained = state.aux.synthesis.params
    case.compare(
        "generator's parameters after the round", trained["generator"], networks.generator_params(generator)
    )
    case.compare("latents after the round", trained["latents"], seen.returned["z"].detach())
    case.compare("head after the round", state.aux.head.params, _head(synthesiser))
    images, features = state.aux.best.value
    case.compare("kept images", networks.channels_first(images), seen.returned["best_inputs"])
    case.compare("kept features", features, seen.returned["best_features"])
    return state


def _compare_gradients(
    case: Case,
    config: Any,
    state: RunState,
    generator: Any,
    gradients: list[list[torch.Tensor]],
    *,
    first_round: bool,
) -> None:
    """Compares the first step's gradients; the optimiser of the generator and latents steps before the head's."""
    of_generator, of_head = gradients[:2]
    for parameter, value in zip(generator.parameters(), of_generator[:-1], strict=True):
        parameter.grad = value
    mine = ours.adam_gradient(state.aux.synthesis.opt_state, config.generator.beta1)
    case.compare(
        "generator's gradient", mine["generator"], networks.generator_params(generator, networks.gradient)
    )
    case.compare("gradient of the latents", mine["latents"], of_generator[-1])
    if first_round:  # the head's optimiser keeps its moments between rounds
        names = ("hidden", "kernel"), ("hidden", "bias"), ("out", "kernel"), ("out", "bias")
        found = ours.adam_gradient(state.aux.head.opt_state, 0.9)
        theirs: dict[str, dict[str, np.ndarray]] = {"hidden": {}, "out": {}}
        for (layer, name), value in zip(names, of_head, strict=True):
            theirs[layer][name] = value.numpy().T
        case.compare("gradient of the head", found, theirs)


def _with_generator(state: RunState, config: Any, release: DataFree, sizes: Sizes, *, seed: int) -> RunState:
    """Returns the state of a new round with the release's generator weights, and our latents and targets."""
    made = networks.generator(release, "small", sizes, seed=seed)
    params = {"generator": networks.generator_params(made), "latents": state.aux.synthesis.params["latents"]}
    trained = {"params": params, "batch_stats": networks.generator_statistics(made)}
    optimiser = generator_optimiser(method_settings(config))
    return state.replace(aux=state.aux.replace(synthesis=TrainState.create(trained, optimiser)))


def _rows_drawn(state: RunState, ahead: int, number: int) -> list[int]:
    """Returns the bank rows drawn by our synthesis step `ahead` steps after the state."""
    key = purpose_key(state.key, SYNTHESIS, state.synthesis_step + ahead)
    bank_key, _ = jax.random.split(key)
    filled = jnp.arange(_BANK) < min(number, _BANK // _BATCH) * _BATCH
    lots = jnp.where(filled, jax.random.uniform(bank_key, (_BANK,)), -1)
    highest, rows = jax.lax.top_k(lots, _DRAWN)
    return [int(row) for row, lot in zip(rows, highest, strict=True) if lot >= 0]


def _head(synthesiser: Any) -> dict[str, dict[str, jax.Array]]:
    """Returns the release's projection head in our layout."""
    hidden, _, out = synthesiser.head.head
    return {
        name: {
            "kernel": jnp.asarray(layer.weight.detach().numpy().T.copy()),
            "bias": jnp.asarray(layer.bias.detach().numpy().copy()),
        }
        for name, layer in (("hidden", hidden), ("out", out))
    }


def _blurs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns matrices `[size, size]` that mix rows and columns; they replace the resized crop."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(2):
        weights = np.abs(rng.normal(size=(size, size)))
        made.append(0.6 * np.eye(size) + 0.4 * weights / weights.sum(1, keepdims=True))
    return made[0], made[1]


def _our_views(images: jax.Array, blurs: tuple[np.ndarray, np.ndarray]) -> tuple[jax.Array, jax.Array]:
    size, (top, left) = images.shape[1], _SHIFT
    padded = jnp.pad(images, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    shifted = padded[:, top : top + size, left : left + size]
    shifted = jnp.concatenate([shifted[:_HALF, :, ::-1], shifted[_HALF:]])
    return shifted, jnp.einsum("ij,bjkc,lk->bilc", blurs[0], images, blurs[1])


def _their_views(images: torch.Tensor, blurs: tuple[np.ndarray, np.ndarray], normalise: Any) -> tuple[Any, Any]:
    size, (top, left) = images.shape[2], _SHIFT
    shifted = functional.pad(images, (_PADDING,) * 4)[:, :, top : top + size, left : left + size]
    shifted = torch.cat([shifted[:_HALF].flip(3), shifted[_HALF:]])
    rows, columns = (torch.from_numpy(blur).to(images.dtype) for blur in blurs)
    mixed = torch.einsum("ij,bcjk,lk->bcil", rows, images, columns)
    return normalise(shifted), normalise(mixed)
