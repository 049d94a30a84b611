"""The changes of each method to the default configuration: the settings of its release or of the benchmark.

The benchmark is that of Fang et al. (2021): 400 student steps per epoch, and SGD 0.1 / 0.9 / 1e-4 with a cosine
schedule for the student. MB-DFKD and PRE-DFKD instead follow a third party's code. CuDFKD's settings depend on the
data set and are in `configs/`.
"""

from collections.abc import Mapping
from typing import Any

Recipe = Mapping[str, Mapping[str, Any]]  # section -> key -> value

_ADAM = {"learning_rate": 1e-3, "beta1": 0.5, "beta2": 0.999}
_FIVE_TO_ONE = {"rounds_per_epoch": 80, "synthesis_steps": 1, "student_steps": 5}
_TEN_TO_ONE = {"rounds_per_epoch": 40, "synthesis_steps": 1, "student_steps": 10}
# `presets.use_method` also clips its gradient, at a norm that depends on the number of classes.
_ADAM_STUDENT = {"optimiser": "adam", "learning_rate": 2e-3, "weight_decay": 0.0}
_KL = {"epochs": 200, "batch_size": 256, "loss": "kl", "temperature": 1.0}
_LARGE = {"size": "large", "latent_dim": 256, "initialisation": "torch", **_ADAM}

_MEMORY_STUDENT = {"epochs": 400, "rounds_per_epoch": 36, "batch_size": 1024, "loss": "l1", "weight_decay": 5e-4}
_MEMORY_GENERATOR = {"latent_dim": 1000, "learning_rate": 0.02, "beta1": 0.9, "beta2": 0.999}
_MEMORY_WEIGHTS = {"class_weight": 1.0, "balance_weight": 5.0, "activation_weight": 0.1, "adversarial_weight": 1.0}

RECIPES: Mapping[str, Recipe] = {
    "cudfkd": {},
    "dafl": {
        "generator": {**_LARGE, "latent_dim": 512},
        "distill": {**_KL, **_FIVE_TO_ONE},
        "synthesis": {"class_weight": 1.0, "activation_weight": 1e-3, "balance_weight": 20.0},
    },
    # The original's student optimiser. With SGD 0.1, the attention term, 250 · K relative to the KL, swamps the
    # rest (digits: 15 %; without attention 99 %; with attention and this optimiser 99 %).
    "zskt": {
        "generator": {**_LARGE, "schedule": "cosine"},
        "distill": {**_KL, **_FIVE_TO_ONE, **_ADAM_STUDENT},
    },
    # As in both originals, the generator's learning rate decays with the student's. Otherwise a student that
    # hardly changes gets ever harder images (digits: 34 % at the end, 94 % three epochs earlier).
    "dfad": {
        "generator": {**_LARGE, "schedule": "cosine"},
        "distill": {**_KL, **_FIVE_TO_ONE, "loss": "l1"},
    },
    "dfq": {
        "generator": _LARGE,
        "distill": {**_KL, **_TEN_TO_ONE},
        "synthesis": {"adversarial_weight": 1.0, "bn_weight": 1.0, "class_weight": 1.0, "balance_weight": 20.0},
    },
    "adi": {
        "distill": {
            **_KL,
            "rounds_per_epoch": 1,
            "synthesis_steps": 1000,
            "student_steps": 400,
            "temperature": 20.0,
        },
        "synthesis": {
            "bn_weight": 10.0,
            "class_weight": 1.0,
            "adversarial_weight": 1.0,
            "adversarial_temperature": 3.0,
        },
    },
    "cmi": {
        "generator": {**_LARGE, "size": "small", "initialisation": "normal"},
        "distill": {
            **_KL,
            "rounds_per_epoch": 1,
            "synthesis_steps": 200,
            "student_steps": 400,
            "batch_size": 128,
            "temperature": 20.0,
        },
        "synthesis": {
            "batch_size": 256,
            "bn_weight": 1.0,
            "class_weight": 1.0,
            "adversarial_weight": 0.5,
            "adversarial_temperature": 1.0,
        },
    },
    "mb_dfkd": {
        "generator": _MEMORY_GENERATOR,
        "distill": _MEMORY_STUDENT,
        "synthesis": _MEMORY_WEIGHTS,
        "memory": {"capacity": 1280, "every_epochs": 5},
    },
    "pre_dfkd": {"generator": _MEMORY_GENERATOR, "distill": _MEMORY_STUDENT, "synthesis": _MEMORY_WEIGHTS},
}
