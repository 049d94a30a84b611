"""`compute_dtype=auto`: what it becomes, and that a run keeps it."""

import json

import jax
import pytest

from cudfkd_jax.config import precision, validate
from cudfkd_jax.experiments.plan import RunSpec, plan
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime import onednn
from cudfkd_jax.runtime.errors import UserError


class _Device:
    def __init__(self, platform: str, **attributes: str):
        self.platform, self.process_index = platform, 0
        self.__dict__.update(attributes)


@pytest.fixture(name="machine")
def _machine(monkeypatch):
    """Takes the place of this machine."""

    def of(
        *devices: _Device, flags: str = "", rewrites: bool = True, newer_python: tuple[int, int] = (3, 0)
    ) -> None:
        monkeypatch.setattr(jax, "devices", lambda: list(devices))
        monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags.split()))
        monkeypatch.setattr(onednn, "available", lambda: rewrites)
        monkeypatch.setattr(precision, "_NEWER_PYTHON", newer_python)

    return of


CPU, A100, V100 = (
    _Device("cpu"),
    _Device("gpu", compute_capability="8.0"),
    _Device("gpu", compute_capability="7.0"),
)


@pytest.mark.parametrize(
    ("devices", "flags", "rewrites", "expected"),
    [
        ([CPU], "avx512f amx_bf16 avx512_bf16", True, "bfloat16"),
        ([CPU], "avx512f avx512_bf16", True, "bfloat16"),
        ([CPU], "avx512f", True, "float32"),  # would be emulated
        ([CPU], "avx512f amx_bf16", False, "float32"),  # a jaxlib without oneDNN
        ([CPU, CPU], "avx512f amx_bf16", True, "float32"),  # pmap does not reach it
        ([A100, A100], "", False, "bfloat16"),
        ([V100], "", False, "float32"),
        ([_Device("tpu")], "", False, "bfloat16"),
    ],
)
def test_auto_is_what_the_devices_compute_fast(machine, tiny_config, devices, flags, rewrites, expected):
    machine(*devices, flags=flags, rewrites=rewrites)
    advice = precision.advice(tiny_config)
    assert (advice is None) == (expected == "float32")
    if advice:
        assert "--config.compute_dtype=auto" in advice and "as fast" in advice
    tiny_config.compute_dtype = "auto"
    validate.check(tiny_config)
    precision.settle(tiny_config)
    assert tiny_config.compute_dtype == expected
    if expected == "bfloat16":
        assert precision.advice(tiny_config) is None


def test_an_older_python_is_told_what_a_newer_one_would_bring(machine, tiny_config):
    machine(CPU, flags="avx512_bf16", rewrites=False, newer_python=(4, 0))
    advice = precision.advice(tiny_config)
    assert advice and "with Python 4.0 or newer" in advice and "some 1.5 times" in advice
    machine(CPU, flags="avx2", rewrites=False, newer_python=(4, 0))
    assert precision.advice(tiny_config) is None


def test_a_given_dtype_stays(machine, tiny_config):
    machine(A100)
    precision.settle(tiny_config)
    assert tiny_config.compute_dtype == "float32"


def test_a_run_keeps_its_dtype_on_another_machine(monkeypatch, finished_run, tiny_config, tmp_path):
    """Stops before the first step: the dtype is in `config.json` already."""

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.distill, "check_shapes", lambda *_: None)  # takes seconds
    monkeypatch.setattr(stages.distill, "distill", stop)
    tiny_config.teacher.checkpoint = str(finished_run)
    monkeypatch.setattr(precision, "_suited", lambda devices: "bfloat16")
    for _ in range(2):
        tiny_config.compute_dtype = "auto"
        with pytest.raises(KeyboardInterrupt):
            stages.run(tiny_config, "distill", tmp_path, say=lambda text: None)
        monkeypatch.setattr(precision, "_suited", lambda devices: "float32")
    assert tiny_config.compute_dtype == "bfloat16"
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["results"]["compute_dtype"] == saved["config"]["compute_dtype"] == "bfloat16"


def test_many_runs_are_given_theirs(tmp_path):
    """They are identified on the machine that begins them, which need not be the one that computes."""
    with pytest.raises(UserError, match="compute_dtype"):
        plan([RunSpec("a", "configs/digits.py", ("--config.compute_dtype=auto",), 0)], tmp_path)
