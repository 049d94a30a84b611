"""The optimiser of a student in data-free distillation."""

import optax
from ml_collections import ConfigDict

from cudfkd_jax.models.optimisers import sgd


def student_optimiser(config: ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimiser that `distill` describes, after an optional clipping of the gradient's norm."""
    d = config.distill
    if d.optimiser == "adam":
        optimiser = optax.chain(optax.add_decayed_weights(d.weight_decay), optax.adam(learning_rate))
    else:
        optimiser = sgd(learning_rate, momentum=d.momentum, weight_decay=d.weight_decay)
    return optax.chain(optax.clip_by_global_norm(d.clip_norm), optimiser) if d.clip_norm else optimiser
