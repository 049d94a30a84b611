"""Hypothesis strategies over every setting of a run, with valid and invalid values."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cudfkd_jax.config import access, defaults
from cudfkd_jax.methods import METHODS

TINY = Path(__file__).with_name("tiny.py")
STAGES = ("all", "teacher", "scratch", "kd", "distill")

_COUNTS = (1, 2, 3, 8)
_BATCHES = (2, 8, 16, 24, 32, 64)
_RATES = (1e-3, 0.1, 1.0)
_WEIGHTS = (0.0, 1e-3, 1.0, 20.0)
_DECAYS = (0.0, 0.5, 0.999)
_PARTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_SWITCHES = (True, False)
_NETWORKS = ("wrn10_1", "wrn10_2", "wrn16_1", "vgg8")
_TRAINED = {
    "epochs": _COUNTS,
    "batch_size": _BATCHES,
    "learning_rate": _RATES,
    "warmup_epochs": (0.0, 0.5, 1.0),
    "weight_decay": _WEIGHTS,
}

# By key, values that are individually valid for a tiny run. Text is used unchanged.
SENSIBLE: dict[str, Sequence[Any]] = {
    "seed": (0, 1, 2**31 - 1),
    "method": tuple(METHODS),
    "devices": (0, 1),
    "loop": ("python", "scan", "auto"),
    "on_nan": ("stop", "rollback"),
    "released_js": _SWITCHES,
    "compute_dtype": ("float32", "bfloat16", "auto"),
    "batches_at_once": (0, 1, 2),
    "fold_bn": _SWITCHES,
    "data.name": ("", "digits", "ein Name"),
    "data.source": ("digits", "npz", "folder", "none"),
    "data.dir": ("",),
    "data.class_order": ("auto", "auto", "auto", "text"),
    "data.resize": _SWITCHES,
    "data.image_shape": ((8, 8, 1), (16, 8, 1), (8, 8, 3), (4, 4, 1), (2, 2, 1), (7, 9, 1)),
    "data.num_classes": (2, 3, 10, 100),
    "data.mean": ((0.3,), (0.3, 0.4, 0.5)),
    "data.std": ((0.3,), (0.3, 0.2, 0.1)),
    "data.padding": (0, 1, 2),
    "data.flip": _SWITCHES,
    "teacher.arch": _NETWORKS,
    "teacher.module": ("", "nets:Small", "no_such_module:Net"),
    "teacher.train_argument": ("", "train", "not train", "training"),
    "teacher.checkpoint": ("",),
    "teacher.checkpoint_key": ("", "ema"),
    "teacher.verify": _SWITCHES,
    "teacher.stop_accuracy": (0.0, 50.0, 99.5),
    **{f"teacher.{key}": values for key, values in _TRAINED.items()},
    "student.arch": _NETWORKS,
    "student.module": ("", "nets:Small", "no_such_module:Net"),
    "student.train_argument": ("", "train", "not train", "training"),
    **{f"scratch.{key}": values for key, values in _TRAINED.items()},
    **{f"kd.{key}": values for key, values in _TRAINED.items()},
    "kd.temperature": (1.0, 4.0),
    "kd.weight": _PARTS,
    "generator.latent_dim": _COUNTS,
    "generator.width": _COUNTS,
    "generator.stages": (0, 1, 2, 3),
    "generator.size": ("large", "small"),
    "generator.initialisation": ("normal", "torch"),
    "generator.ema_decay": _DECAYS,
    "generator.learning_rate": _RATES,
    "generator.schedule": ("constant", "cosine"),
    "generator.beta1": _DECAYS,
    "generator.beta2": _DECAYS,
    "distill.epochs": _COUNTS,
    "distill.budget": ("", "2h"),
    "distill.warmup_rounds": (0, 0, 1, 3),
    "distill.rounds_per_epoch": _COUNTS,
    "distill.synthesis_steps": _COUNTS,
    "distill.student_steps": _COUNTS,
    "distill.batch_size": _BATCHES,
    "distill.loss": ("kl", "l1", "js"),
    "distill.temperature": (1.0, 20.0),
    "distill.optimiser": ("sgd", "adam"),
    "distill.learning_rate": _RATES,
    "distill.learning_rate_end": (0.0, 1e-3),
    "distill.momentum": _DECAYS,
    "distill.weight_decay": _WEIGHTS,
    "distill.clip_norm": (0.0, 1.0),
    "curriculum.strategy": ("log", "soft", "hard", "none"),
    "curriculum.granularity": ("sample", "batch"),
    "curriculum.lambda_0": (0.5, 2.0, 5.0),
    "curriculum.lambda_slope": (0.0, 1e-4, 1.0),
    "curriculum.lambda_max": (0.0, 5.0),
    "curriculum.ramp": ("linear", "released", "eq17", "constant"),
    "curriculum.alpha": (0.0, 0.5),
    "curriculum.adv": (0.0, 0.5),
    "curriculum.k_begin": _PARTS,
    "curriculum.k_end": _PARTS,
    "curriculum.none_keeps_ramp": _SWITCHES,
    "synthesis.batch_size": (0, *_BATCHES),
    "synthesis.adversarial_loss": ("kl", "js"),
    "synthesis.adversarial_mask": ("agreement", "none"),
    "synthesis.adversarial_temperature": (1.0, 3.0),
    "synthesis.adversarial_weight": _WEIGHTS,
    "synthesis.bn_weight": _WEIGHTS,
    "synthesis.class_weight": _WEIGHTS,
    "synthesis.balance_weight": _WEIGHTS,
    "synthesis.activation_weight": _WEIGHTS,
    "memory.capacity": (0, 4, 8, 16, 32),
    "memory.every_epochs": _COUNTS,
    "zskt.attention_weight": _WEIGHTS,
    "adi.learning_rate": _RATES,
    "adi.beta1": _DECAYS,
    "adi.beta2": _DECAYS,
    "adi.tv_weight": _WEIGHTS,
    "cmi.contrastive_weight": (0.1, 0.8),
    "cmi.contrastive_temperature": (0.1, 1.0),
    "cmi.features": ("bn", "stages"),
    "cmi.head_width": _COUNTS,
    "cmi.head_learning_rate": _RATES,
    "cmi.bank_rows": (32, 64, 128),
    "cmi.bank_draws": (1, 32, 64),
    "pre_dfkd.memory_steps": (1, 2, 4),
    "pre_dfkd.memory_learning_rate": _RATES,
    "pre_dfkd.kl_weight": _WEIGHTS,
    "pre_dfkd.latent_learning_rate": _RATES,
    "adadfkd.generator_weight": _WEIGHTS,
    "adadfkd.student_weight": _WEIGHTS,
    "adadfkd.temperature": (0.07, 1.0),
    "adadfkd.queue": (2, 64, 100),
    "adadfkd.negatives": (0.1, 0.8, 1.0),
    "fastdfkd.learning_rate": (0.0, *_RATES),
    "fastdfkd.latents_learning_rate": (0.0, *_RATES),
    "fastdfkd.bn_memory": _DECAYS,
    "fastdfkd.reset_round": (0, 1, 3),
    "evaluation.every_epochs": _COUNTS,
    "evaluation.batch_size": _BATCHES,
    "evaluation.synthetic_images": (1, 2, 100),
    "evaluation.stability_from": (0, 1, 80),
    "checkpoint.every_seconds": (0.0, 1e-6, 60.0),
    "checkpoint.keep": _COUNTS,
    "distributed.detect": (False,),
    "distributed.coordinator": ("", "localhost:1234"),
    "distributed.processes": (0, 1, 2),
    "distributed.process": (-1, 0, 1),
    "log.tensorboard": _SWITCHES,
    "log.samples_every_epochs": (0, 1, 2),
    "log.report": _SWITCHES,
    "log.majorise_minimise_updates": (0, 1, 5),
}
# By type, values that are invalid for most keys of the type. A list is the text of a tuple.
_FLOATS = (0.0, -0.0, -1.0, 1.0, 0.9999999999, 1e-320, 1e-40, 1e39, 1e308, float("nan"), float("inf"), -1e-300)
_WHOLE = (0, -1, 1, 7, 63, 1000, 2**24, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, 10**40)
_TEXTS = (
    "",
    " ",
    "none",
    "NaN",
    "resnet1",
    "js ",
    "../..",
    "a" * 5000,
    "zwei\nZeilen",
    "名前",
    "%s{}\\",
    "x:y",
    "=",
)
_TUPLES: tuple[str, ...] = (
    "()",
    "(1,)",
    "(0, 0, 1)",
    "(8, 8)",
    "(8, 8, 2)",
    "(8, 8, 1, 1)",
    "(-8, 8, 1)",
    "(None,)",
)
_TUPLES += (
    "(1e400,)",
    "(1e-60,)",
    "(1e60,)",
    "(True, True, True)",
    "(2147483648, 8, 1)",
    "(10**9,)",
    "(8.0, 8, 1)",
)
_TUPLES += (
    "((1,),)",
    "(8, 8, 1",
    "(65536, 65536, 1)",
    "(10000000000, 10000000000, 1)",
    "(-0.5,)",
    "(0.1, 0.2, 0.3)",
)
_SENSELESS: dict[type, Sequence[Any]] = {
    bool: ("ja", "2", ""),
    int: (*_WHOLE, "1.5", "nan", "", "1e3"),
    float: (*_FLOATS, "eins", "", "1e999"),
    str: _TEXTS,
    tuple: _TUPLES,
}


_KEYS = [key for key in SENSIBLE if key != "method"]  # chosen after the colon
_STAGES = (*STAGES, "all", "all")


def commands() -> st.SearchStrategy[list[str]]:
    """Draws command-line arguments, without a workdir, for a tiny run with one to six changed settings."""
    changes = st.lists(st.sampled_from(_KEYS), min_size=1, max_size=6, unique=True).flatmap(
        lambda keys: st.tuples(*(st.tuples(st.just(key), _values(key)) for key in keys))
    )
    return st.builds(_command, st.sampled_from(tuple(METHODS)), st.sampled_from(_STAGES), changes)


def sensible_command(draw: random.Random) -> list[str]:
    """Draws such arguments with individually valid values."""
    keys = draw.sample(_KEYS, draw.randint(2, 6))
    return _command(
        draw.choice(tuple(METHODS)), draw.choice(_STAGES), [(key, draw.choice(SENSIBLE[key])) for key in keys]
    )


def _command(method: str, stage: str, changes: Iterable[tuple[str, Any]]) -> list[str]:
    changed = [f"--config.{key}={value}" for key, value in changes]
    return [f"--config={TINY}:method={method}", f"--stage={stage}", *changed]


def _values(key: str) -> st.SearchStrategy[Any]:
    kind = type(access.get(defaults.get_config(), key))
    drawn: dict[type, st.SearchStrategy[Any]] = {
        int: st.integers(-2, 100),
        float: st.floats(width=64),
        str: st.text(max_size=20),
    }
    right, wrong = st.sampled_from(SENSIBLE[key]), st.sampled_from(_SENSELESS[kind])
    return st.one_of(wrong, drawn.get(kind, right), *[right] * 8)  # so that whole commands are often valid
