"""Tests of runs whose teacher is a PyTorch module: its files, the command line, Python, resuming."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
import tiny

import cudfkd_jax
from cudfkd_jax import main
from cudfkd_jax.config import jobs, networks, validate
from cudfkd_jax.config.jobs import teacher_source
from cudfkd_jax.experiments import compare, plan
from cudfkd_jax.methods import METHODS
from cudfkd_jax.models import torch_module
from cudfkd_jax.runs import distill
from cudfkd_jax.runs.teacher import find_teacher
from cudfkd_jax.runtime.errors import StoppedError, UserError
from cudfkd_jax.storage import weights

torch = pytest.importorskip("torch")
torch_nets = pytest.importorskip("torch_nets")
safetensors = pytest.importorskip("safetensors.torch")

CONFIG = "--config=tests/support/tiny.py"
SHAPE = (8, 8, 1)
OTHER = 3  # a seed that `make()` does not use


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def _run(folder, *arguments, module="make"):
    own = f"--config.teacher.module=torch:torch_nets:{module}"
    return main.main([CONFIG, own, *([f"--workdir={folder}"] if folder else []), *arguments])


def _find(path, module="make", key=""):
    config = tiny.get_config()
    config.teacher.update(module=f"torch:torch_nets:{module}", checkpoint=str(path), checkpoint_key=key)
    return find_teacher(teacher_source(config), path.parent)


# Files


@pytest.mark.parametrize(
    ("name", "wrap", "key"),
    [
        ("net.pth", lambda state: state, ""),
        ("net.safetensors", lambda state: state, ""),
        ("net.pt", lambda state: {"epoch": 3, "model": {f"module.{k}": v.half() for k, v in state.items()}}, ""),
        ("net.pth", lambda state: {"model": {k: 0 * v for k, v in state.items()}, "ema": state}, "ema"),
    ],
)
def test_a_state_dict_is_read_under_the_modules_own_names(name, wrap, key, tmp_path):
    network = torch_nets.make(OTHER)
    held = wrap(network.state_dict())
    (safetensors.save_file if name.endswith("safetensors") else torch.save)(held, tmp_path / name)
    found = _find(tmp_path / name, key=key)
    expected = torch_module.own_variables(torch_module.wrap(network, 10, "net"), SHAPE)
    atol = 1e-3 if name == "net.pt" else 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-3), found.variables, expected)
    assert found.net.arch == "torch:torch_nets:make" and found.sha256 == weights.digest(found.variables)


def test_buffers_that_look_like_a_normalisation_are_the_modules_own(tmp_path):
    network = torch_nets.Wrapped()
    network.net.mean.fill_(0.4)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    found = _find(tmp_path / "net.pth", "Wrapped")
    np.testing.assert_array_equal(found.variables["params"]["net.mean"], network.net.mean)


def _without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: _without(s, "fc.bias", "scale"), "missing: fc.bias, scale"),
        (lambda s: {**s, "head.weight": s["fc.weight"]}, "unexpected: head.weight"),
        (lambda s: {**s, "fc.bias": s["fc.bias"][:9]}, r"fc.bias is \[9\] and should be \[10\]"),
        (lambda s: {**s, "fc.weight": s["fc.weight"].T}, r"fc.weight is \[12, 10\] and should be \[10, 12\]"),
    ],
)
def test_a_state_dict_of_another_module_is_refused_in_one_line(change, text, tmp_path):
    torch.save(change(torch_nets.make().state_dict()), tmp_path / "net.pth")
    with pytest.raises(UserError, match=text) as error:
        _find(tmp_path / "net.pth")
    assert "\n" not in str(error.value) and "--config.teacher.module" in str(error.value)


# The command line


@pytest.fixture(scope="module", name="first")
def _first(request, tmp_path_factory):
    """A run whose teacher is read from a state dict, and what it said."""
    folder, tiny_file = tmp_path_factory.mktemp("first"), request.config.rootpath / "tests/support/tiny.py"
    torch.save(torch_nets.make().state_dict(), folder / "net.pth")
    given = (f"--config.teacher.checkpoint={folder / 'net.pth'}", "--config.teacher.module=torch:torch_nets:make")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        arguments = (f"--config={tiny_file}", *given, "--config.distill.epochs=2", f"--workdir={folder / 'run'}")
        assert main.main(arguments) == 0
    return folder / "run", out.getvalue()


@pytest.mark.long
def test_a_run_with_a_pytorch_teacher(first, capsys):
    folder, said = first
    assert "BatchNorm statistics deviate by" in said
    record, *_ = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert record["bn_loss"] > 0 and "agree1" in record
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["teacher"]["arch"] == "torch:torch_nets:make" and not (folder / "teacher").exists()
    assert main.main(["--stage=evaluate", f"--workdir={folder}"]) == 0
    assert "teacher" in capsys.readouterr().out
    assert main.main(["--stage=export", "--format=stablehlo", f"--workdir={folder}"]) == 0
    assert main.main(["--stage=report", f"--workdir={folder}"]) == 0


def test_without_a_file_a_module_has_its_own_weights(first, tmp_path):
    said, config = [], tiny.get_config()
    config.teacher.module = "torch:torch_nets:make"
    found = find_teacher(teacher_source(config), tmp_path, said.append)
    assert "the weights that torch:torch_nets:make holds" in " ".join(said)
    assert found.sha256 == _find(first[0].parent / "net.pth").sha256


def test_its_own_weights_must_recognise_the_test_images(tmp_path, capsys):
    assert _run(tmp_path / "run", "--config.teacher.verify=true") == 2
    error = capsys.readouterr().err
    assert "near chance; its weights may not be loaded (set --config.teacher.checkpoint)" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_it_is_evaluated_without_a_run(capsys):
    assert _run(None, "--stage=evaluate") == 0
    assert "BatchNorm statistics deviate by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--stage=teacher"], "teacher.module=torch:torch_nets:make is given, so there is no teacher to train"),
        (["--config.student.module=torch:torch_nets:make"], "is a PyTorch module, which can be a teacher only"),
    ],
)
def test_it_is_not_trained(arguments, text, tmp_path, capsys):
    assert _run(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_comparison_does_not_train_it(tmp_path, monkeypatch):
    planned = []

    def run(runs, **options):
        planned.extend(runs)
        return []

    monkeypatch.setattr(plan, "check_surroundings", lambda runs: plan._check_here([each.wanted for each in runs]))
    monkeypatch.setattr(plan, "run", run)
    monkeypatch.setattr(compare, "write_table", lambda *arguments: None)
    own = ("--config.teacher.module=torch:torch_nets:make", "--config.data.source=none")
    compare.compare(CONFIG.removeprefix("--config="), ["dafl"], [0], tmp_path, own)
    assert [each.teacher for each in planned] == [None]


def test_attention_transfer_needs_stages(tmp_path, capsys):
    own = "--config.teacher.module=torch:torch_nets:make"
    assert main.main([f"{CONFIG}:method=zskt", own, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "set --config.zskt.attention_weight=0" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_it(method):
    config = tiny.get_config(f"method={method}")
    config.teacher.module = "torch:torch_nets:make"
    config.zskt.attention_weight = 0.0
    validate.check(config)
    net = networks.described(config, "teacher")
    distill.check_shapes(jobs.distill_job(config, networks.pair(config, net, net.abstract_variables())))


# Python


def _arguments(**changes):
    config = tiny.get_config()
    config.distill.epochs = 2
    arguments = {"teacher": torch_nets.make(), "student": tiny.NET, "image_shape": SHAPE, "num_classes": 10}
    return arguments | {"mean": 0.3, "std": 0.3, "config": config} | changes


class _Stop(cudfkd_jax.Callback):
    def on_epoch_end(self, state, history):
        raise StoppedError(15)


@pytest.mark.long
def test_a_module_is_a_teacher_in_python_and_its_run_resumes(first, tmp_path):
    """To the bits of a run that was never stopped and whose teacher came from a file."""
    teacher = torch_nets.make()
    teacher.train()
    config = _arguments()["config"]
    config.checkpoint.every_seconds = 0.0
    with pytest.raises(StoppedError):
        stopped = _arguments(teacher=teacher, config=config, workdir=tmp_path / "run", callbacks=[_Stop()])
        cudfkd_jax.distill(**stopped)
    resumed = cudfkd_jax.distill(**_arguments(config=config, workdir=tmp_path / "run"))
    assert resumed.student.sha256 == weights.load_net(first[0] / "student").sha256 and teacher.training
    assert resumed.summary["teacher"]["arch"] == "torch:torch_nets:Small"
    with pytest.raises(UserError, match="teacher"):  # other weights
        cudfkd_jax.distill(**_arguments(teacher=torch_nets.make(OTHER), config=config, workdir=tmp_path / "run"))


def test_a_module_is_no_student():
    with pytest.raises(UserError, match="a PyTorch module, which can be a teacher only"):
        cudfkd_jax.distill(**_arguments(student=torch_nets.make()))
