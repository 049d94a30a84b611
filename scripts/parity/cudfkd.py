"""CuDFKD compared with its release: whole rounds of `ProbSynthesizer.synthesize` and `train`."""

import contextlib
import copy
import tempfile
from typing import Any

import torch

from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import STUDENT
from parity import generative, networks, ours, released
from parity.networks import DEFAULT_SIZES, Sizes
from parity.released import DataFree
from parity.replay import biased_running_variance, feeding, traced, weights_of_full_precision
from parity.rows import FLOAT32, Case, Report

METHOD = "CuDFKD"
_PER_SAMPLE = "v* per sample: docs/paper_to_code.md, Eq. 1"
_VARIANCE = "biased running variance: docs/paper_to_code.md, Networks"
_EPSILON = "1e-8 in our logarithm: docs/paper_to_code.md, Eq. 5"
_EPOCHS, _ROUNDS, _BEGIN, _END, _SLOPE = 8, 2, 0.25, 0.75, 0.05  # for the shortened run


def whole_rounds(
    release: DataFree,
    report: Report,
    *,
    strategy: str,
    loss: str,
    rounds: int,
    arguments: str = "released",
    adversarial_loss: str = "kl",
    lambda_0: float = 2.0,
    biased: bool = True,
    devices: int = 1,
    sizes: Sizes = DEFAULT_SIZES,
) -> None:
    """Compares rounds of one synthesis step and two student steps, over epochs of two rounds.

    Args:
        release: the release's modules.
        report: receives the rows.
        strategy: the curriculum's strategy.
        loss: the student's loss, "kl" or "l1".
        rounds: number of rounds; the ramp of α_adv begins in the third epoch of eight.
        arguments: arguments of the configuration: "released", or "" for the default with weights per sample.
        adversarial_loss: "kl" or "js".
        lambda_0: λ at the start.
        biased: whether PyTorch's running variance is biased, like Flax's; otherwise the difference is a row.
        devices: number of devices on our side.
        sizes: sizes of images and networks.
    """
    parts = [
        arguments or "default",
        strategy,
        loss,
        "" if adversarial_loss == "kl" else f"adversarial {adversarial_loss}",
        "" if lambda_0 == 2 else f"λ0 = {lambda_0:g}",
        "" if biased else "PyTorch's own running variance",
        "" if devices == 1 else f"{devices} devices",
        "" if sizes == DEFAULT_SIZES else _described(sizes),
    ]
    case = report.case(METHOD, ", ".join(filter(None, parts)))
    config = ours.load(
        "cifar10",
        arguments,
        sizes,
        {
            "distill.loss": loss,
            "curriculum.strategy": strategy,
            "curriculum.adv": 0.5,
            "curriculum.alpha": _SLOPE,
            "curriculum.k_begin": _BEGIN,
            "curriculum.k_end": _END,
            "curriculum.lambda_0": lambda_0,
            "synthesis.adversarial_loss": adversarial_loss,
        },
    )
    normalise = release.normaliser(config.data.mean, config.data.std)
    teacher, student = networks.pair(release, sizes, normalise)
    generator = networks.generator(release, "dcgan", sizes)
    weights = copy.deepcopy(generator.state_dict())
    mine = ours.start(config, teacher, student)
    state = generative.with_generator(mine.state, config, generator)
    with tempfile.TemporaryDirectory() as folder:
        synthesiser = release.synthesis.ProbSynthesizer(
            *(teacher, student, [generator], sizes.classes, sizes.image, sizes.latent),
            iterations=[1],
            lr_g=config.generator.learning_rate,
            synthesis_batch_size=sizes.batch,
            sample_batch_size=sizes.batch,
            save_dir=folder,
            normalizer=normalise,
            lmda_ent=-config.synthesis.balance_weight,
            adv=config.curriculum.adv,
            oh=config.synthesis.class_weight,
            act=config.synthesis.activation_weight,
            adv_type=adversarial_loss,
            bn=config.synthesis.bn_weight,
            T=config.distill.temperature,
            depth=sizes.stages,
        )
    generator.load_state_dict(weights)  # the release reinitialises them
    d = config.distill
    optimiser = torch.optim.SGD(
        student.parameters(), d.learning_rate, momentum=d.momentum, weight_decay=d.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=_EPOCHS)
    kl = release.criterions.KLDiv(T=d.temperature)
    criterion = {"l1": torch.nn.L1Loss(), "kl": kl}[loss]
    option = "none" if strategy == "none" else f"curr_{strategy}"
    given = released.arguments(curr_option=option, lambda_0=lambda_0, loss=loss)
    synthesis_step, student_step = (
        ours.step(f, mine, devices=devices) for f in (distill_steps.synthesis_step, distill_steps.student_step)
    )
    named = _PER_SAMPLE if not arguments and strategy != "none" else "" if biased else _VARIANCE
    counter = 0
    with biased_running_variance() if biased else contextlib.nullcontext(), weights_of_full_precision():
        for number in range(rounds):
            epoch, place = divmod(number, _ROUNDS)
            before = state
            seen = generative.synthesise(synthesiser, state, sizes)
            if number == 0:
                generative.compare_forward(case, config, mine, before, sizes, seen.returned)
                _check_agreement(seen.returned, student)
            state = synthesis_step(state, mine.teacher)
            compare_synthesis(case, state, seen.returned, synthesiser.adv)
            generative.compare_generator(
                *(case, config, state, before.aux.params, generator),
                first=number == 0,
                variance="" if biased else _VARIANCE,
            )
            if report.precision is FLOAT32:
                # Adam's first step has the same size for gradients that are only rounding, so the generators
                # diverge. Hence both students train on images of the release's generator.
                state = generative.with_generator(state, config, generator)
            draws = [ours.latents(state, sizes, STUDENT, ahead) for ahead in range(d.student_steps)]
            with feeding(draws), traced(release.kd.train, "optimizer.zero_grad()") as seen:
                counter = release.kd.train(
                    synthesiser, [student, teacher], criterion, optimiser, given, len(draws), global_iter=counter
                )
            for theirs in seen.steps:
                state = student_step(state, mine.teacher)
                compare_student(case, state, theirs, optimiser, strategy, named)
            generative.compare_student_weights(case, state, student, named=named)
            if place == _ROUNDS - 1:
                ramp = int(_EPOCHS * _BEGIN) < epoch < int(_EPOCHS * _END)  # as in datafree_kd.py
                if ramp and option != "none":
                    synthesiser.adv += _SLOPE
                schedule.step()


def _described(sizes: Sizes) -> str:
    return (
        f"{sizes.teacher} to {sizes.student}, {sizes.image}×{sizes.image}, batch {sizes.batch}, "
        f"nz {sizes.latent}, ngf {sizes.width}, {sizes.stages} up-samplings"
    )


def _check_agreement(theirs: dict[str, Any], student: Any) -> None:
    """Checks that the networks predict the same class for some images but not all, so that the mask matters."""
    with torch.no_grad():
        logits = student(theirs["samples"])
    agree = float((logits.argmax(1) == theirs["t_out"].argmax(1)).to(logits.dtype).mean())
    if not 0 < agree < 1:
        raise AssertionError(f"teacher and student agree on a share of {agree}; expected a share inside (0, 1)")


def compare_synthesis(case: Case, state: Any, theirs: dict[str, Any], alpha: float, *, named: str = "") -> None:
    """Compares each term, its weight and the total; `named` documents a difference of the total."""
    m = ours.metrics(state.synthesis)
    case.compare("BN term", m["bn_loss"], theirs["loss_bn"].item())
    case.compare("class term", m["class_loss"], theirs["loss_oh"].item())
    case.compare("balance term", m["balance_loss"], -theirs["ent"].item(), note=_EPSILON)
    case.compare("adversarial term", m["adversarial_loss"], theirs["loss_adv"].item())
    case.compare("α_adv", m["alpha_adv"], alpha)
    case.compare("total synthesis loss", m["synthesis_loss"], theirs["loss"].item(), named=named, note=_EPSILON)


def compare_student(
    case: Case, state: Any, theirs: dict[str, Any], optimiser: torch.optim.Optimizer, strategy: str, named: str
) -> None:
    """Compares a student step: its loss, the difficulty, v*, g, λ and the learning rate."""
    m = ours.metrics(state.training)
    case.compare("student's loss", m["student_loss"], theirs["loss_s"].item(), named=named)
    if strategy != "none":
        difficulty = theirs["real_loss_s"].item()
        case.compare("v*", m["mean_v"], float(theirs["v"]), named=named)
        case.compare("regulariser g", m["regulariser_g"], float(theirs["g"]), named=named)
    else:
        difficulty = theirs["loss_s"].item()
    case.compare("difficulty (mean D)", m["difficulty"], difficulty, named=named)
    case.compare("λ", m["lambda"], theirs["lamda"])
    case.compare("student's learning rate", m["learning_rate"], optimiser.param_groups[0]["lr"])
