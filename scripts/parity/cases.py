"""All comparisons, by the name of their method."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from parity import (
    adadfkd,
    adi,
    cmi,
    cudfkd,
    fastdfkd,
    forward,
    generative,
    objectives,
    pre_dfkd,
    released,
    schedules,
    zskt_original,
)
from parity.networks import Sizes
from parity.rows import FLOAT32, Report


class Checkouts(NamedTuple):
    """The user's checkouts of the releases; None: not available.

    Attributes:
        release: ljrprocc/DataFree.
        pre_dfkd: kuluhan/PRE-DFKD.
        zero_shot: polo5/ZeroShotKnowledgeTransfer.
        adadfkd: ljrprocc/DFKD.
        fast_datafree: zju-vipa/Fast-Datafree.
    """

    release: Path
    pre_dfkd: Path | None
    zero_shot: Path | None
    adadfkd: Path | None
    fast_datafree: Path | None


# A few steps in float64 of the ten methods with a release, and of their networks and losses.
NAMES = (
    *("networks", "losses", "cudfkd", "dafl", "zskt", "dfad", "dfq", "adi", "cmi", "pre_dfkd"),
    *("adadfkd", "fastdfkd", "once"),
)
DEFAULT = NAMES[:-1]

# A round in float32 with the networks and images of the paper's CIFAR-10 scripts, at a quarter of their batch.
_REAL = Sizes(batch=256, image=32, latent=512, width=64, teacher="wrn_40_2", student="wrn_16_1")
_LARGE = Sizes(batch=12, image=64, latent=32, width=8, teacher="wrn_16_1", student="wrn_16_1", stages=3)


def run(names: tuple[str, ...], checkouts: Checkouts, report: Report) -> list[str]:
    """Runs comparisons.

    Args:
        names: from `NAMES`.
        checkouts: the releases.
        report: receives the rows. In float32, only "once" is compared: a round at real sizes.

    Returns:
        One line per requested comparison without a checkout.

    Raises:
        UserError: a folder is not a checkout of the expected repository.
    """
    release = released.data_free(checkouts.release)
    rounds = functools.partial(cudfkd.whole_rounds, release, report)
    missing: list[str] = []

    def networks() -> None:
        for name in forward.CLASSIFIERS:
            forward.classifier(release, report, name)

    def losses() -> None:
        objectives.criterions(release, report)

    def of_cudfkd() -> None:
        rounds(strategy="log", loss="kl", rounds=9)
        for strategy, loss in (("soft", "l1"), ("hard", "kl"), ("none", "kl")):
            rounds(strategy=strategy, loss=loss, rounds=2, lambda_0=8.0)  # above the losses, so that v* is not 0
        rounds(strategy="log", loss="kl", rounds=1, adversarial_loss="js")
        rounds(strategy="log", loss="kl", rounds=1, arguments="")
        rounds(strategy="none", loss="l1", rounds=2, arguments="")
        rounds(strategy="log", loss="l1", rounds=1, biased=False)
        objectives.student_objective(release, report)
        objectives.self_paced_functions(release, report)
        objectives.adversarial_terms(release, report)
        schedules.scripts(release, checkouts.release, report)

    def of_zskt() -> None:
        generative.whole_rounds(release, report, method="zskt")
        if checkouts.zero_shot is None:
            missing.append("ZSKT's original: no checkout of polo5/ZeroShotKnowledgeTransfer was given")
            return
        original = released.zero_shot(checkouts.zero_shot)
        for classes, scaled in ((10, True), (100, True), (100, False)):
            zskt_original.student_steps(release, original, report, classes=classes, scaled_epsilon=scaled)

    def of_adi() -> None:
        for arguments in ("released", ""):
            adi.one_round(release, report, arguments=arguments)

    def of_pre_dfkd() -> None:
        if checkouts.pre_dfkd is None:
            missing.append("PRE-DFKD: no checkout of kuluhan/PRE-DFKD was given")
            return
        pre_dfkd.all_steps(release, released.pre_dfkd(checkouts.pre_dfkd), report)

    def of_adadfkd() -> None:
        if checkouts.adadfkd is None:
            missing.append("AdaDFKD: no checkout of ljrprocc/DFKD was given")
            return
        adadfkd.everything(released.dfkd(checkouts.adadfkd), checkouts.adadfkd, report)

    def of_fastdfkd() -> None:
        if checkouts.fast_datafree is None:
            missing.append("FastDFKD: no checkout of zju-vipa/Fast-Datafree was given")
            return
        original = released.fast_datafree(checkouts.fast_datafree)
        fastdfkd.rounds(original, report, count=5, step_count=5)
        fastdfkd.rounds(original, report, count=2, step_count=2)
        fastdfkd.script(checkouts.fast_datafree, report)

    def once() -> None:
        if report.precision is FLOAT32:
            rounds(strategy="log", loss="kl", rounds=1, sizes=_REAL)
            return
        rounds(strategy="log", loss="kl", rounds=1, sizes=_LARGE)
        rounds(strategy="log", loss="kl", rounds=2, devices=2)

    every: dict[str, Callable[[], None]] = {
        "networks": networks,
        "losses": losses,
        "cudfkd": of_cudfkd,
        "zskt": of_zskt,
        "adi": of_adi,
        "cmi": functools.partial(cmi.rounds, release, report),
        "pre_dfkd": of_pre_dfkd,
        "adadfkd": of_adadfkd,
        "fastdfkd": of_fastdfkd,
        "once": once,
    }
    for method in ("dafl", "dfad", "dfq"):
        every[method] = functools.partial(generative.whole_rounds, release, report, method=method)
    for name in names:
        every[name]()
    return missing
