"""Shortening a distillation to a time budget."""

from typing import NamedTuple

from ml_collections import ConfigDict

_FEWEST_EPOCHS = 20  # curves with fewer points show little, and α_adv(t) moves once per epoch
_IN_EPOCHS = (("memory", "every_epochs"), ("evaluation", "stability_from"), ("log", "samples_every_epochs"))


class Pace(NamedTuple):
    """The duration of a run in seconds: up to the end of its first step, and per training epoch."""

    start_s: float
    epoch_s: float


def fit(config: ConfigDict, seconds: float, pace: Pace) -> float:
    """Shortens a data-free run, in place, to fit into `seconds`; a run that fits is unchanged.

    All schedules are compressed with the run, so that they pass through the same values: λ(t) and α_adv(t) get
    steeper slopes; the cosine of the learning rate and the ends of the ramp follow the number of epochs. Epochs
    keep their length unless fewer than 20 would fit; then they get shorter.

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
    c.alpha = c.alpha / epochs_share
    c.lambda_slope = c.lambda_slope / (epochs_share * rounds_per_epoch / d.rounds_per_epoch)
    for section, key in _IN_EPOCHS:
        if config[section][key]:
            config[section][key] = max(round(config[section][key] * epochs_share), 1)
    d.epochs, d.rounds_per_epoch = epochs, rounds_per_epoch
