"""The same round in another framework, started from our weights."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarking.timing import Seconds, median_ratio, timing
from cudfkd_jax.config import access, methods
from cudfkd_jax.methods import generative
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import torch_names
from cudfkd_jax.training.state import RunState

PEERS = ("torch",)

# The values of each setting that the peer supports.
_FIXED = {
    "method": ("cudfkd",),
    "teacher.module": ("",),
    "student.module": ("",),
    "distill.loss": ("kl", "l1"),
    "distill.optimiser": ("sgd",),
    "distill.clip_norm": (0.0,),
    "curriculum.strategy": ("log",),
    "curriculum.granularity": ("sample",),
    "synthesis.adversarial_loss": ("kl",),
    "synthesis.adversarial_mask": ("agreement",),
    "generator.ema_decay": (0.0,),
    "memory.capacity": (0,),
}


@dataclasses.dataclass(frozen=True)
class Peers:
    """Another framework's rounds.

    Attributes:
        rounds: by name; each has `run` and `description`.
        fault: why no round is compiled, or "".
        device, threads, version: the framework's.
    """

    rounds: dict[str, Any]
    fault: str
    device: str
    threads: int
    version: str

    def beside(
        self, ours: Sequence[float], taken: Mapping[str, Seconds], images: Mapping[str, int]
    ) -> dict[str, Any]:
        """Returns each round's measurements and its time relative to ours, JSON-ready.

        Args:
            ours: seconds of our round in each repeat.
            taken: seconds of the peer's rounds, by name and kind.
            images: images per call, by kind.
        """
        return {
            "version": self.version,
            "device": self.device,
            "threads": self.threads,
            "not_compiled": self.fault,
            "rounds": {
                name: {
                    "what": peer_round.description,
                    "timings": {kind: timing(values, images[kind]) for kind, values in taken[name].items()},
                    "rounds_s": taken[name]["round"],
                    "round_over_ours": median_ratio(taken[name]["round"], ours),
                }
                for name, peer_round in self.rounds.items()
            },
        }


def check(config: ConfigDict, devices: Devices) -> None:
    """Checks, before anything is compiled, that PyTorch's round is comparable.

    Args:
        config: the configuration to measure.
        devices: the devices of our run.

    Raises:
        UserError: PyTorch is missing or has no such device, or its round does not support a setting.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("--peer=torch needs PyTorch; pip install 'cudfkd_jax[torch]'") from error
    if len(devices.devices) > 1:
        raise UserError(
            f"--peer=torch compares single devices and there are {len(devices.devices)}; set --devices=1"
        )
    if devices.devices[0].platform != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"--peer=torch: JAX runs on a GPU and PyTorch {torch.__version__} finds none; install a PyTorch build "
            "for this GPU, or compare on the CPU with JAX_PLATFORMS=cpu"
        )
    for key, known in _FIXED.items():
        value = access.get(config, key)
        if value not in known:
            raise UserError(
                f"--peer=torch does not support {key}={value!r}; expected {' or '.join(map(repr, known))}. Set "
                f"--config.{key}=…, or leave out --peer"
            )


def torch_peers(config: ConfigDict, teacher_variables: Any, state: RunState) -> Peers:
    """Builds PyTorch's rounds, each with a separate copy of these weights.

    Args:
        config: a configuration that `check` accepts.
        teacher_variables: `{'params', 'batch_stats'}`, on one device.
        state: contains the student and the generator; on the same device.
    """
    import torch

    from torch_peer.rounds import PlainRound
    from torch_peer.tuned import TunedRound, compiler_fault

    settings = torch_settings(config)
    (ours,) = state.step.devices()
    device = torch.device("cpu" if ours.platform == "cpu" else "cuda")

    def tuned(*, compiled: bool) -> TunedRound:
        # Always on CUDA; on a CPU only where ours does, because most CPUs emulate bfloat16.
        bfloat16 = device.type == "cuda" or config.compute_dtype == "bfloat16"
        networks = torch_networks(config, teacher_variables, state)
        return TunedRound(networks, settings, device, compiled=compiled, bfloat16=bfloat16)

    rounds: dict[str, Any] = {
        "torch, plain": PlainRound(torch_networks(config, teacher_variables, state), settings, device),
        "torch, tuned": tuned(compiled=False),
    }
    fault = compiler_fault(device)
    if not fault:
        rounds["torch, compiled"] = tuned(compiled=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return Peers(rounds, fault, name, torch.get_num_threads(), torch.__version__)


def torch_settings(config: ConfigDict) -> Any:
    """Returns the `torch_peer.rounds.Settings` of a configuration, with schedules at their first epoch."""
    from torch_peer.rounds import Settings

    d, g, s, c = config.distill, config.generator, config.synthesis, config.curriculum
    alpha = methods.method_settings(config).alpha_adv()
    return Settings(
        batch_size=d.batch_size,
        synthesis_steps=d.synthesis_steps,
        student_steps=d.student_steps,
        latent_dim=g.latent_dim,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        loss=d.loss,
        temperature=d.temperature,
        adversarial_weight=None if alpha is None else float(alpha(0)),
        adversarial_temperature=s.adversarial_temperature,
        bn_weight=s.bn_weight,
        class_weight=s.class_weight,
        balance_weight=s.balance_weight,
        lambda_0=c.lambda_0,
        lambda_slope=c.lambda_slope,
        lambda_max=c.lambda_max or math.inf,
        learning_rate=d.learning_rate,
        momentum=d.momentum,
        weight_decay=d.weight_decay,
        generator_learning_rate=g.learning_rate,
        betas=(g.beta1, g.beta2),
    )


def torch_networks(config: ConfigDict, teacher_variables: Any, state: RunState) -> Any:
    """Returns the `torch_peer.rounds.Networks` with our weights, in their dtype."""
    from torch_peer import models
    from torch_peer.generator import Generator
    from torch_peer.rounds import Networks

    shape, d = tuple(config.data.image_shape), config.data
    ours = generative.generator(methods.method_settings(config))
    generator = Generator(shape, ours.latent_dim, ours.widths)
    weights = torch_names.to_state_dict(state.aux.variables)
    channels, height, width = generator.first_shape
    for name in ("linear.weight", "linear.bias"):  # ours outputs [h, w, channels], PyTorch's [channels, h, w]
        maps = weights[name].reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
        weights[name] = maps.reshape(weights[name].shape)
    return Networks(
        _loaded(generator, weights),
        *(
            _loaded(models.build(arch, d.num_classes, shape[2]), torch_names.to_state_dict(variables))
            for arch, variables in (
                (config.teacher.arch, teacher_variables),
                (config.student.arch, state.student.variables),
            )
        ),
    )


def _loaded(net: Any, weights: Mapping[str, np.ndarray]) -> Any:
    import torch

    tensors = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    net.to(next(iter(tensors.values())).dtype)
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    return net
