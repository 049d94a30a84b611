"""The training state of one network."""

from typing import Any

import jax
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """Parameters, BatchNorm statistics and optimiser state of a network in training."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @classmethod
    def create(cls, variables: dict[str, Any], optimiser: optax.GradientTransformation) -> "TrainState":
        params = variables["params"]
        return cls(params, variables.get("batch_stats", {}), optimiser.init(params))

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}

    def update(self, gradients: Any, batch_stats: Any, optimiser: optax.GradientTransformation) -> "TrainState":
        """Returns the state after one optimiser step along `gradients` (a tree like `params`)."""
        updates, opt_state = optimiser.update(gradients, self.opt_state, self.params)
        return TrainState(optax.apply_updates(self.params, updates), batch_stats, opt_state)


def gradient_norm(gradients: Any) -> jax.Array:
    """Computes the Euclidean norm over all leaves; non-finite if any leaf is."""
    return optax.tree.norm(gradients)
