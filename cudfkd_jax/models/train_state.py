"""The training state of one network."""

from collections.abc import Mapping
from typing import Any, Self

import jax
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """Parameters, BatchNorm statistics and optimiser state of a network in training.

    A network with further collections of variables has a `CollectionsTrainState`.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @classmethod
    def create(cls, variables: dict[str, Any], optimiser: optax.GradientTransformation) -> "TrainState":
        """Returns the state before the first step, from all collections of a network's variables."""
        params, opt_state = variables["params"], optimiser.init(variables["params"])
        further = {name: tree for name, tree in variables.items() if name not in ("params", "batch_stats")}
        if further:
            return CollectionsTrainState(params, variables.get("batch_stats", {}), opt_state, further)
        return cls(params, variables.get("batch_stats", {}), opt_state)

    @property
    def variables(self) -> dict[str, Any]:
        """All collections of the network's variables."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def update(self, gradients: Any, batch_stats: Any, optimiser: optax.GradientTransformation) -> Self:
        """Returns the state after one optimiser step along `gradients` (a tree like `params`)."""
        updates, opt_state = optimiser.update(gradients, self.opt_state, self.params)
        return self.replace(
            params=optax.apply_updates(self.params, updates), batch_stats=batch_stats, opt_state=opt_state
        )

    def with_collections(self, collections: Mapping[str, Any]) -> Self:
        """Returns the state with these further collections, of which this one has none."""
        return self


class CollectionsTrainState(TrainState):
    """The training state of a network that has more collections than parameters and BatchNorm statistics.

    It is a class of its own so that checkpoints of other networks keep their structure.
    """

    collections: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """All collections of the network's variables."""
        return {"params": self.params, "batch_stats": self.batch_stats, **self.collections}

    def with_collections(self, collections: Mapping[str, Any]) -> Self:
        """Returns the state with other values in its further collections."""
        return self.replace(collections=dict(collections))


def gradient_norm(gradients: Any) -> jax.Array:
    """Computes the Euclidean norm over all leaves; non-finite if any leaf is."""
    return optax.tree.norm(gradients)
