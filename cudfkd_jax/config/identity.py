"""What identifies a run: the settings that change its results, and its random keys."""

from typing import Any

import jax
from ml_collections import ConfigDict

from cudfkd_jax.config.access import flatten, kept
from cudfkd_jax.config.methods import POOLED
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.errors import UserError

# What may differ from process to process: paths, which are of its machine.
_OF_A_PROCESS = ("data.dir", "teacher.checkpoint")

# What each stage's results depend on. The teacher enters the others by its weights.
_RESULT_KEYS = {
    "teacher": ("seed", "compute_dtype", "data", "teacher"),
    "scratch": ("seed", "compute_dtype", "data", "student", "scratch"),
    "kd": ("seed", "compute_dtype", "data", "student", "kd"),
    "distill": (
        *(
            "seed",
            "compute_dtype",
            "data",
            "method",
            "released_js",
            "student",
            "generator",
            "distill",
            "curriculum",
        ),
        *("synthesis", "memory", "zskt", "adi", "cmi", "pre_dfkd", "evaluation"),
    ),
}
_NO_RESULT_KEYS = ("data.dir", "evaluation.batch_size", "evaluation.stability_from", "teacher.checkpoint")

# Settings added after runs had been recorded and named, each with what those runs computed. At that value a
# setting is not part of what identifies a run, so that earlier runs keep their names and resume.
_ADDED_LATER = {"synthesis.adversarial_mask": "agreement"}


def result_settings(config: ConfigDict, stage: str) -> dict[str, Any]:
    """Returns the settings, by dotted key, that affect a stage's results and so identify a run.

    Both the comparison with a run's `config.json` and the names of planned runs take theirs from here.
    """
    return {
        key: value
        for key, value in flatten(config).items()
        if key.split(".")[0] in _RESULT_KEYS[stage]
        and key not in _NO_RESULT_KEYS
        and not (key in _ADDED_LATER and value == _ADDED_LATER[key])
        and not (stage == "distill" and config.method not in POOLED and key in ("data.padding", "data.flip"))
    }


def check_same(config: ConfigDict, stage: str) -> None:
    """Refuses processes of one run that were started with different settings.

    Raises:
        UserError: a setting differs; it is named with both values.
    """
    own = {
        key: str(value) for key, value in {"--stage": stage, **kept(config)}.items() if key not in _OF_A_PROCESS
    }
    first = processes.from_first(lambda: own)

    def compare() -> None:
        for key in own:
            if own[key] != first[key]:
                raise UserError(
                    f"{key} is {own[key]} here and {first[key]} in the first process; start all with the same"
                )

    processes.together(compare)


def root_key(config: ConfigDict, stage: str) -> jax.Array:
    """The key that all randomness of a stage comes from.

    Each stage has its own: networks of one family initialised from the same key share their first weights,
    and a student must not start from what its teacher started from.
    """
    return jax.random.fold_in(jax.random.key(config.seed), list(_RESULT_KEYS).index(stage))
