"""Tests of PyTorch weights: the same numbers in both directions, and one-line errors for invalid files."""

import argparse
import collections
import functools
import io
import json
import os
import pickle
import sys
import tarfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import torchvision_import
from helpers import snapshot
from PIL import Image

from cudfkd_jax import defaults, main
from cudfkd_jax.config.jobs import teacher_source
from cudfkd_jax.models import MODELS, build_classifier
from cudfkd_jax.runs import teacher
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import torch_files, torch_names

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
torch_models = pytest.importorskip("torch_peer.models")

SHARED = Path(__file__).parents[3] / "shared"  # real images and a real teacher, if available
MEAN, STD = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.2023, 0.1994, 0.2010])
# ResNet-18 and 34 of torchvision differ from its parts' ResNet-10 in the number of blocks alone.
ARCHS = [arch for arch in MODELS if arch not in ("resnet18_imagenet", "resnet34_imagenet")]
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)


def _cifar(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns evenly spaced test images, which are sorted by class, uint8 [N, 32, 32, 3], and their labels."""
    with np.load(SHARED / "data" / "cifar10_jpeg.npz", allow_pickle=False) as archive:
        data, lengths, labels = (archive[f"test_{name}"] for name in ("bytes", "lengths", "labels"))
    ends, step = np.cumsum(lengths), len(labels) // count
    files = [data[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)][::step]
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]), labels[::step]


@functools.cache
def _inputs() -> np.ndarray:
    """Returns normalised images, float32 [4, 32, 32, 3]."""
    if (SHARED / "data").exists():
        images = _cifar(4)[0]
    else:
        images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    return (images.astype(np.float32) / 255 - MEAN) / STD


@functools.cache
def _expected(arch: str):
    module = build_classifier(arch, 10)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), IMAGE)


def _random_variables(arch: str, seed: int = 0):
    """Returns weights at the scale of an initialisation, with random BatchNorm statistics."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            value = random.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        elif name in ("var", "scale"):
            value = random.uniform(0.5, 1.5, leaf.shape)
        else:
            value = random.normal(0, 0.2, leaf.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, _expected(arch))


def _state_dict(arch: str = "wrn10_1", num_classes: int = 10) -> dict[str, "torch.Tensor"]:
    return dict(torch_models.randomise(torch_models.build(arch, num_classes), 1).state_dict())


def _save(path: Path, content) -> Path:
    if path.suffix == ".safetensors":
        safetensors.save_file({name: value.contiguous() for name, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def _read(path: Path, arch: str = "wrn10_1"):
    return torch_names.to_variables(torch_files.read_state_dict(path), _expected(arch), path)


def _refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def _read_refused(path: Path) -> str:
    return _refused(torch_files.read_state_dict, path)


def _assert_equal(a, b):
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), a, b)


# The same network


@pytest.mark.parametrize("arch", ARCHS)
def test_there_and_back_is_the_same_bits(arch, tmp_path):
    variables = _random_variables(arch)
    for name in ("net.pth", "net.safetensors"):
        torch_files.write_state_dict(tmp_path / name, torch_names.to_state_dict(variables))
        _assert_equal(_read(tmp_path / name, arch), variables)


@pytest.mark.parametrize("arch", ARCHS)
def test_pytorch_computes_the_same_in_both_directions(arch, tmp_path):
    net, module = torch_models.randomise(torch_models.build(arch, 10), 1), build_classifier(arch, 10)
    apply = jax.jit(lambda variables, x: module.apply(variables, x, train=False))

    def assert_same_logits(variables):
        ours = np.asarray(apply(variables, _inputs()))
        with torch.no_grad():
            theirs = net(torch.from_numpy(_inputs().transpose(0, 3, 1, 2))).numpy()
        assert np.ptp(theirs) > 0
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()

    assert_same_logits(_read(_save(tmp_path / "theirs.pth", net.state_dict()), arch))
    variables = _random_variables(arch)
    torch_files.write_state_dict(tmp_path / "ours.pth", torch_names.to_state_dict(variables))
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert ours.keys() == net.state_dict().keys()
    assert {name: value.dtype for name, value in ours.items()} == {
        name: value.dtype for name, value in net.state_dict().items()
    }
    net.load_state_dict(ours, strict=True)
    assert_same_logits(variables)


def test_pytorch_loads_safetensors_strictly(tmp_path):
    torch_files.write_state_dict(
        tmp_path / "net.safetensors", torch_names.to_state_dict(_random_variables("wrn16_1"))
    )
    safetensors.load_model(torch_models.build("wrn16_1", 10), tmp_path / "net.safetensors", strict=True)


@pytest.mark.long
@pytest.mark.skipif(not (SHARED / "teachers").exists(), reason="the teacher is not available")
def test_a_real_teacher_has_the_accuracy_that_it_came_with():
    """On a fifth of the images: within two points, more than twice the deviation of such a sample."""
    path = SHARED / "teachers" / "cifar10_wrn16_2.pth"
    known = json.loads(path.with_suffix(".json").read_text())
    variables, module = _read(path, known["arch"]), build_classifier(known["arch"], 10)
    apply = jax.jit(lambda x: module.apply(variables, (x / 255.0 - MEAN) / STD, train=False).argmax(1))
    images, labels = _cifar(2_000)
    right = sum((apply(images[i : i + 500]) == labels[i : i + 500]).sum() for i in range(0, 2_000, 500))
    assert right / 20 == pytest.approx(known["acc1"], abs=2)


@pytest.mark.parametrize(("size", "warned"), [(32, False), (64, False), (96, True)])
def test_vgg_is_not_repdistillers_above_64_pixels(size, warned, tmp_path):
    """RepDistiller pools after the fourth block at 64 pixels alone, and the test says where that matters."""
    config, said = defaults.with_arguments("vgg8", "wrn10_1", {}), []
    config.data.image_shape = (size, size, 3)
    net = torch_models.randomise(torch_models.build("vgg8", 10), 1)
    config.teacher.checkpoint = str(_save(tmp_path / "net.pth", net.state_dict()))
    found = teacher.find_teacher(teacher_source(config), tmp_path / "run", said.append)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    ours = build_classifier("vgg8", 10).apply(found.variables, images, train=False)
    with torch.no_grad():
        theirs = net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    assert (np.abs(ours - theirs).max() > 1e-3 * np.abs(theirs).max()) == warned
    warning = "warning: vgg8 pools images 96 high after its fourth block, and RepDistiller's VGG only those 64"
    assert [line.split(":")[0] for line in said] == ["teacher"] * warned
    assert all(warning in line for line in said)


# Formats of files


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "acc1": 87.0},
        lambda s: {"model": s},
        lambda s: {"net": s, "acc": 1},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{name}": value for name, value in s.items()},
        lambda s: {f"_orig_mod.module.{name}": value for name, value in s.items()},
        lambda s: {"state_dict": {f"model.{name}": value for name, value in s.items()}, "hyper_parameters": {}},
        *(lambda s, key=key: {key: s, "optimizer": {"state": {}}} for key in torch_files.WRAPPERS),
        *(
            lambda s, prefix=prefix: {f"{prefix}.{name}": value for name, value in s.items()}
            for prefix in ("net", "network", "backbone", "encoder", "1", "student.trunk")
        ),
        lambda s: {**s, "criterion.weight": torch.ones(10), "total_ops": torch.ones(1, dtype=torch.float64)},
        lambda s: {**s, "val_acc.correct": torch.tensor(3), "optimizer": {"lr": 0.1}, "epoch": 3},
        lambda s: {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in s.items()}},
        lambda s: {
            "state_dict": s,
            "args": argparse.Namespace(lr=0.1),
            "best": np.float64(93.1),
            "n": np.int64(2),
        },
        lambda s: {name: value for name, value in s.items() if "num_batches" not in name},
        lambda s: {name: torch.nn.Parameter(value) for name, value in s.items() if value.ndim},
        lambda s: collections.OrderedDict(reversed(s.items())),
    ],
)
def test_wrappers_and_prefixes_are_taken_off(wrap, tmp_path):
    state_dict = _state_dict()
    bare = _read(_save(tmp_path / "bare.pth", state_dict))
    _assert_equal(_read(_save(tmp_path / "wrapped.pth.tar", wrap(state_dict))), bare)


def test_what_lies_beside_the_weights_is_named(tmp_path):
    beside = {"criterion.weight": torch.ones(10), "epoch": 3, "optimizer": {"lr": 0.1}}
    read = torch_files.read_weights(_save(tmp_path / "net.pth", _state_dict() | beside))
    assert read.notes == (
        "left out beside the weights: epoch, optimizer",
        "left out beside the weights: criterion.weight",
    )


def test_of_several_state_dicts_one_is_chosen_and_named(tmp_path):
    plain, averaged = _state_dict(), {name: value + 1 for name, value in _state_dict().items()}
    path = _save(tmp_path / "both.pth", {"model": plain, "ema": averaged})
    read = torch_files.read_weights(path)
    assert read.notes == ("read 'model' of both.pth, which also has ema (--config.teacher.checkpoint_key)",)
    np.testing.assert_array_equal(read.state_dict["fc.bias"], plain["fc.bias"])
    chosen = torch_files.read_weights(path, "ema").state_dict
    np.testing.assert_array_equal(chosen["fc.bias"], averaged["fc.bias"])
    text = _refused(torch_files.read_weights, path, "emma")
    assert text == "unknown teacher.checkpoint_key 'emma' (did you mean 'ema'?); valid: model, ema"


@pytest.mark.parametrize("scale", [1, 255])
def test_a_layer_that_normalises_is_compared_with_the_configuration(scale, tmp_path):
    named = {f"1.{name}": value for name, value in _state_dict().items()}
    buffers = {"0.mean": torch.tensor(MEAN * scale).view(1, 3, 1, 1), "0.std": torch.tensor(STD * scale)}
    config = defaults.with_arguments("wrn10_1", "wrn10_1", {})
    config.teacher.checkpoint = str(_save(tmp_path / "net.pth", named | buffers))
    found = teacher.find_teacher(teacher_source(config), tmp_path / "run")
    _assert_equal(found.variables, _read(_save(tmp_path / "bare.pth", _state_dict())))
    config.data.mean = (0.5, 0.5, 0.5)
    text = _refused(teacher.find_teacher, teacher_source(config), tmp_path / "run")
    assert "data.mean is (0.5, 0.5, 0.5); set --config.data.mean" in text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a pointer of Git LFS, not the file"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is an HTML page, not weights"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_lies_in_the_place_of_weights_is_named(content, text, suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    assert text in _read_refused(path)


def test_the_tar_form_is_named(tmp_path):
    path = tmp_path / "net.pth"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "is in the tar form of PyTorch before 0.1.10" in _read_refused(path)


def test_torchvisions_names_are_known(tmp_path):
    state_dict = _state_dict("resnet18")
    renamed = {
        name.replace("shortcut", "downsample").replace("linear", "fc"): value for name, value in state_dict.items()
    }
    assert renamed.keys() != state_dict.keys()
    path = _save(tmp_path / "torchvision.pth", renamed)
    _assert_equal(_read(path, "resnet18"), _read(_save(tmp_path / "release.pth", state_dict), "resnet18"))
    assert torch_names.infer(torch_files.read_state_dict(path)) == ("resnet18", 10)


def test_the_stem_tells_torchvisions_networks(tmp_path):
    """Also under the release's names; the configuration's other stem is refused, with the right name."""
    state_dict = _state_dict("resnet18_imagenet")
    renamed = {
        name.replace("downsample", "shortcut").replace("fc", "linear"): value for name, value in state_dict.items()
    }
    path = _save(tmp_path / "renamed.pth", renamed)
    bare = _save(tmp_path / "bare.pth", state_dict)
    _assert_equal(_read(path, "resnet18_imagenet"), _read(bare, "resnet18_imagenet"))
    for file in (path, bare):
        assert torch_names.infer(torch_files.read_state_dict(file)) == ("resnet18_imagenet", 10)
    other = _save(tmp_path / "other.pth", _state_dict("resnet18"))
    for file, asked, there in ((path, "resnet18", "resnet18_imagenet"), (other, "resnet18_imagenet", "resnet18")):
        config = defaults.with_arguments(asked, "wrn10_1", {})
        config.teacher.checkpoint = str(file)
        text = _refused(teacher.find_teacher, teacher_source(config), tmp_path / "run")
        assert f"has arch {there} and the configuration {asked}; name another" in text
        assert text.endswith("or set --config.teacher.arch")


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", (224, 224)), ("resnet34", (65, 50)), ("resnet50", (96, 96))]
)
def test_torchvision_computes_the_same_and_loads_what_is_exported(name, size, tmp_path):
    models = torchvision_import.import_or_skip().models
    net, arch = torch_models.randomise(getattr(models, name)(num_classes=10), 1), f"{name}_imagenet"
    path = _save(tmp_path / "theirs.pth", net.state_dict())
    assert torch_names.infer(torch_files.read_state_dict(path)) == (arch, 10)
    variables, module = _read(path, arch), build_classifier(arch, 10)
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    ours = np.asarray(jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images))
    with torch.no_grad():
        theirs = net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    torch_files.write_state_dict(tmp_path / "ours.pth", torch_names.to_state_dict(variables))
    fresh = getattr(models, name)(num_classes=10)
    fresh.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True), strict=True)


def test_torchvision_loads_the_small_student(tmp_path):
    resnet = torchvision_import.import_or_skip().models.resnet
    torch_files.write_state_dict(
        tmp_path / "ours.pth", torch_names.to_state_dict(_random_variables("resnet10_imagenet"))
    )
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    net.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True), strict=True)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_are_cast(dtype, suffix, tmp_path):
    state_dict = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in _state_dict().items()
    }
    found = torch_files.read_state_dict(_save(tmp_path / f"net{suffix}", state_dict))
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, state_dict[name].to(torch.float32).numpy())


def test_weights_saved_on_a_gpu_and_out_of_order_in_memory_are_read(tmp_path, monkeypatch):
    state_dict = _state_dict()
    bare = _read(_save(tmp_path / "cpu.pth", state_dict))
    for name, value in state_dict.items():
        if value.ndim == 4:
            state_dict[name] = value.to(memory_format=torch.channels_last)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
        path = _save(tmp_path / "gpu.pth", state_dict)
    assert b"cuda:1" in path.read_bytes()
    _assert_equal(_read(path), bare)


@pytest.mark.parametrize("arch", [*MODELS, "wrn10_3"])
def test_the_architecture_is_inferred(arch):
    state_dict = {name: value.numpy() for name, value in torch_models.build(arch, 7, 1).state_dict().items()}
    state_dict = {name: value for name, value in state_dict.items() if "num_batches" not in name}
    assert torch_names.infer(state_dict) == (arch, 7)
    assert torch_names.infer({**state_dict, "more": np.zeros(1)}) is None
    state_dict.popitem()
    assert torch_names.infer(state_dict) is None


# Invalid files


def test_every_difference_is_listed_with_the_nearest_name(tmp_path):
    state_dict = {name: value.numpy() for name, value in _state_dict().items() if value.ndim}
    state_dict["block1.layer.0.conv1.wieght"] = state_dict.pop("block1.layer.0.conv1.weight")
    state_dict["fc.weight"] = state_dict["fc.weight"][:7]
    text = _refused(torch_names.to_variables, state_dict, _expected("wrn10_1"), tmp_path / "net.pth")
    assert "missing: block1.layer.0.conv1.weight (nearest: block1.layer.0.conv1.wieght)" in text
    assert "unexpected: block1.layer.0.conv1.wieght (nearest: block1.layer.0.conv1.weight)" in text
    assert "of another shape: fc.weight is [7, 64] and should be [10, 64]" in text
    assert "net.pth" in text


def test_a_long_list_of_differences_is_cut(tmp_path):
    text = _refused(torch_names.to_variables, {"a": np.zeros(1)}, _expected("resnet50"), tmp_path)
    assert "and 264 more" in text
    assert len(text) < 600


@pytest.mark.parametrize(
    ("arch", "num_classes", "text"),
    [
        ("resnet18", 10, "has arch resnet18 and the configuration wrn10_1"),
        ("wrn16_2", 10, "set --config.teacher.arch"),
        ("wrn10_1", 100, "has num_classes 100 and the configuration 10"),
    ],
)
def test_a_teacher_of_another_kind_is_named(arch, num_classes, text, tmp_path):
    config = tiny.get_config()
    path = _save(tmp_path / "teacher.pth", _state_dict(arch, num_classes))
    config.teacher.update(arch="wrn10_1", checkpoint=str(path))
    assert text in _refused(teacher.find_teacher, teacher_source(config), tmp_path / "run")


def test_a_teacher_for_other_channels_is_refused(tmp_path):
    config = tiny.get_config()  # for grey images
    config.teacher.update(arch="wrn10_1", checkpoint=str(_save(tmp_path / "teacher.pth", _state_dict())))
    text = _refused(teacher.find_teacher, teacher_source(config), tmp_path / "run")
    assert "conv1.weight is [16, 3, 3, 3] and should be [16, 1, 3, 3]" in text


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(suffix, value, tmp_path):
    state_dict = _state_dict()
    state_dict["bn1.running_var"][3] = value
    path = _save(tmp_path / f"net{suffix}", state_dict)
    assert "bn1.running_var holds NaN or infinite values" in _read_refused(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_or_empty_file_is_refused(suffix, part, tmp_path):
    path = _save(tmp_path / f"net{suffix}", _state_dict())
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "damaged or no" in _read_refused(path)


def test_an_archive_with_a_name_that_is_no_text_is_refused(tmp_path):
    path = _save(tmp_path / "net.pth", _state_dict())
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last entry of the archive's directory
    content[entry + 9] |= 0x08  # its name is declared UTF-8,
    content[entry + 46] = 0xFF  # which does not have this byte
    path.write_bytes(content)
    assert "damaged or no" in _read_refused(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, "holds no weights"),
        ({"epoch": 1, "optimizer": {}}, "holds no state dict but a dict with epoch, optimizer;"),
        ([1, 2], "holds no state dict but a list;"),
        (torch.zeros(3), "holds no state dict but a Tensor;"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "a is no array of real numbers (torch.complex64"),
        ({"a": torch.zeros(3, dtype=torch.int8)}, "a is no array of real numbers (torch.int8"),
        ({"a": torch.zeros(3).to_sparse()}, "a is no array of real numbers (torch.float32, torch.sparse_coo"),
        (
            {"a": torch.zeros(3, device="meta")},
            "a is no array of real numbers (torch.float32, torch.strided, meta",
        ),
        ({"a": torch.zeros(1).expand(2**40)}, "a repeats values instead of holding them"),
        (torch.nn.Linear(2, 2), "holds torch.nn.modules.linear.Linear beside weights"),
    ],
)
def test_other_contents_are_refused(content, text, tmp_path):
    assert text in _refused(torch_files.read_state_dict, _save(tmp_path / "net.pth", content))


def test_integers_in_safetensors_are_refused(tmp_path):
    path = _save(tmp_path / "net.safetensors", {"a": torch.zeros(3, dtype=torch.int8)})
    assert "a is no array of real numbers (int8)" in _read_refused(path)


@pytest.mark.parametrize("end", [4, 2**42, 2**63])
def test_a_safetensors_header_that_declares_a_huge_array_is_refused(end, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, end]}}).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "damaged or no safetensors file" in _read_refused(path)
    path.write_bytes(b"\xff" * 8 + header)
    assert "damaged or no safetensors file" in _read_refused(path)


def test_what_holds_a_program_is_refused_with_the_way_to_convert_it(tmp_path):
    path = tmp_path / "net.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    remedy = "torch.save(torch.jit.load('net.pt').state_dict(), 'weights.pth')"
    assert f"is a TorchScript file; write its weights with {remedy}" in _read_refused(path)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x08\x12\x07pytorch")
    assert "is an ONNX file" in _read_refused(path)
    config = tiny.get_config()
    config.teacher.checkpoint = str(path)
    assert "save the network's state_dict() with torch.save" in _refused(
        teacher.find_teacher, teacher_source(config), tmp_path / "run"
    )


class _RunsCode:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _write_zip(path, content):
    torch.save(content, path)


def _write_legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _write_pickle(path, content, protocol):
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize(
    "write",
    [
        _write_zip,
        _write_legacy,
        *(functools.partial(_write_pickle, protocol=protocol) for protocol in (0, 2, 4)),
    ],
)
@pytest.mark.parametrize("through_the_command_line", [False, True])
def test_a_file_that_would_run_code_is_refused_and_does_not(write, through_the_command_line, tmp_path, capsys):
    path, marker = tmp_path / "net.pth", tmp_path / "the code ran"
    write(path, {**_state_dict(), "fc.weight": _RunsCode(marker)})
    if write in (_write_zip, _write_legacy):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    marker.rmdir()  # it runs if permitted
    refuse = functools.partial(_main_refused, capsys=capsys) if through_the_command_line else _read_refused
    text = refuse(path)
    assert not marker.exists()
    assert "save the network's state_dict() with torch.save" in text
    if write is _write_zip:
        assert "holds posix.mkdir beside weights, and loading that could run code, so it was refused" in text


def _main_refused(path: Path, capsys) -> str:
    """Returns the command line's error about a teacher; checks that nothing was written."""
    before = snapshot(path.parent)
    arguments = [
        f"--config={Path(tiny.__file__)}",
        f"--workdir={path.parent / 'run'}",
        f"--config.teacher.checkpoint={path}",
    ]
    assert main.main(arguments) == 2
    assert snapshot(path.parent) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("cudfkd: error: ") and err.count("\n") == 1
    return err


def test_another_network_on_the_command_line(tmp_path, capsys):
    path = _save(tmp_path / "net.safetensors", _state_dict("vgg8"))
    assert f"has arch vgg8 and the configuration {tiny.NET}; name another" in _main_refused(path, capsys)


@pytest.mark.parametrize("name", ["net.pth", "net"])
def test_a_missing_file_on_the_command_line(name, tmp_path, capsys):
    assert "nor a file of weights (.pth, .pt, .safetensors, .msgpack)" in _main_refused(tmp_path / name, capsys)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_without_torch_its_package_is_named(suffix, tmp_path, monkeypatch):
    path = _save(tmp_path / f"net{suffix}", _state_dict())
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (torch_files.read_state_dict, functools.partial(torch_files.write_state_dict, state_dict={})):
        assert "pip install 'cudfkd_jax[torch]'" in _refused(call, path)


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    path = _save(tmp_path / "net.safetensors", _state_dict())
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert _read(path)["params"]
    torch_files.write_state_dict(path, torch_names.to_state_dict(_read(path)))


def test_reading_leaves_the_file_alone(tmp_path):
    _save(tmp_path / "net.pth", _state_dict())
    before = snapshot(tmp_path)
    _read(tmp_path / "net.pth")
    assert snapshot(tmp_path) == before
