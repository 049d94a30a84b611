"""The settings of the release's scripts and their schedules over all epochs."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from cudfkd_jax.config import loading
from cudfkd_jax.config.methods import method_settings
from cudfkd_jax.models.optimisers import cosine_learning_rate
from parity import released
from parity.cudfkd import METHOD
from parity.ours import CONFIGS
from parity.released import DataFree
from parity.rows import Report

_CEILING = "λ's ceiling of 5: docs/paper_to_code.md, §IV-B"
_RAMP = "the ramp's last step: docs/paper_to_code.md, Eq. 17"
_ABLATION = "the ablation keeps the ramp: docs/paper_to_code.md, The loop"
STEPS = 400  # student steps per epoch

SCRIPTS = {
    "cudfkd/cudfkd_cifar10_resnet34_resnet18": "cifar10",
    "cudfkd/cudfkd_cifar10_wrn402_wrn161": "cifar10",
    "cudfkd/cudfkd_cifar100_resnet34_resnet18": "cifar100",
    "cudfkd/cudfkd_cifar100_wrn402_wrn161": "cifar100",
    "cudfkd/cudfkd_timagenet": "tiny_imagenet",
}


def scripts(release: DataFree, folder: Path, report: Report) -> None:
    """Compares every setting of each CuDFKD script, α_adv and λ over all epochs, and the cosine schedule.

    Args:
        release: the release's modules.
        folder: the checkout with the scripts.
        report: receives the rows.
    """
    for name, data in SCRIPTS.items():
        given = released.script(folder, name)
        for arguments in ("released", ""):
            kind = arguments or "default"
            case = report.case(METHOD, f"settings and schedules of scripts/{name}.sh, {kind}")
            config = config_of(data, given, arguments)
            for setting, (mine, theirs) in settings_of(config, given).items():
                case.compare(setting, float(mine), float(theirs))
            case.compare("student's loss is that of the script", float(config.distill.loss == given["loss"]), 1.0)
            for strategy in ("log", "none"):
                config.curriculum.strategy = strategy
                named = _ABLATION if strategy == "none" else _RAMP if _begins_with_an_epoch(given) else ""
                named = "" if arguments else named
                case.compare(f"α_adv, {strategy}", _alpha(config), _alpha_released(given, strategy), named=named)
            mine, theirs = lambdas(release, config, given)
            named = _CEILING if not arguments and theirs.max() > 5 else ""
            case.compare("λ", mine, theirs, named=named)
            case.compare("student's learning rate", *cosines(config, given))


def _begins_with_an_epoch(given: dict[str, str]) -> bool:
    """Returns whether the ramp begins between two epochs; the two readings of its start differ only then."""
    return (float(given["begin_fraction"]) * int(given["epochs"])).is_integer()


def config_of(data: str, given: dict[str, str], arguments: str) -> Any:
    pair = f"teacher={given['teacher']},student={given['student']}"
    return loading.load(f"{CONFIGS / data}.py:{','.join(filter(None, (pair, arguments)))}")


def settings_of(config: Any, given: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    d, g, s, c = config.distill, config.generator, config.synthesis, config.curriculum
    steps = int(given["kd_steps_interval"])
    tiny = given["dataset"] == "tiny_imagenet"
    return {
        "batch size": (d.batch_size, given["batch_size"]),
        "epochs": (d.epochs, given["epochs"]),
        "T": (d.temperature, given["T"]),
        "student steps a round": (d.student_steps, steps),
        "rounds an epoch": (d.rounds_per_epoch, int(given["ep_steps"]) // steps),
        "synthesis steps a round": (d.synthesis_steps, given["g_steps_interval"]),
        "student's learning rate at the start": (d.learning_rate, given["lr"]),
        "generator's learning rate": (g.learning_rate, given["lr_g"]),
        "up-samplings": (g.stages, given["depth"]),
        "length of z": (g.latent_dim, 1024 if tiny else 512),  # as in datafree_kd.py
        "generator's beta1": (g.beta1, 0.9),
        "generator's beta2": (g.beta2, 0.99),
        "weight decay": (d.weight_decay, 1e-4),
        "momentum": (d.momentum, 0.9),
        "weight of BN": (s.bn_weight, given["bn"]),
        "weight of the class term": (s.class_weight, given["oh"]),
        "weight of the balance term": (s.balance_weight, -float(given["lmda_ent"])),
        "weight of activations": (s.activation_weight, given["act"]),
        "λ at the start": (c.lambda_0, given["lambda_0"]),
        "α_adv at the start": (c.adv, given["adv"]),
        "slope of α_adv": (c.alpha, given["grad_adv"]),
        "begin of the ramp": (c.k_begin, given["begin_fraction"]),
        "end of the ramp": (c.k_end, given["end_fraction"]),
    }


def _alpha(config: Any) -> np.ndarray:
    schedule, epochs = method_settings(config).alpha_adv(), config.distill.epochs
    if schedule is None:
        return np.zeros(epochs)
    first = jnp.arange(epochs) * STEPS
    values, last = (np.broadcast_to(np.asarray(schedule(step)), epochs) for step in (first, first + STEPS - 1))
    np.testing.assert_array_equal(values, last)  # constant within an epoch
    return values


def _alpha_released(given: dict[str, str], strategy: str) -> np.ndarray:
    """Returns α_adv per epoch as the loop of datafree_kd.py computes it."""
    epochs, alpha, values = int(given["epochs"]), float(given["adv"]), []
    begin, end = (int(epochs * float(given[key])) for key in ("begin_fraction", "end_fraction"))
    for epoch in range(epochs):
        values.append(alpha)
        if begin < epoch < end and strategy != "none":
            alpha += float(given["grad_adv"])
    return np.array(values)


def lambdas(release: DataFree, config: Any, given: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    slope = 1e-4 if given["dataset"] == "cifar10" else 2e-5  # as in `train` of datafree_kd.py
    steps = np.unique(np.linspace(0, int(given["epochs"]) * STEPS - 1, 2001).astype(int))
    theirs = [
        release.curriculum.lambda_scheduler(float(given["lambda_0"]), int(step), alpha=slope) for step in steps
    ]
    return np.asarray(method_settings(config).lambda_t()(jnp.asarray(steps))), np.array(theirs)


def cosines(config: Any, given: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    epochs = int(given["epochs"])
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], float(given["lr"]))
    schedule, theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs), []
    for _ in range(epochs):
        theirs.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    mine = cosine_learning_rate(config.distill.learning_rate, config.distill.epochs, STEPS)
    return np.asarray(mine(jnp.arange(epochs) * STEPS)), np.array(theirs)
