"""Tests of exports: each format contains the student, and nothing is overwritten."""

import dataclasses
import json
import shutil
import sys
from importlib import metadata

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import flip_byte, snapshot

from cudfkd_jax import main, models
from cudfkd_jax.config.jobs import teacher_source
from cudfkd_jax.evaluation import latency
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runs import export
from cudfkd_jax.runs.teacher import find_teacher
from cudfkd_jax.runtime.errors import RunFailedError, UserError
from cudfkd_jax.storage import weights
from cudfkd_jax.storage.formats import FORMATS, Format
from cudfkd_jax.storage.weights import NetworkSpec, Trained

PACKAGES = {"torch": "torch", "safetensors": "safetensors", "stablehlo": "flatbuffers"}  # optional packages
FILES = {
    "orbax": "student",
    "safetensors": "student.safetensors",
    "torch": "student.pth",
    "stablehlo": "student.stablehlo",
}


@pytest.fixture(params=FORMATS)
def format_(request):
    """Returns the formats whose packages are installed."""
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    return request.param


_COST = {"parameters": 1, "bytes": 4, "latency_ms": {"1": 0.5, "256": 1.5}}


@pytest.fixture(autouse=True)
def _nothing_is_measured(request, monkeypatch):
    """Saves the compilation of two networks for two batch sizes."""
    if "measured" not in request.fixturenames:
        monkeypatch.setattr(latency, "measure", lambda net, variables, device: _COST)


@pytest.fixture
def measured():
    """For exports whose latency is measured."""


def _export(folder, format_) -> str:
    said: list[str] = []
    path = export.export(folder, format_, said.append)
    assert path == folder / "export" / format_ / FILES[format_]
    *_, text = said
    return text


def _refused(folder, format_) -> str:
    before = snapshot(folder)
    with pytest.raises(UserError) as caught:
        export.export(folder, format_)
    assert snapshot(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _logits(trained: Trained, images: np.ndarray) -> np.ndarray:
    net = trained.net
    network = Classifier(models.build_classifier(net.arch, net.num_classes), net.mean, net.std)
    return np.asarray(jax.jit(network)(trained.variables, images).value)


def _random_student(arch: str, image_shape=(8, 8, 1)) -> Trained:
    channels = image_shape[2]
    net = NetworkSpec(arch, 7, image_shape, (0.4,) * channels, (0.3,) * channels, {})
    return Trained(net, _random_variables(net), "")


def _random_variables(net: NetworkSpec):
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.uniform(0.01, 0.2, leaf.shape).astype(np.float32), net.abstract_variables()
    )


@pytest.fixture
def run_copy(run_copy):
    """The finished run with a student whose architecture has names in PyTorch."""
    student = weights.load_net(run_copy / "student")
    net = dataclasses.replace(student.net, arch="wrn10_1")
    weights.save_net(run_copy / "student", net, _random_variables(net))
    return run_copy


# Files


def test_an_export_prints_its_path_and_leaves_the_run_unchanged(run_copy, format_):
    before = snapshot(run_copy)
    path = run_copy / "export" / format_
    assert _export(run_copy, format_) == f"written: {path / FILES[format_]}"
    assert sorted(file.name for file in path.iterdir()) == sorted(["student.json", FILES[format_]])
    assert [folder.name for folder in path.parent.iterdir()] == [format_]
    after = snapshot(run_copy)
    assert {name: value for name, value in before.items() if name not in (".", ".lock")}.items() <= after.items()


def test_a_vgg_for_larger_images_is_warned_of(run_copy, format_, monkeypatch):
    student = _random_student("vgg8", (96, 96, 3))
    weights.save_net(run_copy / "student", student.net, student.variables)
    monkeypatch.setattr(export, "FORMATS", {format_: FORMATS[format_]._replace(write=_stop)})
    said = []
    with pytest.raises(KeyboardInterrupt):
        export.export(run_copy, format_, said.append)
    assert [line[:20] for line in said] == ["warning: vgg8 pools "] * (format_ in ("safetensors", "torch"))


def _stop(path, trained):
    raise KeyboardInterrupt


def test_the_description_says_what_it_is_and_where_it_comes_from(run_copy, format_):
    _export(run_copy, format_)
    described = json.loads((run_copy / "export" / format_ / "student.json").read_text())
    net = json.loads((run_copy / "student" / "net.json").read_text())
    summary = json.loads((run_copy / "summary.json").read_text())
    assert described["file"] == FILES[format_]
    for key in ("arch", "num_classes", "image_shape", "mean", "std", "metrics"):
        assert described[key] == net[key]
    assert described["weights_sha256"] == net["sha256"]
    assert described["classes"] == list("0123456789")
    assert described["teacher"]["arch"] == summary["teacher"]["arch"]
    assert described["teacher"]["weights_sha256"] == weights.load_net(run_copy / "teacher" / "net").sha256
    assert described["versions"]["run"] == summary["versions"]
    assert described["versions"]["export"]["jax"] == metadata.version("jax")
    assert ("- mean) / std" in described["input"]) == (format_ != "stablehlo")


def test_torch_and_safetensors_hold_the_student(run_copy):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    torch_models = pytest.importorskip("torch_peer.models")
    for format_ in ("torch", "safetensors"):
        _export(run_copy, format_)
    student = weights.load_net(run_copy / "student")
    images = np.random.default_rng(0).random((5, *student.net.image_shape), np.float32)
    normalised = (images - np.float32(student.net.mean)) / np.float32(student.net.std)
    wanted = _logits(student, images)
    for state_dict in (
        torch.load(run_copy / "export/torch/student.pth", weights_only=True),
        safetensors.load_file(run_copy / "export/safetensors/student.safetensors"),
    ):
        net = torch_models.build(student.net.arch, 10, channels=1)
        net.load_state_dict(state_dict, strict=True)
        with torch.no_grad():
            found = net.eval()(torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy())).numpy()
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_orbax_holds_the_student(run_copy):
    _export(run_copy, "orbax")
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore((run_copy / "export/orbax/student").absolute())
    jax.tree.map(np.testing.assert_array_equal, found, weights.load_net(run_copy / "student").variables)


def test_stablehlo_takes_images_of_any_number(run_copy):
    pytest.importorskip("flatbuffers")
    _export(run_copy, "stablehlo")
    program = jax.export.deserialize(bytearray((run_copy / "export/stablehlo/student.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(size) for size in program.in_avals[0].shape] == ["b", "8", "8", "1"]
    student = weights.load_net(run_copy / "student")
    for count in (1, 2, 5, 8):
        images = np.random.default_rng(count).random((count, *student.net.image_shape), np.float32)
        wanted = _logits(student, images)
        assert np.abs(program.call(images) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "arch",
    [
        "vgg8",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("wrn10_2", "resnet18", "resnet10_imagenet")),
    ],
)
def test_stablehlo_of_every_family(arch, tmp_path):
    pytest.importorskip("flatbuffers")
    student = _random_student(arch)
    FORMATS["stablehlo"].write(tmp_path / "net", student)
    FORMATS["stablehlo"].check(tmp_path / "net", student)
    other = jax.tree.map(lambda leaf: leaf * 1.01, student.variables)
    with pytest.raises(ValueError, match="other logits of 1 images"):
        FORMATS["stablehlo"].check(tmp_path / "net", student._replace(variables=other))


# Cost


def test_size_and_latency_of_both_networks_are_described(measured, finished_run, tmp_path):
    run_copy = shutil.copytree(finished_run, tmp_path / "copy")
    said: list[str] = []
    export.export(run_copy, "orbax", said.append)
    described = json.loads((run_copy / "export/orbax/student.json").read_text())["cost"]
    summary = json.loads((run_copy / "summary.json").read_text())
    held = weights.load_net(run_copy / "student").variables["batch_stats"]
    statistics = sum(leaf.size for leaf in jax.tree.leaves(held))
    assert (described["device"], described["dtype"]) == (jax.local_devices()[0].device_kind, "float32")
    for role in ("teacher", "student"):
        found = described[role]
        assert (found["arch"], found["parameters"]) == (summary[role]["arch"], summary[role]["parameters"])
        assert found["bytes"] == 4 * (found["parameters"] + statistics)
        assert set(found["latency_ms"]) == {"1", "256"} and min(found["latency_ms"].values()) > 0
    assert "ms, batch 256" in said[0] and max(map(len, said[0].splitlines())) <= 80


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        ({"arch": "wrn10_2"}, "wrn10_2 has 303,418 parameters"),
        ({"arch": "none_such:Net"}, "none_such"),
        ({"arch": "cudfkd_jax.runs.api:_Function"}, "_Function wants arguments"),
    ],
)
def test_a_teacher_that_cannot_be_built_again_is_left_out(run_copy, teacher, text):
    summary = json.loads((run_copy / "summary.json").read_text())
    summary["teacher"] |= teacher
    (run_copy / "summary.json").write_text(json.dumps(summary))
    said: list[str] = []
    export.export(run_copy, "orbax", said.append)
    assert said[0].startswith("measured without the teacher: ") and text in said[0]
    described = json.loads((run_copy / "export/orbax/student.json").read_text())["cost"]
    assert set(described) == {"device", "dtype", "student"}


def test_an_export_that_another_machine_measured_or_none_is_the_same(run_copy):
    _export(run_copy, "orbax")
    path = run_copy / "export/orbax/student.json"
    described = json.loads(path.read_text())
    for other in (described | {"cost": {"device": "other"}}, {k: v for k, v in described.items() if k != "cost"}):
        path.write_text(json.dumps(other))
        assert _export(run_copy, "orbax").startswith("already there")


# Refusals


def test_exporting_again_reports_the_existing_export(run_copy, format_):
    _export(run_copy, format_)
    before = snapshot(run_copy)
    assert _export(run_copy, format_) == f"already there: {run_copy / 'export' / format_ / FILES[format_]}"
    assert snapshot(run_copy) == before


def test_an_export_of_a_run_that_recorded_no_classes_is_the_same(run_copy):
    summary = json.loads((run_copy / "summary.json").read_text())
    del summary["classes"]
    (run_copy / "summary.json").write_text(json.dumps(summary))
    _export(run_copy, "orbax")
    assert "classes" not in json.loads((run_copy / "export/orbax/student.json").read_text())
    assert _export(run_copy, "orbax").startswith("already there")


def test_the_same_written_by_other_versions_is_the_same(run_copy):
    _export(run_copy, "orbax")
    path = run_copy / "export/orbax/student.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"versions": {"export": {"jax": "0.0.1"}}}))
    assert _export(run_copy, "orbax").startswith("already there")


# Each format with each damage; but one for StableHLO, which takes seconds to trace.
DAMAGES = ("another student", "flipped byte", "no description", "noise", "empty folder")
DAMAGED = [(name, damage) for name in FORMATS if name != "stablehlo" for damage in DAMAGES]


@pytest.mark.parametrize(("format_", "damage"), [*DAMAGED, ("stablehlo", "flipped byte")], indirect=["format_"])
def test_something_else_is_never_overwritten(run_copy, format_, damage):
    _export(run_copy, format_)
    place = run_copy / "export" / format_
    if damage == "another student":
        student = weights.load_net(run_copy / "student")
        changed = jax.tree.map(lambda leaf: leaf + 1, student.variables)
        weights.save_net(run_copy / "student", student.net, changed)
    elif damage == "flipped byte":
        files = [file for file in place.rglob("*") if file.is_file() and file.name != "student.json"]
        largest = max(files, key=lambda file: file.stat().st_size)
        flip_byte(largest, largest.stat().st_size // 2)
    elif damage == "no description":
        (place / "student.json").unlink()
    elif damage == "noise":
        (place / "student.json").write_text("[]")
    else:
        shutil.rmtree(place)
        place.mkdir()
    assert "holds something else than this student; move it away" in _refused(run_copy, format_)
    place.rename(run_copy / "moved")
    assert _export(run_copy, format_).startswith("written")


def test_an_export_that_does_not_read_back_leaves_nothing(run_copy, monkeypatch):
    def write(path, trained):
        changed = jax.tree.map(lambda leaf: leaf + 1, trained.variables)
        orbax.write(path, trained._replace(variables=changed))

    orbax = FORMATS["orbax"]
    monkeypatch.setitem(FORMATS, "orbax", orbax._replace(write=write))
    with pytest.raises(RunFailedError, match="does not read back as the student"):
        export.export(run_copy, "orbax")
    assert list((run_copy / "export").iterdir()) == []


def test_what_an_interrupted_export_left_is_cleared(run_copy):
    left = run_copy / "export" / ".orbax.tmp"
    left.mkdir(parents=True)
    (left / "student").write_text("half")
    assert _export(run_copy, "orbax").startswith("written")
    assert not left.exists()


def test_an_interrupt_leaves_nothing(run_copy, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, "orbax", Format("", "", "orbax-checkpoint", interrupted, interrupted))
    with pytest.raises(KeyboardInterrupt):
        export.export(run_copy, "orbax")
    assert list((run_copy / "export").iterdir()) == []


@pytest.mark.parametrize("missing", ["summary.json", "student/net.json"])
def test_a_run_without_a_finished_student_is_refused(run_copy, missing):
    (run_copy / missing).unlink()
    assert "holds no finished student; run --stage=all" in _refused(run_copy, "orbax")


@pytest.mark.parametrize("name", ["summary.json", "config.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_damaged_run_is_refused(run_copy, name, content):
    (run_copy / name).write_text(content)
    assert "is damaged" in _refused(run_copy, "orbax")


@pytest.mark.parametrize(("format_", "package"), PACKAGES.items())
def test_a_missing_package_is_named_and_nothing_is_written(run_copy, format_, package, monkeypatch):
    def version(name, real=metadata.version):
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'cudfkd_jax[{format_}]'" in _refused(run_copy, format_)


# On the command line


def test_the_command_needs_no_configuration(run_copy, capsys):
    arguments = ["--stage=export", f"--workdir={run_copy}", "--format=orbax"]
    assert main.main(arguments) == 0
    assert main.main(arguments) == 0
    place = run_copy / "export/orbax/student"
    *table, written, there = capsys.readouterr().out.splitlines()
    assert (written, there) == (f"written: {place}", f"already there: {place}")
    assert [line.split(" ")[0] for line in table] == ["", "teacher", "student", "student:", "on"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--stage=export"], "--stage=export needs a --format; valid: orbax, safetensors, torch, stablehlo"),
        (["--stage=export", "--format=onnx"], "unknown --format 'onnx'; valid: orbax, safetensors, torch"),
        (["--stage=export", "--format=safetensor"], "did you mean 'safetensors'?"),
        (["--stage=evaluate", "--format=torch"], "--format=torch is for --stage=export"),
        (["--stage=export", "--format=orbax", "--config.seed=1"], "unexpected argument '--config.seed=1'"),
    ],
)
def test_arguments_that_are_wrong(run_copy, capsys, arguments, text):
    before = snapshot(run_copy)
    assert main.main([*arguments, f"--workdir={run_copy}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert text in err
    assert snapshot(run_copy) == before


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main.main(["--stage=export", "--format=torch", f"--workdir={tmp_path / 'none'}"]) == 2
    assert "holds no finished student; run --stage=all" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["safetensors", "orbax"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_export_is_a_teacher_for_the_next_run(run_copy, tiny_config, tmp_path, kind, whole):
    """Checks that it brings its normalisation, and is refused for an architecture that it does not have."""
    if kind in PACKAGES:
        pytest.importorskip(PACKAGES[kind])
    _export(run_copy, kind)
    tiny_config.data.update(mean=(0.9,), std=(0.9,))
    folder = run_copy / "export" / kind
    tiny_config.teacher.update(arch="wrn10_1", checkpoint=str(folder if whole else folder / FILES[kind]))
    teacher = find_teacher(teacher_source(tiny_config), tmp_path / "next")
    assert teacher.sha256 == weights.load_net(run_copy / "student").sha256
    assert (teacher.net.mean, teacher.net.std) == ((0.3,), (0.3,))
    tiny_config.teacher.arch = "wrn16_1"
    with pytest.raises(UserError, match="has arch wrn10_1 and the configuration wrn16_1"):
        find_teacher(teacher_source(tiny_config), tmp_path / "next")


def test_a_workdir_whose_teacher_was_imported_is_a_teacher(finished_run, run_copy, tiny_config, tmp_path):
    shutil.rmtree(run_copy / "teacher")
    settings = json.loads((run_copy / "config.json").read_text())
    settings["config"]["teacher.checkpoint"] = str(finished_run)
    (run_copy / "config.json").write_text(json.dumps(settings))
    tiny_config.teacher.checkpoint = str(run_copy)
    teacher = find_teacher(teacher_source(tiny_config), tmp_path / "next")
    assert teacher.sha256 == weights.load_net(finished_run / "teacher/net").sha256
