"""Shortening a distillation to a time budget."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir
from cudfkd_jax.storage.files import read_object

_UNITS = {"h": 3600, "min": 60, "s": 1}
# The rest is for evaluation, checkpoints and the report, which the pace leaves out.
_SHARE_OF_STEPS = 0.9
_FEWEST_EPOCHS = 20  # curves with fewer points show little, and α_adv(t) moves once per epoch
_IN_EPOCHS = (("memory", "every_epochs"), ("evaluation", "stability_from"), ("log", "samples_every_epochs"))
_IN_ROUNDS = (("distill", "warmup_rounds"), ("fastdfkd", "reset_round"))
_KEYS = (  # of what `fit` changes
    *("distill.epochs", "distill.rounds_per_epoch", "curriculum.alpha", "curriculum.lambda_slope"),
    *(".".join(key) for key in (*_IN_EPOCHS, *_IN_ROUNDS)),
)


class Pace(NamedTuple):
    """The duration of a run in seconds: up to the end of its first step, and per training epoch."""

    start_s: float
    epoch_s: float


def seconds(text: str) -> float:
    """Parses a duration such as "2h", "90min", "1h30min" or "45s"; "" is 0.

    Raises:
        UserError: the text is something else, or no time at all.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(h|min|s)", text)
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or (text and not total):
        raise UserError(
            f"distill.budget={text} is no duration; expected one such as 2h, 90min or 1h30min. Set "
            "--config.distill.budget"
        )
    return total


def shorten(config: ConfigDict, pace: Pace) -> float:
    """Shortens a data-free run, in place, to `distill.budget`; returns the remaining share of its steps."""
    return fit(config, _SHARE_OF_STEPS * seconds(config.distill.budget), pace)


def settle(config: ConfigDict, folder: Path) -> None:
    """Takes over, in place, the length that a run in `folder` with the same budget was given at its start."""
    if config.distill.budget:
        config.update_from_flattened_dict(
            processes.from_first(lambda: _given_length(folder, config.distill.budget))
        )


def _given_length(folder: Path, wanted: str) -> dict[str, Any]:
    if not (folder / workdir.CONFIG).exists():
        return {}
    begun = read_object(folder / workdir.CONFIG, "; restore it", "config")
    return {key: begun[key] for key in _KEYS if key in begun} if begun.get("distill.budget") == wanted else {}


def fit(config: ConfigDict, seconds: float, pace: Pace) -> float:
    """Shortens a data-free run, in place, to fit into `seconds`; a run that fits is unchanged.

    All schedules are compressed with the run, so that they pass through the same values: λ(t) and α_adv(t) get
    steeper slopes; the cosine of the learning rate and the ends of the ramp follow the number of epochs; warm-up
    and FastDFKD's reset end after the same share of the rounds. Epochs keep their length unless fewer than 20
    would fit; then they get shorter.

    Args:
        config: the run's configuration.
        seconds: the time budget up to the last step.
        pace: the pace measured with this configuration, without evaluation, checkpoints and reports.

    Returns:
        The remaining share of the configuration's steps, in (0, 1].
    """
    d, rounds = config.distill, config.distill.epochs * config.distill.rounds_per_epoch
    round_s = pace.epoch_s / d.rounds_per_epoch
    share = (seconds - pace.start_s) / (round_s * rounds)
    if share >= 1:
        return 1.0
    fitting = max(int(share * rounds), 1)
    fewest = min(_FEWEST_EPOCHS, d.epochs, fitting)
    rounds_per_epoch = min(d.rounds_per_epoch, fitting // fewest)
    _set_length(config, fitting // rounds_per_epoch, rounds_per_epoch)
    return d.epochs * d.rounds_per_epoch / rounds


def _set_length(config: ConfigDict, epochs: int, rounds_per_epoch: int) -> None:
    d, c = config.distill, config.curriculum
    epochs_share = epochs / d.epochs
    rounds_share = epochs_share * rounds_per_epoch / d.rounds_per_epoch
    c.alpha = c.alpha / epochs_share
    c.lambda_slope = c.lambda_slope / rounds_share
    for keys, share in ((_IN_EPOCHS, epochs_share), (_IN_ROUNDS, rounds_share)):
        for section, key in keys:
            if config[section][key]:
                config[section][key] = max(round(config[section][key] * share), 1)
    d.epochs, d.rounds_per_epoch = epochs, rounds_per_epoch
