"""PRE-DFKD: data-free knowledge distillation by generative pseudo replay.

K. Binici, S. Aggarwal, N. T. Pham, K. Leman, T. Mitra, "Robust and Resource-Efficient Data-Free Knowledge
Distillation by Generative Pseudo Replay", AAAI 2022. A VAE learns the generator's distribution and replaces
stored images. With f_t the teacher's logits, B new and R replayed images, and p̄ as in `mb_dfkd.py`:

    generator   as MB-DFKD; spectral norm on its convolutions
    VAE         mean |y' − y| + mean |f_t(x') − f_t(x)| + 1e-5 · KL(q(z | x) ‖ N(0, I)),  y = (x − mean) / std,
                x' = D(z), z ~ q(z | x), on x = [ B/2 new images, R of the VAE's own replays ]
    replay      x = D(z − Adam step of 0.02), z ~ N(0, I) of R rows, the step along the gradient of
                L_oh + 5 · Σ_c p̄_c log10(p̄_c + ε) + mean (var z − 1)² + mean (mean z)²
    student     mean |z_t − z_s| over classes and [ B new images, R replays ],    B = 1024, R = 128

var z and mean z are over the R latents, one value per dimension. ε = 1e-8, absent from the released code, keeps an
absent class out of log 0. Replays are constants and carry no gradient. Differences from the released code, and
why:

* there the VAE is trained after each of the first 4 of a round's 10 student steps, on their new images. Here all
  4 steps precede the student's, on separate images: the generator is frozen meanwhile, so these have the same
  distribution, and only the method's state is needed to generate them. The first student step of a run therefore
  replays from a VAE of 4 steps, not from an untrained one;
* there the decoder is also trained on the loss of the latents: tuning them leaves its gradient in the decoder's
  parameters, to which the gradient of the VAE's loss is added. In two comparisons this changed the decoder's step
  by 0.7 and 1.0 of its norm. The paper's VAE loss has no such term, and here the decoder follows that loss alone;
* in the first round the VAE sees new images in place of replays (there B/2 images in all, here B/2 + R);
* the generator's statistics and singular-value estimates are updated 5 times per round, by the batches for the
  VAE, and not by the student's (11 times), which leave the method's state unchanged. As there, new images are
  normalised with the statistics of their own batch, and replays for the student with the decoder's running ones;
* JS and the student's mode in the generator's step: see `mb_dfkd.py`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from cudfkd_jax.methods import mb_dfkd
from cudfkd_jax.methods.base import Method, MethodSpec
from cudfkd_jax.methods.context import MethodContext
from cudfkd_jax.methods.generative import generative_method, generator_optimiser
from cudfkd_jax.methods.memory.generative_memory import GenerativeMemory, MemoryState, part_rows
from cudfkd_jax.methods.memory.replay import check_shares, replayed_rows
from cudfkd_jax.methods.setting import number
from cudfkd_jax.models.capture import apply
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.models.vae import Encoder
from cudfkd_jax.objectives.student import StudentLoss
from cudfkd_jax.objectives.terms import Metrics, Term
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.runtime.errors import UserError


class PreDfkdState(struct.PyTreeNode):
    """The generator of new images, and the VAE that replays past ones."""

    generator: TrainState
    memory: MemoryState


@dataclasses.dataclass(frozen=True)
class Settings:
    """The section `pre_dfkd`."""

    memory_steps: int = number(4, above=0, most=100)  # of the VAE, per round; each is compiled separately
    memory_learning_rate: float = number(5e-4, above=0)  # Adam
    kl_weight: float = number(1e-5, least=0)  # of the VAE's KL divergence
    latent_learning_rate: float = number(0.02, above=0)  # of the Adam step on latents before replay


def build(context: MethodContext) -> Method:
    """Builds PRE-DFKD."""
    d, g, s, own = context.data, context.generator, context.synthesis, context.own
    memory = GenerativeMemory(
        encoder=Encoder(g.latent_dim, d.mean, d.std, g.width, context.dtype),
        decoder=mb_dfkd.normalised_generator(context, spectral_norm=False),
        optimiser=optax.adam(own.memory_learning_rate),
        rows=replayed_rows(context.distill.batch_size),
        class_weight=s.class_weight,
        balance_weight=s.balance_weight,
        learning_rate=own.latent_learning_rate,
        kl_weight=own.kl_weight,
    )
    return pre_dfkd_method(
        generator=mb_dfkd.normalised_generator(context, spectral_norm=True),
        optimiser=generator_optimiser(context),
        latent_dim=g.latent_dim,
        batch_size=context.distill.batch_size,
        terms=mb_dfkd.terms_of(context),
        student_loss=context.student_loss(),
        memory=memory,
        memory_steps=own.memory_steps,
    )


def pre_dfkd_method(
    *,
    generator: nn.Module,
    optimiser: optax.GradientTransformation,
    latent_dim: int,
    batch_size: int,
    terms: tuple[Term, ...],
    student_loss: StudentLoss,
    memory: GenerativeMemory,
    memory_steps: int,
) -> Method:
    """Returns PRE-DFKD, whose state is a `PreDfkdState`.

    Args:
        generator: called as `generator(z, train)`, z `[B, latent_dim]`; see `models.vae`.
        optimiser: the generator's.
        latent_dim: the generator's.
        batch_size: B, images per synthesis step and new images per student step, over all devices.
        terms: the generator's objective, `mb_dfkd.synthesis_terms`.
        student_loss: see `Method`; the paper's is L1 on logits.
        memory: the VAE and its training; a student step adds its R replays to B new images.
        memory_steps: the VAE's steps per round.

    Raises:
        UserError: the batch size is odd. While a step is traced: the devices cannot share B/2 or R images evenly.
    """
    if batch_size < 2 or batch_size % 2:
        raise UserError(
            f"batch_size={batch_size} has no half to train the memory of PRE-DFKD on; set it to an even number"
        )
    half, rows = batch_size // 2, memory.rows
    inner = generative_method(
        generator=generator,
        optimiser=optimiser,
        latent_dim=latent_dim,
        batch_size=batch_size,
        terms=terms,
        student_loss=student_loss,
    )

    def init(key: jax.Array) -> PreDfkdState:
        generator_key, memory_key = jax.random.split(key)
        return PreDfkdState(inner.init(generator_key), memory.init(memory_key))

    def synthesise(
        aux: PreDfkdState,
        teacher: FrozenClassifier,
        student: FrozenClassifier,
        key: jax.Array,
        step: jax.Array,
        axis: Axis,
    ) -> tuple[PreDfkdState, Metrics]:
        state, metrics = inner.synthesise(aux.generator, teacher, student, key, step, axis)
        return aux.replace(generator=state), metrics

    def remember(
        aux: PreDfkdState, teacher: FrozenClassifier, key: jax.Array, first: jax.Array, axis: Axis
    ) -> PreDfkdState:
        new_key, memory_key = jax.random.split(key)
        z = part_rows(jax.random.normal(new_key, (half + rows, latent_dim)), half, axis)
        made = apply(generator, aux.generator.variables, z, train=True, axis=axis)
        new, instead = jnp.split(made.value, [half // axis.size])
        return PreDfkdState(
            aux.generator.replace(batch_stats=made.batch_stats),
            memory.update(aux.memory, teacher, new, instead, memory_key, first, axis),
        )

    def finish(
        aux: PreDfkdState, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis
    ) -> PreDfkdState:
        check_shares("images of half a batch", half, axis)
        check_shares("replayed images", rows, axis)
        for step_key in jax.random.split(key, memory_steps):
            aux = remember(aux, teacher, step_key, step == 0, axis)
        return aux

    def sample(aux: PreDfkdState, teacher: FrozenClassifier, key: jax.Array, axis: Axis) -> jax.Array:
        new_key, replay_key = jax.random.split(key)
        z = axis.shard(jax.random.normal(new_key, (batch_size, latent_dim)))
        new = mb_dfkd.draw_images(generator, aux.generator, z, axis)
        replayed, _ = memory.replay(aux.memory.decoder, teacher, replay_key, axis, train=False)
        return jnp.concatenate([new, replayed])

    def preview(aux: PreDfkdState, key: jax.Array, count: int) -> jax.Array:
        return mb_dfkd.draw_images(generator, aux.generator, jax.random.normal(key, (count, latent_dim)), SINGLE)

    return inner._replace(init=init, synthesise=synthesise, finish=finish, sample=sample, preview=preview)


SPEC = MethodSpec(
    name="pre_dfkd",
    label="PRE-DFKD",
    build=build,
    recipe=mb_dfkd.SHARED_RECIPE,
    settings=Settings,
    reads=("generator.schedule",),
    replays=True,
)
