"""AdaDFKD: CuDFKD with relations between images, whose difficulty adapts, too.

J. Li et al., "AdaDFKD: Exploring Adaptive Inter-Sample Relationship in Data-Free Knowledge Distillation", 2023. φ
are the features before the logits, with Euclidean norm 1; D, v*, λ(t) and the other terms are those of CuDFKD:

    generator  CuDFKD's with a constant α_adv and without the mask + w_h · 1/B Σ_i InfoNCE(φ_t(x_i), φ_s(x_i), N_i)
    student    1/B Σ_i v*(λ(t), l_i) · l_i,  l_i = D(z_t(x_i)/T, z_s(x_i)/T) + w_s · InfoNCE_i

The generator's query is the teacher's feature, with gradient; its positive is the student's feature of the same
image, a constant. The negatives N_i come from a queue of the student's features of the last K synthetic images,
which each batch enters after its loss: sorted by their similarity to the query, those in the window of
`curriculum.negatives_schedule` count. The student's InfoNCE is that of the batch: anchor i is the teacher's
feature of image i, the keys are the student's features of all images.

Where the two networks' features have different widths, the student's go through a linear layer, drawn once. The
released code draws another, untrained one at every step. Its queue must hold whole batches; here it need not. With
the strategy "none" it leaves out the student's InfoNCE, which stays here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cudfkd_jax.methods import cudfkd, generative
from cudfkd_jax.methods.base import Method, MethodSpec
from cudfkd_jax.methods.context import MethodContext
from cudfkd_jax.methods.setting import number
from cudfkd_jax.models import layers
from cudfkd_jax.models.capture import FEATURES, Outputs
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.objectives import curriculum, student
from cudfkd_jax.objectives.contrastive import info_nce
from cudfkd_jax.objectives.student import AddedLoss
from cudfkd_jax.objectives.terms import STUDENT_FEATURES, StatefulTerm, Synthetic
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The section `adadfkd`."""

    generator_weight: float = number(0.1, least=0)  # w_h, of the generator's contrastive loss
    student_weight: float = number(0.1, least=0)  # w_s, of the student's contrastive loss
    temperature: float = number(0.07, above=0)  # τ of both
    queue: int = number(8192, above=0)  # K, past images whose features are negatives
    negatives: float = number(0.8, above=0, most=1)  # k, the share of the queue that counts


class Relations(struct.PyTreeNode):
    """Past features, and the projection of the student's features to the teacher's width.

    Attributes:
        queue: `[K, D]`, unit vectors.
        pointer: int32, the row that is replaced next.
        projection: `kernel` `[D_s, D]` and `bias` `[D]`; None where the widths are equal.
    """

    queue: jax.Array
    pointer: jax.Array
    projection: dict[str, jax.Array] | None

    def push(self, rows: jax.Array) -> "Relations":
        """Replaces the oldest rows by `rows` `[B, D]`, B at most K."""
        places = (self.pointer + jnp.arange(len(rows))) % len(self.queue)
        return self.replace(
            queue=self.queue.at[places].set(rows.astype(self.queue.dtype)),
            pointer=(self.pointer + len(rows)) % len(self.queue),
        )

    def of_student(self, outputs: Outputs) -> jax.Array:
        """Returns the student's features, projected: unit vectors `[B, D]`."""
        features = _features(outputs)
        if self.projection is not None:
            features = features @ self.projection["kernel"] + self.projection["bias"]
        return unit(features)


def build(context: MethodContext) -> Method:
    """Builds AdaDFKD, without a contrastive loss whose weight is 0.

    Raises:
        UserError: the queue is too small, or a network has no single linear layer that returns the logits.
    """
    c, own = context.curriculum, context.own
    loss = functools.partial(
        student.self_paced_student_loss,
        sample_loss=context.sample_loss(),
        strategy=c.strategy,
        granularity=c.granularity,
        lambda_t=context.lambda_t(),
    )
    terms = cudfkd.terms_of(context)
    if not own.generator_weight and not own.student_weight:
        return generative.build(context, terms, loss())
    if own.queue < context.distill.batch_size:
        raise UserError(
            f"adadfkd.queue={own.queue} holds less than a batch of distill.batch_size="
            f"{context.distill.batch_size}; set --config.adadfkd.queue to that at least"
        )
    if own.negatives * own.queue < 1:
        raise UserError(
            f"adadfkd.negatives={own.negatives} of adadfkd.queue={own.queue} is less than one; raise "
            "--config.adadfkd.negatives"
        )
    negatives = curriculum.negatives_schedule(
        own.negatives,
        own.queue,
        k_begin=c.k_begin,
        k_end=c.k_end,
        epochs=context.distill.epochs,
        steps_per_epoch=context.distill.steps_per_epoch,
    )
    shape = context.data.image_shape
    widths = feature_width(context.teacher, shape), feature_width(context.student, shape)
    stateful = generator_term(own, negatives, *widths)
    if not own.student_weight:
        return generative.build(context, terms, loss(), stateful=stateful)
    return generative.build(context, terms, loss(added=student_term(own)), (FEATURES,), stateful)


def feature_width(network: Classifier, image_shape: tuple[int, int, int]) -> int:
    """Returns the width of a network's features before the logits.

    Raises:
        UserError: the network has no single linear layer that returns the logits.
    """

    def features(key: jax.Array) -> jax.Array:
        images = jnp.zeros((1, *image_shape))
        return _features(network(network.init(key, image_shape), images, capture=(FEATURES,)))

    return jax.eval_shape(features, jax.random.key(0)).shape[-1]


def generator_term(
    own: Settings, negatives: Callable[[jax.Array], tuple[jax.Array, jax.Array]], width: int, student_width: int
) -> StatefulTerm:
    """Returns w_h · InfoNCE of the teacher's features, whose state is `Relations`.

    Args:
        own: w_h, τ and K.
        negatives: the window of the negatives, a schedule of the student step.
        width, student_width: of the teacher's and the student's features.
    """

    def init(key: jax.Array) -> Relations:
        queue_key, kernel_key, bias_key = jax.random.split(key, 3)
        queue = unit(jax.random.normal(queue_key, (own.queue, width)))
        projection = None
        if width != student_width:
            projection = {
                "kernel": layers.torch_uniform(kernel_key, (student_width, width)),
                "bias": layers.torch_uniform_bias(student_width)(bias_key, (width,)),
            }
        return Relations(queue, jnp.zeros((), jnp.int32), projection)

    def value(synthetic: Synthetic, state: Relations, step: jax.Array, axis: Axis) -> tuple[jax.Array, Relations]:
        if not own.generator_weight:  # the projection alone is needed, by the student's loss
            return jnp.zeros(()), state
        assert synthetic.student is not None
        queries = unit(_features(synthetic.teacher))
        positives = jax.lax.stop_gradient(state.of_student(synthetic.student))
        losses = windowed_info_nce(queries, positives, state.queue, *negatives(step), own.temperature)
        return axis.mean(jnp.mean(losses)), state.push(axis.gather(positives))

    weight = optax.constant_schedule(own.generator_weight)
    needs = (FEATURES, STUDENT_FEATURES) if own.generator_weight else ()
    return StatefulTerm("contrastive_loss", init, value, weight, needs)


def windowed_info_nce(
    queries: jax.Array,
    positives: jax.Array,
    queue: jax.Array,
    first: jax.Array,
    end: jax.Array,
    temperature: float,
) -> jax.Array:
    """Computes −log(e^(q·p/τ) / (e^(q·p/τ) + Σ e^(q·n/τ))) over the negatives n of ranks `first` to `end` − 1.

    Args:
        queries, positives: unit vectors `[B, D]`.
        queue: unit vectors `[K, D]`, ranked by their similarity to each query, the least similar first.
        first, end: integers, 0 <= first < end <= K.
        temperature: τ > 0.

    Returns:
        `[B]`.
    """
    positive = jnp.sum(queries * positives, axis=-1, keepdims=True) / temperature
    ranked = jnp.sort(queries @ queue.T, axis=-1) / temperature
    ranks = jnp.arange(len(queue))
    counted = jnp.where((ranks >= first) & (ranks < end), ranked, -jnp.inf)
    return jax.nn.logsumexp(jnp.concatenate([positive, counted], axis=-1), axis=-1) - positive[:, 0]


def student_term(own: Settings) -> AddedLoss:
    """Returns w_s · InfoNCE between the features of teacher (anchors) and student within the batch."""

    def value(student: Outputs, teacher: Outputs, aux: Any, axis: Axis) -> jax.Array:
        anchors = axis.gather(unit(_features(teacher)))
        keys = axis.gather(aux.carried.of_student(student))
        return axis.shard(info_nce(anchors, keys, jnp.ones(len(keys), bool), own.temperature))

    return AddedLoss("student_contrastive_loss", value, own.student_weight)


def unit(x: jax.Array) -> jax.Array:
    """Normalises vectors `[..., D]` to Euclidean norm 1; 0 stays 0."""
    # Clamped because the gradient of the square root is not finite at 0.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def _features(outputs: Outputs) -> jax.Array:
    assert outputs.features is not None
    return layers.at_least_float32(outputs.features)


SPEC = MethodSpec(
    name="adadfkd",
    label="AdaDFKD",
    build=build,
    recipe={"curriculum": {"alpha": 0.0, "adv": 1.0}, "synthesis": {"adversarial_mask": "none"}},
    settings=Settings,
    reads=(*generative.READS, "synthesis.adversarial_mask"),
    memory_settings=("queue",),
)
