"""ZSKT's student compared with the original `ZeroShotKTSolver.run`: attention, Adam and the clipped gradient."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from cudfkd_jax.models.capture import STAGES
from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.distill_steps import Batch, Problem
from cudfkd_jax.training.state import RunState
from parity import networks, ours
from parity.networks import Sizes
from parity.released import DataFree, ZeroShot
from parity.replay import biased_running_variance, patched, traced
from parity.rows import Report

METHOD = "ZSKT, original"
_EPSILON = "Adam's epsilon beside a gradient K times as large: docstring of methods/zskt.py"
# The original pools over 8×8, so its images must be 32×32.
_SIZES = Sizes(batch=12, image=32)


def student_steps(
    release: DataFree, original: ZeroShot, report: Report, *, classes: int, scaled_epsilon: bool, count: int = 4
) -> None:
    """Compares student steps on given images, starting far from the teacher so that the gradient is clipped.

    Args:
        release: provides the networks' weights.
        original: ZSKT's modules.
        report: receives the rows.
        classes: K; our configurations have data sets with 10 and 100.
        scaled_epsilon: whether to divide the original's Adam epsilon by K, like its objective; otherwise the
            parameters differ.
        count: number of steps.
    """
    case = report.case(METHOD, f"{classes} classes" + ("" if scaled_epsilon else ", Adam's epsilon as it is"))
    sizes = _SIZES._replace(classes=classes)
    config = ours.load("cifar10" if classes == 10 else "cifar100", "method=zskt", sizes)
    normalise = release.normaliser(config.data.mean, config.data.std)
    with torch.no_grad():
        teacher, student = (
            _in_the_original(original, net, classes) for net in networks.pair(release, sizes, normalise)
        )
        torch.manual_seed(9)
        student.fc.weight.copy_(100 * torch.randn_like(student.fc.weight))
    images = [torch.rand(sizes.batch, 3, sizes.image, sizes.image) for _ in range(count)]
    mine = ours.start(config, teacher, student)
    solver = _solver(original, config, teacher, student, [normalise(x) for x in images], classes, scaled_epsilon)
    before = networks.named(student, statistics=False)
    with (
        biased_running_variance(),
        traced(original.solver.ZeroShotKTSolver.run, "self.optimizer_student.step") as seen,
    ):
        clipped: list[float] = []
        _recording_norms(clipped, solver.run)
    norms = clipped[1::2]  # the student's; the generator's alternate with them
    if max(norms) <= 5:
        raise AssertionError(f"gradient norms are {norms}; expected one above 5, so that the clip is tested")
    train = ours.compiled(_train, problem=mine.problem)
    state = mine.state
    for x, theirs, norm in zip(images, seen.steps, norms, strict=True):
        student_state, m = train(state, mine.teacher, jnp.asarray(networks.channels_last(x)))
        state = state.replace(student=student_state, step=state.step + 1)
        named = "" if scaled_epsilon else _EPSILON
        if len(seen.steps) == count and theirs is seen.steps[0]:
            named = ""  # the first loss precedes all steps
            case.compare(
                "first loss over K", float(m["student_loss"]) / classes, theirs["student_total_loss"].item()
            )
            gradient = float(m["student_gradient_norm"]) / classes
            case.compare("first gradient's norm over K, before the clip", gradient, norm)
    named = "" if scaled_epsilon else _EPSILON
    after = ours.named(state.student, statistics=False)
    final = networks.named(student, statistics=False)
    case.compare(f"student's parameters after {count} steps", after, final, named=named)
    change = [{key: tree[key] - before[key] for key in before} for tree in (after, final)]
    case.compare(f"change of the student's parameters in {count} steps", *change, named=named)


def _train(state: RunState, teacher: Any, images: Any, *, problem: Problem) -> Any:
    outputs = problem.teacher(teacher, images, capture=(STAGES,))
    return distill_steps._train(state, Batch(images, outputs), problem, SINGLE)


def _in_the_original(original: ZeroShot, net: nn.Module, classes: int) -> Any:
    """Returns the original's WRN-16 with these weights."""
    widen = round(next(p for name, p in net.named_parameters() if name == "fc.weight").shape[1] / 64)
    n = (16 - 4) // 6
    made = original.wrn.WideResNet(depth=16, num_classes=classes, widen_factor=widen)
    assert len(made.block1.layer) == n
    made.load_state_dict(net.state_dict())
    return made.eval()


def _solver(
    original: ZeroShot,
    config: Any,
    teacher: nn.Module,
    student: nn.Module,
    images: list[torch.Tensor],
    classes: int,
    scaled_epsilon: bool,
) -> Any:
    """Builds the original's solver without its files.

    For each batch, the solver takes a step of a generator that cannot learn, and a step of the student.
    """
    solver = original.solver.ZeroShotKTSolver.__new__(original.solver.ZeroShotKTSolver)
    solver.args = SimpleNamespace(
        total_n_pseudo_batches=len(images),
        n_generator_iter=1,
        n_student_iter=1,
        log_freq=len(images) + 1,
        save_n_checkpoints=0,
        save_final_model=False,
        KL_temperature=1,
        AT_beta=250,
    )
    solver.teacher, solver.student, solver.generator = teacher.eval(), student.train(), _Images(images)
    solver.n_repeat_batch, solver.n_pseudo_batches = 2, 0
    solver.optimizer_generator = torch.optim.SGD(solver.generator.parameters(), lr=0.0)
    epsilon = 1e-8 / classes if scaled_epsilon else 1e-8
    solver.optimizer_student = torch.optim.Adam(student.parameters(), lr=2e-3, eps=epsilon)
    for name in ("generator", "student"):  # within our first epoch, so constant
        optimiser = getattr(solver, f"optimizer_{name}")
        setattr(solver, f"scheduler_{name}", torch.optim.lr_scheduler.LambdaLR(optimiser, lambda batch: 1.0))
    solver.test = lambda: 0.0
    return solver


class _Images(nn.Module):
    """Replaces the original's generator: returns each batch twice, multiplied by a parameter that stays 1."""

    def __init__(self, images: list[torch.Tensor]) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.waiting = [x for x in images for _ in range(2)]

    def __next__(self) -> torch.Tensor:
        return self.waiting.pop(0) * self.one


def _recording_norms(norms: list[float], run: Any) -> None:
    clip: Any = torch.nn.utils.clip_grad_norm_

    def recorded(parameters: Any, limit: float) -> Any:
        norm = clip(parameters, limit)
        norms.append(float(norm))
        return norm

    with patched(torch.nn.utils, clip_grad_norm_=recorded):
        run()
    assert np.isfinite(norms).all()
