"""CuDFKD's student objective on given logits, and the losses and metrics individually."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cudfkd_jax.evaluation import metrics
from cudfkd_jax.methods import adi
from cudfkd_jax.models.capture import Outputs
from cudfkd_jax.objectives import curriculum, losses
from cudfkd_jax.objectives import student as objective
from cudfkd_jax.objectives.terms import STUDENT, Synthetic
from cudfkd_jax.runtime.devices import SINGLE
from parity.cudfkd import METHOD
from parity.released import DataFree
from parity.rows import Report

_STRATEGIES = ("hard", "soft", "log", "none")
_LAMBDAS = (0.5, 2.0, 5.0, 12.0)
_CURR_V = "curr_v makes float32 weights of hard and soft"


def _logits(seed: int, classes: int = 10, rows: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits of a teacher, and of a student that is close to it in a third of the rows."""
    rng = np.random.default_rng(seed)
    teacher, student = (3 * rng.normal(size=(rows, classes)) for _ in range(2))
    student[: rows // 3] = teacher[: rows // 3] + 0.5 * rng.normal(size=(rows // 3, classes))
    return teacher, student


class _Objective(NamedTuple):
    """The student's objective on given logits."""

    kind: str
    temperature: float
    strategy: str
    granularity: str
    lam: float
    teacher: np.ndarray
    student: np.ndarray


def student_objective(release: DataFree, report: Report) -> None:
    """Compares loss, v* and gradient with `curr_v` on the criterion of `train`, per batch and per sample."""
    teacher, student = _logits(3)
    for kind, temperatures in (("kl", (20.0, 5.0, 2.0)), ("l1", (1.0,))):
        for granularity in objective.GRANULARITIES:
            case = report.case(METHOD, f"student's objective on given logits, {kind}, per {granularity}")
            for strategy in _STRATEGIES:
                for temperature in temperatures:
                    for lam in _LAMBDAS:
                        given = _Objective(kind, temperature, strategy, granularity, lam, teacher, student)
                        mine, theirs = _ours(given), _theirs(release, given)
                        note = _CURR_V if strategy in ("hard", "soft") else ""
                        for name in ("loss", "mean v*", "gradient"):
                            case.compare(f"{strategy}: {name}", mine[name], theirs[name], note=note)


def _ours(given: _Objective) -> dict[str, np.ndarray]:
    loss = objective.self_paced_student_loss(
        sample_loss=objective.student_divergence(given.kind, given.temperature, released_js=False),
        strategy=given.strategy,
        granularity=given.granularity,
        lambda_t=lambda step: jnp.asarray(given.lam),
    )

    def value(logits: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return loss(Outputs(logits, {}), Outputs(jnp.asarray(given.teacher), {}), None, jnp.int32(0), SINGLE)

    (total, found), gradient = jax.value_and_grad(value, has_aux=True)(jnp.asarray(given.student))
    return {"loss": np.asarray(total), "mean v*": np.asarray(found["mean_v"]), "gradient": np.asarray(gradient)}


def _theirs(release: DataFree, given: _Objective) -> dict[str, np.ndarray]:
    """Computes the objective of `train`; per sample, with its criterion before the batch mean (Eq. 6)."""
    logits, target = torch.from_numpy(given.student.copy()).requires_grad_(), torch.from_numpy(given.teacher)
    if given.granularity == "batch":
        criterion = torch.nn.L1Loss() if given.kind == "l1" else release.criterions.KLDiv(T=given.temperature)
        each = criterion(logits, target)
    elif given.kind == "l1":
        each = (logits - target).abs().mean(1)
    else:
        each = release.criterions.kldiv(logits, target, T=given.temperature, reduction="none").sum(1)
    weight = torch.ones_like(each)
    if given.strategy != "none":
        with torch.no_grad():
            weight = release.curriculum.curr_v(l=each, lamda=given.lam, spl_type=given.strategy)[1].to(each.dtype)
    total = (weight * each).sum() if given.granularity == "batch" else (weight * each).mean()
    total.backward()
    assert logits.grad is not None
    found = {"loss": total, "mean v*": weight.mean(), "gradient": logits.grad}
    return {name: value.detach().numpy() for name, value in found.items()}


def self_paced_functions(release: DataFree, report: Report) -> None:
    """Compares v* and g with `curr_v`, one loss at a time."""
    case = report.case(METHOD, "v* and g of single losses")
    values = np.concatenate([[1e-9], np.linspace(1e-3, 30, 200)])
    for strategy in ("hard", "soft", "log"):
        for lam in (1.0, *_LAMBDAS[1:]):
            pairs = [
                release.curriculum.curr_v(l=torch.tensor(value), lamda=lam, spl_type=strategy) for value in values
            ]
            g, v = (np.array([float(pair[i]) for pair in pairs]) for i in (0, 1))
            mine = curriculum.spl_weights(strategy, jnp.asarray(values), lam)
            case.compare(f"{strategy}: v*", mine, v, note=_CURR_V if strategy != "log" else "")
            regulariser = np.asarray(curriculum.spl_regulariser(strategy, mine, lam))
            finite = np.isfinite(g)
            note = (
                "1e-8 in the release's logarithm; its g is NaN where μ rounds below 0" if strategy == "log" else ""
            )
            case.compare(f"{strategy}: g", regulariser[finite], g[finite], note=note)


def adversarial_terms(release: DataFree, report: Report) -> None:
    """Compares the forms of the adversarial term: KL with and without the mask, and JS as released."""
    import optax

    from cudfkd_jax.methods import cudfkd

    case = report.case(METHOD, "adversarial term on given logits")
    teacher, student = _logits(5)
    t, s = torch.from_numpy(teacher), torch.from_numpy(student)
    kl = release.criterions.kldiv(s, t, reduction="none", T=3).sum(1)
    agree = (s.max(1)[1] == t.max(1)[1]).to(kl.dtype)
    js = release.criterions.jsdiv(s, t, T=3)
    forms = {
        "KL, agreement mask (the first release)": ("kl", "agreement", -(kl * agree).mean()),
        "KL, no mask (Eq. 4, the authors' later code)": ("kl", "none", -kl.mean()),
        "JS, released": ("js", "agreement", 1 - torch.clamp(js, 0.0, 1.0)),
    }
    for name, (loss, mask, theirs) in forms.items():
        (term,) = cudfkd.synthesis_terms(
            alpha_adv=optax.constant_schedule(1.0),
            adversarial_loss=loss,
            adversarial_mask=mask,
            adversarial_temperature=3.0,
            released_js=True,
            bn_weight=0.0,
            class_weight=0.0,
            balance_weight=0.0,
            temperature=20.0,
        )
        assert STUDENT in term.needs
        outputs = (Outputs(jnp.asarray(logits), {}) for logits in (teacher, student))
        case.compare(name, term.value(Synthetic(jnp.zeros((1, 1, 1, 3)), *outputs), SINGLE), theirs.item())


def criterions(release: DataFree, report: Report) -> None:
    """Compares divergences, priors and metrics with `datafree.criterions` and `datafree.metrics`."""
    case = report.case("Losses and metrics", "on given logits and images")
    teacher, student = _logits(7, rows=200)
    t, s = torch.from_numpy(teacher), torch.from_numpy(student)
    for temperature in (1.0, 3.0, 20.0):
        mine = losses.kl_divergence(jnp.asarray(teacher), jnp.asarray(student), temperature)
        case.compare("KL", jnp.mean(mine), release.criterions.kldiv(s, t, T=temperature).item())
        mine = losses.js_divergence_released(jnp.asarray(teacher), jnp.asarray(student), temperature)
        case.compare("JS as released", jnp.mean(mine), release.criterions.jsdiv(s, t, T=temperature).item())
    mean = jnp.mean(jax.nn.softmax(jnp.asarray(teacher)), 0)
    balance = release.criterions.class_balance_loss(t).item()
    case.compare("class balance", losses.class_balance_loss(mean), balance, note="1e-8 in our logarithm")
    confident = jnp.mean(losses.confident_class_loss(jnp.asarray(teacher)))
    case.compare("cross entropy to the arg max", confident, release.criterions.onehot_loss(t).item())
    images = np.random.default_rng(1).normal(size=(4, 3, 16, 16))
    variation = release.criterions.get_image_prior_losses(torch.from_numpy(images)).item()
    mine = adi.total_variation(jnp.asarray(images.transpose(0, 2, 3, 1)))
    case.compare("total variation", mine, variation)
    loyalty = release.metrics.ProbLoyalty()
    loyalty.update(s, t)
    mine = metrics.probability_loyalty_released(jnp.asarray(student), jnp.asarray(teacher))
    case.compare("loyalty as released", jnp.mean(mine), float(loyalty.get_results()))
    labels = torch.from_numpy(np.random.default_rng(2).integers(0, 10, len(student)))
    accuracy = release.metrics.TopkAccuracy(topk=(1, 5))
    accuracy.update(s, labels)
    for k, theirs in zip((1, 5), accuracy.get_results(), strict=True):
        mine = metrics.top_k_correct(jnp.asarray(student), jnp.asarray(labels.numpy()), k)
        case.compare(f"Acc@{k}", 100 * jnp.mean(mine), theirs)
