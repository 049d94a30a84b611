"""ADI compared with `DeepInvSyntheiszer.synthesize` and `train`."""

import tempfile
from types import SimpleNamespace

import jax
import numpy as np
import torch

from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import SYNTHESIS, RunState, purpose_key
from parity import networks, ours
from parity.networks import Sizes
from parity.pooled import StudentTraining, without_loaders
from parity.released import DataFree
from parity.replay import feeding, patched, recording_gradients, traced
from parity.rows import Report

METHOD = "ADI"
_EXACT_JS = "exact JS: docstring of methods/adi.py"
_ALIASING = "the release returns its last iterate: docstring of methods/adi.py"
_ROUNDING = "the release cuts off, here it is rounded: docstring of methods/adi.py"


def one_round(release: DataFree, report: Report, *, arguments: str = "released", count: int = 4) -> None:
    """Compares a round's synthesis steps, the batch that it keeps, and two student steps.

    Args:
        release: the release's modules.
        report: receives the rows.
        arguments: "released", or "" for the exact JS.
        count: number of synthesis steps.
    """
    case = report.case(METHOD, arguments or "default")
    named = "" if arguments else _EXACT_JS
    sizes = Sizes(batch=12)
    changes = {"distill.synthesis_steps": count, "distill.rounds_per_epoch": 1, "synthesis.batch_size": 16}
    config = ours.load("cifar10", ",".join(filter(None, ("method=adi", arguments))), sizes, changes)
    normalise = release.normaliser(config.data.mean, config.data.std)
    teacher, student = networks.pair(release, sizes, normalise)
    mine = ours.start(config, teacher, student)
    begin, step, finish = (
        ours.step(f, mine)
        for f in (distill_steps.begin_round, distill_steps.synthesis_step, distill_steps.finish_round)
    )
    state = begin(mine.state, mine.teacher)
    pixels = networks.channels_first(state.aux.pixels.params)
    moves = [_move(state, ahead, sizes.image // 8) for ahead in range(count)]
    offsets = [offset for move in moves for offset in move[:2]]
    flips = [0.9 if move[2] else 0.1 for move in moves]  # mirrored above 0.5
    drawn = SimpleNamespace(randint=lambda low, high: offsets.pop(0), random=lambda: flips.pop(0))
    module, s = release.synthesis.deepinversion, config.synthesis
    with tempfile.TemporaryDirectory() as folder, without_loaders(module), patched(module, random=drawn):
        synthesiser = release.synthesis.DeepInvSyntheiszer(
            *(teacher, student, sizes.classes, (3, sizes.image, sizes.image)),
            iterations=count,
            lr_g=config.adi.learning_rate,
            synthesis_batch_size=s.batch_size,
            sample_batch_size=sizes.batch,
            adv=s.adversarial_weight,
            bn=s.bn_weight,
            oh=s.class_weight,
            tv=config.adi.tv_weight,
            l2=0.0,
            save_dir=folder,
            normalizer=normalise,
        )
        targets = torch.from_numpy(np.asarray(state.aux.targets).astype(np.int64))
        with (
            feeding([pixels]),
            recording_gradients() as gradients,
            traced(release.synthesis.DeepInvSyntheiszer.synthesize, "if best_cost > loss.item():") as seen,
        ):
            synthesiser.synthesize(targets)
    for number, theirs in enumerate(seen.steps):
        later = named if number else ""  # the first iterate is before any step
        case.compare(
            "pixels at the step" + (" but the first" if number else ", the first"),
            *_pixels(state, theirs),
            named=later,
        )
        state = step(state, mine.teacher)
        m = ours.metrics(state.synthesis)
        if not number or not named:
            case.compare("BN term", m["bn_loss"], theirs["loss_bn"].item())
            case.compare("class term", m["class_loss"], theirs["loss_oh"].item())
            case.compare("total variation", m["tv_loss"], theirs["loss_tv"].item())
        case.compare("competition (−JS)", m["adversarial_loss"], theirs["loss_adv"].item(), named=named)
        case.compare("total synthesis loss", m["synthesis_loss"], theirs["loss"].item(), named=named)
        if not number:
            mine_gradient = ours.adam_gradient(state.aux.pixels.opt_state, config.adi.beta1)
            case.compare("gradient of the pixels", *_first(mine_gradient, gradients[0][0]), named=named)
    last = seen.returned["inputs"].detach()
    case.compare(
        f"pixels after {count} steps, clipped", networks.channels_first(state.aux.pixels.params), last, named=named
    )
    best = seen.steps[int(np.argmin([each["loss"].item() for each in seen.steps]))]["inputs"]
    kept = networks.channels_first(state.aux.best.value)
    case.compare("kept pixels beside the release's best", kept, best, named=named)
    returned = normalise(seen.returned["best_inputs"]).detach()
    case.compare("kept pixels beside what the release returns", kept, returned, named=_ALIASING)
    state = finish(state, mine.teacher)
    levels = 255 * np.clip(normalise(best, True).numpy().transpose(0, 2, 3, 1), 0, 1)
    of_pool = np.asarray(state.aux.pool.values[0], float)
    if not named:
        case.compare("pool, as rounded levels of the best", of_pool, np.round(levels))
        case.compare("pool, as the release's levels", of_pool, np.floor(levels), named=_ROUNDING)
    training = StudentTraining(release, config, "deepinv", mine, teacher, student, normalise)
    training.epoch(case, state)


def _move(state: RunState, ahead: int, limit: int) -> tuple[int, int, bool]:
    """Returns how our synthesis step `ahead` steps after the state rolls and mirrors its batch."""
    key = purpose_key(state.key, SYNTHESIS, state.synthesis_step + ahead)
    down, across, flip = jax.random.split(key, 3)
    rows, columns = (int(jax.random.randint(k, (), -limit, limit + 1)) for k in (down, across))
    return rows, columns, bool(jax.random.bernoulli(flip))


def _pixels(state: RunState, theirs: dict[str, torch.Tensor]) -> tuple[np.ndarray, torch.Tensor]:
    return networks.channels_first(state.aux.pixels.params), theirs["inputs"]


def _first(mine: jax.Array, theirs: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    return networks.channels_first(mine), theirs
