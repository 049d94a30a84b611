"""DAFL, ZSKT, DFAD and DFQ in the benchmark's form, compared with `GenerativeSynthesizer` and `train`."""

from typing import Any

import jax.numpy as jnp
import torch

from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.methods.generative import generator as our_generator
from cudfkd_jax.methods.generative import generator_optimiser
from cudfkd_jax.models.capture import apply
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import STUDENT, SYNTHESIS
from parity import networks, ours, released
from parity.networks import DEFAULT_SIZES, Sizes
from parity.released import DataFree
from parity.replay import Trace, biased_running_variance, feeding, traced
from parity.rows import Case, Report

METHODS = ("dafl", "zskt", "dfad", "dfq")
EPSILON = "1e-8 in our logarithm: the method's docstring"
# Settings of the fork's scripts that differ from our recipes (see the methods' docstrings): its betas, ZSKT's
# student with SGD and without attention, and DFAD's constant learning rate of the generator.
_AS_THE_FORK = {
    "generator.beta1": 0.9,
    "generator.beta2": 0.99,
    "generator.schedule": "constant",
    "distill.optimiser": "sgd",
    "distill.learning_rate": 0.1,
    "distill.weight_decay": 1e-4,
    "distill.clip_norm": 0.0,
    "zskt.attention_weight": 0.0,
}
# The weights in the release's scripts, by our name of the term.
_WEIGHTS = {
    "dafl": {"class_loss": 1.0, "balance_loss": 20.0, "feature_loss": 0.001},
    "zskt": {"adversarial_loss": 1.0},
    "dfad": {"adversarial_loss": 1.0},
    "dfq": {"adversarial_loss": 1.0, "bn_loss": 1.0, "class_loss": 1.0, "balance_loss": 20.0},
}
_THEIRS = {
    "adversarial_loss": ("adv", "loss_adv"),
    "bn_loss": ("bn", "loss_bn"),
    "class_loss": ("oh", "loss_oh"),
    "balance_loss": ("balance", "loss_balance"),
    "feature_loss": ("act", "loss_act"),
}


def whole_rounds(
    release: DataFree, report: Report, *, method: str, rounds: int = 2, sizes: Sizes = DEFAULT_SIZES
) -> None:
    """Compares rounds of one synthesis step and two student steps, one round per epoch.

    Args:
        release: the release's modules.
        report: receives the rows.
        method: one of `METHODS`.
        rounds: number of rounds.
        sizes: sizes of images and networks.
    """
    case = report.case(method.upper(), "the benchmark's form, optimisers of the fork")
    config = ours.load("cifar10", f"method={method}", sizes, {**_AS_THE_FORK, "distill.rounds_per_epoch": 1})
    weights = _WEIGHTS[method]
    normalise = release.normaliser(config.data.mean, config.data.std)
    teacher, student = networks.pair(release, sizes, normalise)
    generator = networks.generator(release, "large", sizes)
    mine = ours.start(config, teacher, student)
    state = with_generator(mine.state, config, generator)
    criterion = torch.nn.L1Loss() if method == "dfad" else release.criterions.KLDiv()
    synthesiser = release.synthesis.GenerativeSynthesizer(
        *(teacher, student, generator, sizes.latent, (3, sizes.image, sizes.image)),
        lr_g=config.generator.learning_rate,
        synthesis_batch_size=sizes.batch,
        sample_batch_size=sizes.batch,
        criterion=criterion,
        normalizer=normalise,
        **{name: weights.get(term, 0.0) for term, (name, _) in _THEIRS.items()},
    )
    d = config.distill
    optimiser = torch.optim.SGD(
        student.parameters(), d.learning_rate, momentum=d.momentum, weight_decay=d.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=d.epochs)
    given = released.arguments(method=method)
    synthesis_step, student_step = (
        ours.step(f, mine) for f in (distill_steps.synthesis_step, distill_steps.student_step)
    )
    with biased_running_variance():
        for number in range(rounds):
            before = state
            seen = synthesise(synthesiser, state, sizes)
            if number == 0:
                compare_forward(case, config, mine, before, sizes, seen.returned)
            state = synthesis_step(state, mine.teacher)
            m = ours.metrics(state.synthesis)
            found = {name for name in m if name in _THEIRS}
            if found != set(weights):
                raise AssertionError(f"{method} computes the terms {found}; expected its scripts' {set(weights)}")
            for name in weights:
                note = EPSILON if name == "balance_loss" else ""
                case.compare(
                    name.replace("_loss", " term"), m[name], seen.returned[_THEIRS[name][1]].item(), note=note
                )
            case.compare("total synthesis loss", m["synthesis_loss"], seen.returned["loss"].item())
            compare_generator(case, config, state, before.aux.params, generator, first=number == 0)
            draws = [ours.latents(state, sizes, STUDENT, ahead) for ahead in range(d.student_steps)]
            with feeding(draws), traced(release.kd.train, "optimizer.zero_grad()") as trained:
                release.kd.train(synthesiser, [student, teacher], criterion, optimiser, given, len(draws))
            for theirs in trained.steps:
                state = student_step(state, mine.teacher)
                compare_plain_student(case, state, theirs, optimiser)
            compare_student_weights(case, state, student)
            schedule.step()


def synthesise(synthesiser: Any, state: Any, sizes: Sizes) -> Trace:
    """Calls a release's `synthesize()` on the latents of our next synthesis step; returns its local variables."""
    latents = ours.latents(state, sizes, SYNTHESIS)
    with feeding([latents]), traced(synthesiser.synthesize.__func__) as seen:
        synthesiser.synthesize()
    return seen


def with_generator(state: Any, config: Any, generator: Any) -> Any:
    """Returns the state with the weights of the release's generator."""
    trained = {
        "params": networks.generator_params(generator),
        "batch_stats": networks.generator_statistics(generator),
    }
    return state.replace(aux=TrainState.create(trained, generator_optimiser(method_settings(config))))


def compare_forward(
    case: Case, config: Any, mine: ours.Ours, state: Any, sizes: Sizes, theirs: dict[str, Any]
) -> None:
    """Compares normalised images, the teacher's logits and features, and the student's logits if computed."""
    z = jnp.asarray(ours.latents(state, sizes, SYNTHESIS))
    made = apply(our_generator(method_settings(config)), state.aux.variables, z, train=True)
    seen = mine.problem.teacher(mine.teacher, made.value, capture=("features",))
    normalised = (made.value - jnp.asarray(config.data.mean)) / jnp.asarray(config.data.std)
    images = theirs["samples" if "samples" in theirs else "inputs"]
    case.compare("normalised images", networks.channels_first(normalised), images.detach())
    case.compare("teacher's logits", seen.value, theirs["t_out"].detach())
    case.compare("teacher's features", seen.features, theirs["t_feat"].detach())
    if "s_out" in theirs:
        logits = mine.problem.student(state.student.variables, made.value).value
        case.compare("student's logits", logits, theirs["s_out"].detach())


def compare_generator(
    case: Case,
    config: Any,
    state: Any,
    before: Any,
    generator: Any,
    *,
    first: bool,
    variance: str = "",
    named: str = "",
) -> None:
    """Compares a generator's parameters and statistics after a step, and after the first step its gradient.

    Args:
        case: receives the rows.
        config: our configuration.
        state: our state after the step.
        before: our generator's parameters before the step.
        generator: the release's generator after the step.
        first: whether this is the first step.
        variance: the page that documents a difference of the running variance, or "".
        named: the page that documents a difference of gradient and parameters, or "".
    """
    params = networks.generator_params(generator)
    if first:
        mine = ours.adam_gradient(state.aux.opt_state, config.generator.beta1)
        theirs = networks.generator_params(generator, networks.gradient)
        case.compare("generator's gradient", mine, theirs, named=named)
        change = ours.difference(state.aux.params, before), ours.difference(params, before)
        case.compare("change of the generator's parameters", *change, only_float64=True, named=named)
    case.compare("generator's parameters after its step", state.aux.params, params, named=named)
    sides = state.aux.batch_stats, networks.generator_statistics(generator)
    for name, page in (("mean", ""), ("var", variance)):
        of = ({layer: each[name] for layer, each in side.items()} for side in sides)
        case.compare(f"generator's running {name}", *of, named=page)


def compare_plain_student(
    case: Case, state: Any, theirs: dict[str, Any], optimiser: torch.optim.Optimizer
) -> None:
    """Compares an unweighted student step: its loss and the learning rate."""
    m = ours.metrics(state.training)
    case.compare("student's loss", m["student_loss"], theirs["loss_s"].item())
    case.compare("student's learning rate", m["learning_rate"], optimiser.param_groups[0]["lr"])


def compare_student_weights(case: Case, state: Any, student: Any, *, named: str = "") -> None:
    """Compares the student's parameters and statistics."""
    for quantity, statistics in (("parameters", False), ("statistics", True)):
        case.compare(
            f"student's {quantity} after its steps",
            ours.named(state.student, statistics=statistics),
            networks.named(student, statistics=statistics),
            named=named,
        )
