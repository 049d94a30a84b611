"""Tests of the benchmark: a tiny distillation, whose figures are consistent and match independent counts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rounds import ONE_DEVICE, UNOPTIMISED, copy

import benchmark
import xla_flags
from benchmarking import ceilings, costs, measure, ours, peers, table
from benchmarking.timing import alternate, median_ratio
from cudfkd_jax.config import build, defaults
from cudfkd_jax.models import build_classifier
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.runs import timing
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.training.loops import Epoch, Steps
from cudfkd_jax.training.state import RunState

_SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def _tiny_config():
    config = defaults.get_config()
    config.data.update(image_shape=(8, 8, 1), mean=(0.5,), std=(0.5,))
    config.teacher.module = config.student.module = "nets:TinyNet"
    config.generator.update(latent_dim=4, width=4)
    config.distill.update(batch_size=8, student_steps=3, rounds_per_epoch=5)
    return config


class _Peer:
    description = "as it is"

    def __init__(self):
        self.rounds = iter([60.0, 3.0, 3.0])

    def run(self):
        whole = next(self.rounds)
        return {"synthesis step": [whole / 2], "student step": [whole / 6], "round": [whole]}


@pytest.mark.slow
def test_measures_and_prints_every_kind_of_work(monkeypatch):
    monkeypatch.setattr(ceilings, "_SIZES", {"cpu": (256, 1 << 20)})
    monkeypatch.setattr(build, "devices", lambda config: ONE_DEVICE)
    monkeypatch.setattr(peers, "check", lambda config, devices: None)
    theirs = peers.Peers({"torch, plain": _Peer()}, "no compiler", "cpu", 3, "2.99")
    monkeypatch.setattr(peers, "torch_peers", lambda config, teacher_variables, state: theirs)
    measured = measure.measure_all([_tiny_config()], 2, peer="torch", imports_s=1.5)
    (measured,) = json.loads(json.dumps(measured))

    timings, top = measured["timings"], measured["ceilings"]
    assert list(timings) == ["synthesis step", "student step", "round", "epoch"]
    for kind, images in (("synthesis step", 8), ("student step", 8), ("round", 24), ("epoch", 120)):
        timing = timings[kind]
        assert timing["seconds"] > 0
        assert timing["seconds"] * timing["images_per_s"] == pytest.approx(images)
        reached = timing["of_product"] * top["flops_per_s"]["float32"]
        assert reached * timing["seconds"] == pytest.approx(timing["flops"])
        assert timing["of_stream"] * top["bytes_per_s"] * timing["seconds"] == pytest.approx(timing["bytes"])
        least = max(timing["flops"] / top["flops_per_s"]["float32"], timing["least_bytes"] / top["bytes_per_s"])
        assert timing["floor_s"] == pytest.approx(least)
    for cost in ("flops", "bytes", "least_bytes"):
        steps = timings["synthesis step"][cost] + 3 * timings["student step"][cost]
        assert timings["round"][cost] == pytest.approx(steps)
        assert timings["epoch"][cost] == pytest.approx(5 * steps)
    assert timings["epoch"]["seconds"] == pytest.approx(5 * timings["round"]["seconds"])
    assert measured["finite"] and "(a step was not finite" not in table.table(measured)
    assert "\n(a step was not finite" in table.table(measured | {"finite": False})
    assert "busy" not in table.table(measured | {"load_before": 0.2})
    assert "\n(the machine was busy, load 1.5" in table.table(measured | {"load_before": 1.5})
    start = measured["start"]
    parts = (start["imports_s"], start["set_up_s"], *start["first_steps_s"].values())
    assert start["to_first_step_s"] == pytest.approx(sum(parts))
    assert all(0 < measured["compile_s"][kind] < first for kind, first in start["first_steps_s"].items())
    assert 10 < measured["peak_memory_mib"]["host"] < 100_000

    assert measured["rounds_s"][0] != measured["rounds_s"][1]
    peer = measured["peers"]["rounds"]["torch, plain"]
    assert peer["rounds_s"] == [3.0, 3.0]  # without the warm-up round
    ratios = [3 / seconds for seconds in measured["rounds_s"]]
    assert peer["round_over_ours"]["median"] == pytest.approx(sum(ratios) / 2)
    assert peer["round_over_ours"]["most"] == pytest.approx(max(ratios))

    lines = table.table(measured).splitlines()
    assert lines[0] == "nets:TinyNet -> nets:TinyNet, cudfkd, batch 8, 8x8x1, float32"
    assert lines[1] == "1 synthesis and 3 student steps per round, 5 rounds per epoch"
    of_peer = next(line for line in lines if line.startswith("torch, plain "))
    assert of_peer.split()[2:6] == ["1,500.0", "500.0", "3,000.0", "8"]
    assert lines[-2:] == ["torch, plain: as it is", "no compiled round: no compiler"]
    shown = {
        line[:18].strip(): line[18:].split()[0]
        for line in lines
        if re.match("synthesis|student|round|epoch", line)
    }
    assert shown == {kind: f"{1000 * timing['seconds']:,.1f}" for kind, timing in timings.items()}


def test_least_bytes_are_those_of_convolutions_and_products():
    @jax.jit
    def block(x, kernel, weights):
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(x).mean((1, 2)) @ weights

    arrays = [jnp.ones(shape) for shape in ((2, 8, 8, 3), (3, 3, 3, 16), (16, 5))]
    convolution = 2 * 8 * 8 * 3 + 3 * 3 * 3 * 16 + 2 * 4 * 4 * 16
    product = 2 * 16 + 16 * 5 + 2 * 5
    assert costs.least_bytes(block, *arrays) == 4 * (convolution + product)


def test_flags_are_compared_with_none(monkeypatch, capsys):
    seconds = {"": [0.2, 0.4, 0.3], "--xla_a=1": [0.1, 0.1, 0.2]}

    def run(command, *, env, **_):
        if "--xla_b" in env["XLA_FLAGS"]:
            return subprocess.CompletedProcess(command, 1, "", "Unknown flag in XLA_FLAGS: --xla_b\n")
        assert command[-3:] == ["--config=some.py", "--rounds=5", "--json"]
        measured = {"timings": {"round": {"seconds": seconds[env["XLA_FLAGS"]].pop(0)}}, "compile_s": {"a": 2.0}}
        return subprocess.CompletedProcess(command, 0, json.dumps([measured]), "")

    monkeypatch.setattr(xla_flags.subprocess, "run", run)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert xla_flags.main(["--config=some.py", "--flags=--xla_a=1;--xla_b"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == [["300.0", "1.000", "2.0", "none"], ["100.0", "0.333", "2.0", "--xla_a=1"]]
    assert " ".join(lines[3]) == "--xla_b: Unknown flag in XLA_FLAGS: --xla_b"
    assert xla_flags.main(["--platform=tpu"]) == 2


def test_the_scan_begins_where_an_epoch_does():
    """Checks this, with steps that only count, after single ones too, which leave the counters inside a round."""
    steps = Steps(
        student=lambda state, axis: state.replace(step=state.step + 1),
        synthesis=lambda state, axis: state.replace(synthesis_step=state.synthesis_step + 1),
    )
    start = copy(RunState.create(jax.random.key(0), TrainState({}, {}, ()), ()))
    run = ours.Ours(timing.Setup(ONE_DEVICE, Epoch(2, 1, 2), "scan", steps, start, frozen=()))
    for _ in range(5):
        run.first(ours.STUDENT)
    (seconds,) = run.epoch()["epoch"]
    assert seconds > 0
    assert (int(run.state.step), int(run.state.synthesis_step)) == (4, 2)


@pytest.mark.slow
def test_devices_share_the_batch():
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in UNOPTIMISED.items())
    settings = ["data.image_shape=(8,8,1)", "generator.width=4", "distill.student_steps=1"]
    settings += [f"{role}.module=nets:TinyNet" for role in ("teacher", "student")]
    done = subprocess.run(
        [
            *(sys.executable, str(_SCRIPT), "--config=configs/digits.py", "--rounds=1", "--devices=1,2", "--json"),
            *(f"--config.{setting}" for setting in settings),
        ],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=_SCRIPT.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert [m["devices"]["count"] for m in measured] == [1, 2]
    for kind in ("synthesis step", "student step", "round"):
        first, second = (m["timings"][kind]["flops"] for m in measured)
        assert first == second > 0
    lines = [line.split() for line in done.stderr.splitlines()[-3:]]
    assert lines[0][:4] == ["devices", "round", "ms", "images/s"]
    assert [line[0] for line in lines[1:]] == ["1", "2"]


def test_scaling_is_beside_the_first():
    def measured(count, images_per_s):
        timing = {"seconds": 0.5, "images_per_s": images_per_s}
        return {"batch_size": 64, "devices": {"count": count}, "timings": {"round": timing}}

    lines = table.scaling([measured(2, 100.0), measured(8, 300.0)]).splitlines()
    assert lines[-1].split() == ["8", "500.0", "300", "3.00", "75%"]


def test_operations_are_those_of_the_convolutions():
    """Counts WRN-16-1: two operations per multiply-add, on taps inside the image, and few others."""

    def taps(size, stride, kernel):
        reach = range(-(kernel // 2), kernel // 2 + 1)
        return sum(0 <= at + tap < size for at in range(0, size, stride) for tap in reach)

    def convolution(inputs, outputs, size, stride=1, kernel=3):
        return 2 * inputs * outputs * taps(size, stride, kernel) ** 2

    wanted, inputs, size = convolution(3, 16, 32), 16, 32
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        wanted += convolution(inputs, outputs, size, stride)
        if inputs != outputs:
            wanted += convolution(inputs, outputs, size, stride, kernel=1)
        inputs, size = outputs, size // stride
        wanted += 3 * convolution(inputs, outputs, size)
    wanted += 2 * 64 * 10

    module, images = build_classifier("wrn16_1", 10), jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
    found = costs.operations(lambda v, x: module.apply(v, x, train=False), variables, images)
    assert 4 * wanted <= found < 1.05 * 4 * wanted


def test_bytes_are_those_that_cannot_stay_in_a_fusion():
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 1024), (1024, 64)))
    compiled = jax.jit(lambda a, b: jnp.tanh(2 * a + 1) @ b).lower(a, b).compile()
    read_and_written = 4 * (256 * 1024 + 1024 * 64 + 256 * 64)
    assert read_and_written <= costs.traffic(compiled) <= read_and_written + 2 * 4 * 256 * 1024  # tanh's result


def test_bytes_of_library_calls_are_those_of_arguments_and_results():
    text = """
ENTRY %main (a: f32[2,8,8,16], b: bf16[3,3,16,4]) -> f32[2,8,8,4] {
  %a = f32[2,8,8,16]{3,2,1,0} parameter(0)
  %b = bf16[3,3,16,4]{3,2,1,0} parameter(1)
  %call.1 = (f32[2,8,8,4]{3,2,1,0}, u8[4096]{0}) custom-call(%a, %b), window={size=3x3}, custom_call_target="x"
  ROOT %out = f32[2,8,8,4]{3,2,1,0} get-tuple-element(%call.1), index=0
}"""
    assert costs.library_bytes(text) == 4 * 2 * 8 * 8 * 16 + 2 * 3 * 3 * 16 * 4 + 4 * 2 * 8 * 8 * 4
    compiled = jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
    assert costs.library_bytes(compiled.as_text()) == pytest.approx(2 * 4 * 64 * 64, rel=0.01)
    compiled = jax.jit(jnp.tanh).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
    assert costs.library_bytes(compiled.as_text()) == 0


def test_ceilings_are_rates_of_the_device():
    device = jax.devices()[0]
    assert 1e8 < ceilings.product_rate(device, "float32", 512) < 1e16
    assert 1e8 < ceilings.stream_rate(device, 1 << 22) < 1e14


def test_alternates_and_pairs_the_repeats():
    seen = []

    def work(name, *seconds):
        values = iter(seconds)
        return lambda: seen.append(name) or {"round": [next(values)]}

    taken = alternate({"a": work("a", 2.0, 3.0, 8.0), "b": work("b", 1.0, 6.0, 2.0)}, 3)
    assert seen == ["a", "b"] * 3
    assert taken == {"a": {"round": [2.0, 3.0, 8.0]}, "b": {"round": [1.0, 6.0, 2.0]}}
    assert median_ratio(taken["a"]["round"], taken["b"]["round"]) == {"median": 2.0, "least": 0.5, "most": 4.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no configuration; give one, e.g. --config=digits"),
        (["--config=configs/digits.py", "--config.distill.temperature=-1"], r"distill\.temperature=-1\.0"),
        (["--config=configs/digits.py", "--rounds=0"], "--rounds is '0'; expected a positive integer"),
        (["--config=configs/digits.py", "--devices=1,many"], "--devices is 'many'; expected a positive integer"),
        (["--config=configs/digits.py", "--devices=1,64"], "devices=64 but only"),
        (["--config=configs/digits.py", "--peer=tosch"], r"unknown --peer 'tosch' \(did you mean 'torch'\?\)"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(_SCRIPT.parents[1])
    assert benchmark.main(arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert re.match(rf"cudfkd: error: {message}[^\n]*\n$", printed.err)


def test_says_that_pytorch_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    config = _tiny_config()
    with pytest.raises(UserError, match=r"--peer=torch needs PyTorch; pip install 'cudfkd_jax\[torch\]'"):
        peers.check(config, build.devices(config))


def test_keeps_the_cpu_beside_other_platforms(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for _ in range(2):
        benchmark._prepare([])
        assert os.environ["JAX_PLATFORMS"] == "cuda,cpu"


def test_makes_devices_of_the_cores_only_where_several_are_asked_for(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    benchmark._prepare(["--devices=1", "--peer="])
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    benchmark._prepare(["--config=a.py", "--devices=1,4,2"])
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=4"
    benchmark._prepare(["--devices=8"])
    assert os.environ["XLA_FLAGS"].endswith("count=4")
