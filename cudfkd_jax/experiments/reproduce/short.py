"""CuDFKD in 2,000 student steps: the release's settings with one change at a time."""

from typing import Any

from cudfkd_jax.experiments.reproduce.entry import Entry, Run, Setting, arguments, pair_name
from cudfkd_jax.experiments.reproduce.figures import LAST
from cudfkd_jax.experiments.reproduce.tables import CPU, CPU_IMAGES, CPU_SEEDS

_EPOCHS = {"distill.epochs": 20}

# Slopes fit the 20 epochs, ten of them on the ramp unless a change overrides it: α_adv ends at 6.75.
_CHANGES: dict[str, dict[str, Any]] = {
    "as released": {},
    "batch 32, 4,000 steps": {"distill.batch_size": 32, "distill.rounds_per_epoch": 20},
    "batch 128, 1,000 steps": {"distill.batch_size": 128, "distill.rounds_per_epoch": 5},
    "learning rate 0.05": {"distill.learning_rate": 0.05},
    "learning rate 0.2": {"distill.learning_rate": 0.2},
    "λ0 1": {"curriculum.lambda_0": 1.0},
    "λ0 4": {"curriculum.lambda_0": 4.0},
    "λ constant": {"curriculum.lambda_slope": 0.0},
    "adv 0 at the start": {"curriculum.adv": 0.0},
    "adv 1 at the start": {"curriculum.adv": 1.0},
    "adv 1, no ramp": {"curriculum.adv": 1.0, "curriculum.ramp": "constant"},
    "half the slope of the ramp": {"curriculum.alpha": 0.3125},
    "ramp from 0 to 1/2": {"curriculum.k_begin": 0.0, "curriculum.k_end": 0.5},
    "ramp from 1/2 to 1": {"curriculum.k_begin": 0.5, "curriculum.k_end": 1.0},
    "generator averaged, 0.9": {"generator.ema_decay": 0.9},
    "memory of 160 images": {"memory.capacity": 160},
    "latent dimension 128": {"generator.latent_dim": 128},
    "latent dimension 256": {"generator.latent_dim": 256},
    "no agreement mask": {"synthesis.adversarial_mask": "none"},
}

SHORT = (
    Entry(
        "short",
        "Short runs: CuDFKD in 2,000 student steps",
        "It names no settings for runs as short as these.",
        "changes",
        {
            "cifar10_cpu": Setting(
                [
                    Run(f"cifar10_cpu:{arguments(*CPU)}", name, pair_name(*CPU), "", _EPOCHS | changes, seed)
                    for name, changes in _CHANGES.items()
                    for seed in CPU_SEEDS
                ],
                choices=(
                    "wrn16_2 → wrn16_1, 20 epochs of 100 student steps at batch 64, in bfloat16. Seeds 0 and 1. "
                    "Each line changes the settings that it names, and no other; the gain is that over the first"
                    " line with the same seed.",
                    CPU_IMAGES,
                    "Other batch sizes see as many synthetic images.",
                    LAST,
                ),
                too_small="Two seeds tell apart what lies a percent or more from each other.",
            ),
        },
        ("change", "settings"),
        tuple(dict.fromkeys(key for changes in _CHANGES.values() for key in changes)),
    ),
)
