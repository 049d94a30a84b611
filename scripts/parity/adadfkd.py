"""AdaDFKD compared with its release: `AdaSynthesizer.synthesize`, its queue `MoCo`, and `train`."""

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.methods import adadfkd
from cudfkd_jax.methods.adadfkd import Relations
from cudfkd_jax.methods.generative import CarryingState
from cudfkd_jax.models.capture import Outputs
from cudfkd_jax.objectives import curriculum
from cudfkd_jax.objectives.terms import Synthetic
from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import METHOD_INIT, STUDENT, SYNTHESIS, purpose_key
from parity import cudfkd, generative, networks, ours, released, schedules
from parity.networks import Sizes
from parity.released import DataFree
from parity.replay import biased_running_variance, feeding, patched, traced, weights_of_full_precision
from parity.rows import Case, Report

METHOD = "AdaDFKD"
_PER_SAMPLE = "v* per sample: docs/paper_to_code.md, Eq. 1"
_PROJECTION = "the release draws its projection at every step: docstring of methods/adadfkd.py"
_QUEUE = "the release's queue must hold whole batches: docstring of methods/adadfkd.py"
_UNWEIGHTED = "without weights the release leaves out the student's InfoNCE: docstring of methods/adadfkd.py"
_ROUNDED = "the release's ranks round down: `negatives_schedule` in objectives/curriculum.py"
_EPOCHS, _BEGIN, _END = 8, 0.25, 0.75  # for the shortened run
_EQUAL_WIDTHS = Sizes(teacher="wrn_16_2", student="wrn_16_2")
_OTHER_WIDTHS = Sizes(teacher="wrn_16_2", student="wrn_16_1")

# The release's scripts that our configurations stand for.
_SCRIPTS = {
    "adadfkd/adadfkd_cifar10_resnet34_resnet18": "cifar10",
    "adadfkd/adadfkd_cifar10_wrn402_wrn161": "cifar10",
    "adadfkd/adadfkd_cifar100_resnet34_resnet18": "cifar100",
    "adadfkd/adadfkd_cifar100_wrn402_wrn162": "cifar100",
    "adadfkd/adadfkd_timagenet": "tiny_imagenet",
}


def everything(release: DataFree, folder: Path, report: Report) -> None:
    """Compares losses on given features, whole rounds, and the settings of the scripts.

    Args:
        release: the modules of ljrprocc/DFKD.
        folder: its checkout.
        report: receives the rows.
    """
    losses_of_features(release, folder, report)
    whole_rounds(release, folder, report, rounds=9, strategy="log", loss="kl")
    whole_rounds(release, folder, report, rounds=2, strategy="soft", loss="l1", lambda_0=8.0)
    whole_rounds(release, folder, report, rounds=1, strategy="log", loss="kl", arguments="")
    whole_rounds(release, folder, report, rounds=1, strategy="none", loss="kl")
    for drawn in (False, True):
        count = 1 if drawn else 3
        whole_rounds(
            release, folder, report, rounds=count, strategy="log", loss="kl", sizes=_OTHER_WIDTHS, drawn=drawn
        )
    scripts(release, folder, report)


def losses_of_features(release: DataFree, folder: Path, report: Report) -> None:
    """Compares both contrastive losses, their gradients and the queue on given features, epoch by epoch."""
    case = report.case(METHOD, "contrastive losses on given features")
    batch, width, temperature = 24, 16, 0.07
    own = adadfkd.Settings(queue=3 * batch, negatives=0.55, temperature=temperature)
    negatives = curriculum.negatives_schedule(
        own.negatives, own.queue, k_begin=_BEGIN, k_end=_END, epochs=_EPOCHS, steps_per_epoch=1
    )
    term, student_term = adadfkd.generator_term(own, negatives, width, width), adadfkd.student_term(own)
    rng = np.random.default_rng(6)
    start = rng.normal(size=(own.queue, width))
    state = Relations(adadfkd.unit(jnp.asarray(start)), jnp.zeros((), jnp.int32), None)
    with feeding([start.T]):
        bank = release.utils.MoCo(dim=width, K=own.queue, T=temperature)
    hardness = _Hardness(folder, own.negatives, _BEGIN, _END, _EPOCHS)

    def of_generator(teacher: Any, student: Any, state: Relations, epoch: int) -> Any:
        images = jnp.zeros((batch, 1, 1, 3))
        synthetic = Synthetic(images, *(Outputs(images, {}, features=each) for each in (teacher, student)))
        return term.value(synthetic, state, jnp.int32(epoch), SINGLE)

    def of_student(student: Any, teacher: Any) -> jax.Array:
        of_student, of_teacher = (Outputs(jnp.zeros(()), {}, features=each) for each in (student, teacher))
        return jnp.mean(student_term.value(of_student, of_teacher, SimpleNamespace(carried=state), SINGLE))

    for epoch in range(_EPOCHS):
        teacher, student = (rng.normal(size=(batch, width)) for _ in range(2))
        student += teacher  # related, as those of a trained student are
        t, s = (torch.from_numpy(each.copy()).requires_grad_() for each in (teacher, student))
        case.compare("queue before the step", state.queue, bank.queue.T)
        with traced(release.utils.MoCo.forward) as seen:
            loss = bank(t, s, hardness(epoch), length=own.negatives)
        loss.backward()
        first, end = (int(edge) for edge in negatives(jnp.int32(epoch)))
        ranked = jnp.sort(adadfkd.unit(jnp.asarray(teacher)) @ state.queue.T, axis=-1)[:, first:end] / temperature
        case.compare("negatives that count, in their order", ranked, seen.returned["logits"].detach()[:, 1:])
        (value, state), gradient = jax.value_and_grad(of_generator, has_aux=True)(teacher, student, state, epoch)
        case.compare("generator's InfoNCE", value, loss.item())
        case.compare("its gradient by the teacher's features", gradient, t.grad)
        assert s.grad is None
        case.compare("queue after the step", state.queue, bank.queue.T)
        case.compare("row that is replaced next", state.pointer, bank.queue_ptr.item())
        s = torch.from_numpy(student).requires_grad_()
        loss = release.utils.difficulty_mining(torch.from_numpy(teacher), s, tau=temperature)[1]
        loss.backward()
        value, gradient = jax.value_and_grad(of_student)(jnp.asarray(student), jnp.asarray(teacher))
        case.compare("student's InfoNCE", value, loss.item())
        case.compare("its gradient by the student's features", gradient, s.grad)
    _queue_of_any_length(release, report)


def _queue_of_any_length(release: DataFree, report: Report) -> None:
    """Compares how many steps a queue of one and a half batches takes."""
    case = report.case(METHOD, "a queue of one and a half batches")
    batch, width = 8, 4
    rows = np.random.default_rng(0).normal(size=(batch, width))
    state = Relations(jnp.zeros((12, width)), jnp.zeros((), jnp.int32), None)
    for _ in range(2):
        state = state.push(jnp.asarray(rows))
    bank, steps = release.utils.MoCo(dim=width, K=12), 0
    with contextlib.suppress(AssertionError):
        for _ in range(2):
            bank(*(torch.from_numpy(rows) for _ in range(2)))
            steps += 1
    case.compare("steps taken, of 2", 2.0, steps, named=_QUEUE)
    case.compare("row that is replaced next after 2 steps", state.pointer, 4)


def whole_rounds(
    release: DataFree,
    folder: Path,
    report: Report,
    *,
    rounds: int,
    strategy: str,
    loss: str,
    arguments: str = "released",
    lambda_0: float = 2.0,
    sizes: Sizes = _EQUAL_WIDTHS,
    drawn: bool = False,
) -> None:
    """Compares rounds of one synthesis step and two student steps, over epochs of two rounds.

    Args:
        release: the modules of ljrprocc/DFKD.
        folder: its checkout.
        report: receives the rows.
        rounds: number of rounds; the negatives get harder from the third epoch of eight to the sixth.
        strategy: the curriculum's strategy.
        loss: the student's loss, "kl" or "l1".
        arguments: arguments of the configuration: "released", or "" for the default with weights per sample.
        lambda_0: λ at the start.
        sizes: sizes of images and networks.
        drawn: whether the release draws its projection as it does; otherwise it takes ours.
    """
    widths = "" if sizes == _EQUAL_WIDTHS else f"{sizes.teacher} to {sizes.student}"
    projection = "projection as the release draws it" if drawn else "our projection" if widths else ""
    parts = (
        arguments or "default",
        strategy,
        loss,
        "" if lambda_0 == 2 else f"λ0 = {lambda_0:g}",
        widths,
        projection,
    )
    case = report.case(METHOD, ", ".join(filter(None, parts)))
    config = ours.load(
        "cifar10",
        ",".join(filter(None, ("method=adadfkd", arguments))),
        sizes,
        {
            "distill.loss": loss,
            "curriculum.strategy": strategy,
            "curriculum.adv": 0.5,
            "curriculum.k_begin": _BEGIN,
            "curriculum.k_end": _END,
            "curriculum.lambda_0": lambda_0,
            "adadfkd.queue": 3 * sizes.batch,
            "adadfkd.negatives": 0.55,
            "adadfkd.student_weight": 0.15,
        },
    )
    own, normalise = config.adadfkd, release.normaliser(config.data.mean, config.data.std)
    teacher, student = networks.pair(release, sizes, normalise)
    generator = networks.generator(release, "dcgan", sizes)
    weights = copy.deepcopy(generator.state_dict())
    mine = ours.start(config, teacher, student)
    key = purpose_key(mine.state.key, METHOD_INIT)
    carried = mine.problem.method.init(key).carried
    made = generative.with_generator(mine.state, config, generator).aux
    aux = CarryingState(made.params, made.batch_stats, made.opt_state, carried)
    state = mine.state.replace(aux=aux)
    queue_key = jax.random.split(jax.random.fold_in(key, 1), 3)[0]
    queue = np.asarray(jax.random.normal(queue_key, carried.queue.shape))
    with tempfile.TemporaryDirectory() as kept, feeding([queue.T]):
        synthesiser = release.synthesis.AdaSynthesizer(
            *(teacher, student, [generator], sizes.classes, sizes.image, sizes.latent),
            iterations=1,
            lr_g=config.generator.learning_rate,
            synthesis_batch_size=sizes.batch,
            sample_batch_size=sizes.batch,
            save_dir=kept,
            normalizer=normalise,
            lmda_ent=-config.synthesis.balance_weight,
            adv=config.curriculum.adv,
            oh=config.synthesis.class_weight,
            act=config.synthesis.activation_weight,
            adv_type="kl",
            bn=config.synthesis.bn_weight,
            T=config.distill.temperature,
            depth=sizes.stages,
            hard=own.generator_weight,
            tau=own.temperature,
            k=own.negatives,
            n_neg=own.queue,
        )
    generator.load_state_dict(weights)  # the release reinitialises them
    d = config.distill
    optimiser = torch.optim.SGD(
        student.parameters(), d.learning_rate, momentum=d.momentum, weight_decay=d.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=_EPOCHS)
    criterion = torch.nn.L1Loss() if loss == "l1" else release.criterions.KLDiv(T=d.temperature)
    given = released.arguments(
        method="adadfkd",
        gpu="cpu",
        curr_option="none" if strategy == "none" else f"curr_{strategy}",
        lambda_0=lambda_0,
        loss=loss,
        s_nce=own.student_weight,
        tau=own.temperature,
    )
    synthesis_step, student_step = (
        ours.step(f, mine) for f in (distill_steps.synthesis_step, distill_steps.student_step)
    )
    hardness = _Hardness(folder, own.negatives, _BEGIN, _END, _EPOCHS)
    projecting = contextlib.nullcontext if drawn or not widths else lambda: _projecting(carried.projection)
    apart = _PROJECTION if drawn else ""
    named = apart or (_PER_SAMPLE if not arguments else _UNWEIGHTED if strategy == "none" else "")
    torch.manual_seed(0)  # for the projection, if the release draws it
    counter = 0
    with biased_running_variance(), weights_of_full_precision():
        for number in range(rounds):
            epoch, place = divmod(number, 2)
            before = state
            case.compare("queue before the step", state.aux.carried.queue, synthesiser.neg_bank.queue.T)
            with (
                feeding([ours.latents(state, sizes, SYNTHESIS)]),
                projecting(),
                traced(release.synthesis.AdaSynthesizer.synthesize) as seen,
            ):
                synthesiser.synthesize(hard_factor=hardness(epoch))
            if number == 0:
                generative.compare_forward(case, config, mine, before, sizes, seen.returned)
            state = synthesis_step(state, mine.teacher)
            cudfkd.compare_synthesis(case, state, seen.returned, synthesiser.adv, named=apart)
            found = ours.metrics(state.synthesis)["contrastive_loss"]
            case.compare("InfoNCE of the queue", found, seen.returned["loss_cnce"].item(), named=apart)
            generative.compare_generator(
                case, config, state, before.aux.params, generator, first=number == 0, named=apart
            )
            case.compare(
                "queue after the step", state.aux.carried.queue, synthesiser.neg_bank.queue.T, named=apart
            )
            case.compare(
                "row that is replaced next", state.aux.carried.pointer, synthesiser.neg_bank.queue_ptr.item()
            )
            draws = [ours.latents(state, sizes, STUDENT, ahead) for ahead in range(d.student_steps)]
            with (
                feeding(draws),
                projecting(),
                _recording_norms(optimiser) as norms,
                traced(release.kd.train, "optimizer.zero_grad()") as seen,
            ):
                counter = release.kd.train(
                    synthesiser, [student, teacher], criterion, optimiser, given, len(draws), global_iter=counter
                )
            for theirs, norm in zip(seen.steps, norms, strict=True):
                state = student_step(state, mine.teacher)
                cudfkd.compare_student(case, state, theirs, optimiser, strategy, named)
                m = ours.metrics(state.training)
                first = counter == d.student_steps and theirs is seen.steps[0]  # before any step of the student
                page = apart if first else named
                case.compare(
                    "InfoNCE of the batch" + (", later" if page and not apart else ""),
                    m["student_contrastive_loss"],
                    theirs["loss_infonce"].item(),
                    named=page,
                )
                case.compare("norm of the student's gradient", m["student_gradient_norm"], norm, named=named)
            generative.compare_student_weights(case, state, student, named=named)
            if place:
                synthesiser.adv = release.utils.get_alpha_adv(
                    epoch, _arguments_of(config, given.curr_option), config.curriculum.adv, type="linear"
                )
                schedule.step()


def scripts(release: DataFree, folder: Path, report: Report) -> None:
    """Compares every setting of the release's scripts, and the schedules over all epochs.

    Args:
        release: the modules of ljrprocc/DFKD.
        folder: its checkout.
        report: receives the rows.
    """
    for name, data in _SCRIPTS.items():
        given = released.script(folder, name)
        given |= {f"{kind}_steps_interval": given[f"{kind}_steps"] for kind in ("kd", "g")}
        case = report.case(METHOD, f"settings and schedules of scripts/{name}.sh, released")
        config = schedules.config_of(data, given, "method=adadfkd,released")
        settings = schedules.settings_of(config, given) | {
            "weight of the generator's InfoNCE": (config.adadfkd.generator_weight, given["hard"]),
            "weight of the student's InfoNCE": (config.adadfkd.student_weight, given["s_nce"]),
            "τ": (config.adadfkd.temperature, given["tau"]),
            "queue": (config.adadfkd.queue, given["N_neg"]),
            "share of negatives": (config.adadfkd.negatives, given["length"]),
        }
        for setting, (mine, theirs) in settings.items():
            case.compare(setting, float(mine), float(theirs))
        case.compare("student's loss is that of the script", float(config.distill.loss == given["loss"]), 1.0)
        case.compare("λ", *schedules.lambdas(release, config, given))
        case.compare("student's learning rate", *schedules.cosines(config, given))
        alpha = method_settings(config).alpha_adv()
        assert alpha is not None
        option = given["curr_option"]
        theirs = [
            release.utils.get_alpha_adv(epoch, _arguments_of(config, option), float(given["adv"]), type="linear")
            for epoch in range(config.distill.epochs)
        ]
        steps = jnp.arange(config.distill.epochs) * schedules.STEPS
        case.compare("α_adv", np.broadcast_to(alpha(steps), steps.shape), np.array(theirs))
        _compare_windows(case, release, folder, given, config)


def _compare_windows(case: Case, release: DataFree, folder: Path, given: dict[str, str], config: Any) -> None:
    """Compares which negatives count, by their ranks, in every epoch."""
    share, count = float(given["length"]), int(given["N_neg"])
    edges = float(given["begin_fraction"]), float(given["end_fraction"])
    epochs = int(given["epochs"])
    hardness = _Hardness(folder, share, *edges, epochs)
    bank = release.utils.MoCo(dim=1, K=count, T=1.0)
    bank.queue = torch.arange(1.0, count + 1)[None]  # a similarity is the negative's rank, from 1
    theirs = []
    for epoch in range(epochs):
        with traced(release.utils.MoCo.forward) as seen, patched(bank, _dequeue_and_enqueue=lambda keys: None):
            bank(torch.ones(1, 1), torch.ones(1, 1), hardness(epoch), length=share)
        ranks = seen.returned["logits"][0, 1:]
        theirs.append((ranks[0].item() - 1, ranks[-1].item()))
    c = config.curriculum
    mine = curriculum.negatives_schedule(
        config.adadfkd.negatives, count, k_begin=c.k_begin, k_end=c.k_end, epochs=epochs, steps_per_epoch=1
    )
    ranks = np.array([[int(edge) for edge in mine(jnp.int32(epoch))] for epoch in range(epochs)])
    gaps = np.abs(ranks - np.array(theirs))
    if gaps.max() > 1:
        raise AssertionError(f"windows differ by {gaps.max()} ranks")
    case.compare(
        "ranks of the negatives that count", ranks, np.array(theirs), named=_ROUNDED if gaps.any() else ""
    )


class _Hardness:
    """h of an epoch, as the loop of datafree_kd.py computes it."""

    def __init__(self, folder: Path, share: float, begin: float, end: float, epochs: int) -> None:
        self.computed = released.expression(folder, "datafree_kd.py", "hard_factor")
        self.given = SimpleNamespace(length=share, begin_fraction=begin, end_fraction=end, epochs=epochs)

    def __call__(self, epoch: int) -> float:
        return float(self.computed(args=self.given, epoch=epoch))


def _arguments_of(config: Any, option: str) -> SimpleNamespace:
    """Returns the arguments that `get_alpha_adv` reads."""
    c = config.curriculum
    return SimpleNamespace(
        epochs=config.distill.epochs,
        begin_fraction=c.k_begin,
        end_fraction=c.k_end,
        grad_adv=c.alpha,
        curr_option=option,
    )


@contextlib.contextmanager
def _recording_norms(optimiser: torch.optim.Optimizer) -> Iterator[list[float]]:
    """Collects the norm of the gradient at each step; patches the instance, whose step a schedule has wrapped."""
    norms: list[float] = []
    original = optimiser.step

    def step() -> Any:
        gradients = [p.grad.flatten() for group in optimiser.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return original()

    with patched(optimiser, step=step):
        yield norms


@contextlib.contextmanager
def _projecting(projection: dict[str, jax.Array]) -> Iterator[None]:
    """Makes the linear layers that the release draws have these weights."""
    original: Any = nn.Linear

    def linear(inputs: int, outputs: int) -> nn.Module:
        made: nn.Linear = original(inputs, outputs)
        with torch.no_grad():
            made.weight.copy_(torch.from_numpy(np.array(projection["kernel"].T)))
            made.bias.copy_(torch.from_numpy(np.array(projection["bias"])))
        return made

    with patched(nn, Linear=linear):
        yield
