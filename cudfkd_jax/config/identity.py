"""The identity of a run: the settings that affect its results, and its random keys."""

from typing import Any

import jax
from ml_collections import ConfigDict

from cudfkd_jax.config import methods
from cudfkd_jax.config.access import flatten, kept
from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.errors import UserError

# Paths may differ between processes, as they belong to a machine.
_OF_A_PROCESS = ("data.dir", "teacher.checkpoint")

# Folded into the seed for the key of each stage; they never change. Networks of one family initialised from the
# same key share their first weights, and a student must not start from its teacher's initial weights.
_STAGE_KEYS = {"teacher": 0, "scratch": 1, "kd": 2, "distill": 3}

# The sections and settings that affect a stage's results. A teacher affects the other stages by its weights.
_EVERYWHERE = ("seed", "compute_dtype", "data")
_METHODS = ("released_js", "generator", "curriculum", "synthesis", "memory")
# The methods whose own settings identify the runs of every method, since runs were recorded and named with them;
# those of other methods identify only the method's own runs.
_ALWAYS = ("zskt", "adi", "cmi", "pre_dfkd")
_RESULT_KEYS = {
    "teacher": (*_EVERYWHERE, "teacher"),
    "scratch": (*_EVERYWHERE, "student", "scratch"),
    "kd": (*_EVERYWHERE, "student", "kd"),
    "distill": (*_EVERYWHERE, "student", "method", *_METHODS, "distill", "evaluation"),
}
# Settings in these sections that do not affect results.
_NO_RESULT_KEYS = (
    *("data.dir", "evaluation.batch_size", "evaluation.stability_from"),
    *("teacher.checkpoint", "teacher.checkpoint_key", "teacher.verify"),
)

# Settings added after runs had been recorded and named, each with the values that compute what those runs did. At
# these values a setting is not part of a run's identity, so earlier runs keep their names and resume.
_ADDED_LATER: dict[str, tuple[Any, ...]] = {
    "synthesis.adversarial_mask": ("agreement",),
    "data.class_order": ("auto", "text"),
    "data.resize": (False,),
    "distill.budget": ("",),
    "distill.warmup_rounds": (0,),
    "distill.learning_rate_end": (0.0,),
}


def result_settings(config: ConfigDict, stage: str) -> dict[str, Any]:
    """Returns the settings, by dotted key, that affect a stage's results and so identify a run.

    They serve both the comparison with a run's `config.json` and the names of planned runs.
    """
    ignored: tuple[str, ...] = ()
    sections: tuple[str, ...] = _RESULT_KEYS[stage]
    if stage == "distill":
        method = methods.spec(config)
        sections += (*_ALWAYS, method.name)
        ignored = () if method.pooled else ("data.padding", "data.flip")
    return {
        key: value
        for key, value in flatten(config).items()
        if key.split(".")[0] in sections
        and key not in _NO_RESULT_KEYS
        and value not in _ADDED_LATER.get(key, ())
        and key not in ignored
    }


def check_same(config: ConfigDict, stage: str) -> None:
    """Checks that all processes of a run have the same settings.

    Raises:
        UserError: a setting differs; the message names it and both values.
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
    """Returns the root random key of a stage, different for each stage."""
    return jax.random.fold_in(jax.random.key(config.seed), _STAGE_KEYS[stage])
