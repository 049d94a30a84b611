"""Tests of image folders, Tiny ImageNet's layout, the cache of decoded images, and TensorFlow Datasets."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cudfkd_jax import data
from cudfkd_jax.config import build, loading
from cudfkd_jax.data import tfds as tfds_source
from cudfkd_jax.runtime.errors import UserError

CLASSES = ("ant", "bee", "cow")
TFDS_CLASSES = tuple(f"class_{i}" for i in range(10))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Provides a separate cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cudfkd_jax" / "images"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def load(directory, splits=("train", "test"), source="folder", **keywords):
    settings = {"name": "mine", "image_shape": (6, 5, 3), "num_classes": 3, **keywords}
    return data.load(source, directory=str(directory), splits=splits, **settings)


def write_image(path, seed, size=(5, 6), mode="RGB"):
    """Writes random pixels without loss where the format allows; returns them, uint8 [H, W, C] or [H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = (3,) if mode == "RGB" else ()
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], *channels)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_tree(root, per_class=3, splits=("train", "test")):
    """Writes <split>/<class>/<i>.png; returns the pixels of each split, ordered by class and name."""
    return {
        split: np.stack(
            [
                write_image(root / split / name / f"{i:03d}.png", 10_000 * s + 1000 * c + i)
                for c, name in enumerate(CLASSES)
                for i in range(per_class)
            ]
        )
        for s, split in enumerate(splits)
    }


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))


# -------------------------------------------------------------------------------------------- folder


def test_folder(root):
    expected = write_tree(root)
    (root / "train" / "ant" / ".hidden.png").write_bytes(b"no image")
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / ".git").mkdir()
    dataset = load(root)
    assert dataset.classes == CLASSES
    for split in ("train", "test"):
        np.testing.assert_array_equal(dataset.splits[split].images, expected[split])
        np.testing.assert_array_equal(dataset.splits[split].labels, np.repeat(np.arange(3), 3))


def test_folder_more_images_than_one_task_decodes(root):
    expected = write_tree(root, per_class=200)
    np.testing.assert_array_equal(load(root, ("train",)).splits["train"].images, expected["train"])


def test_folder_suffixes_in_any_case_and_val_for_test(root):
    for c, name in enumerate(CLASSES):
        for i, suffix in enumerate((".jpg", ".JPEG", ".PnG")):
            write_image(root / "val" / name / f"{i}{suffix}", 10 * c + i)
    test = load(root, ("test",)).splits["test"]
    assert test.images.shape == (9, 6, 5, 3)
    # JPEG is lossy: compare with Pillow's own decoding.
    np.testing.assert_array_equal(test.images[1], np.asarray(Image.open(root / "val/ant/1.JPEG")))


def test_folder_converts_to_the_configured_channels(root):
    grey = write_image(root / "test" / "ant" / "0.png", 0, mode="L")
    colour = write_image(root / "test" / "bee" / "0.png", 1)
    as_colour = load(root, ("test",), num_classes=2).splits["test"].images
    np.testing.assert_array_equal(as_colour[0], np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(as_colour[1], colour)
    as_grey = load(root, ("test",), num_classes=2, image_shape=(6, 5, 1)).splits["test"].images
    np.testing.assert_array_equal(as_grey[0, ..., 0], grey)
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(as_grey[1, ..., 0] - luma).max() <= 1


def test_folder_test_split_alone_opens_no_training_file(root, monkeypatch):
    expected = write_tree(root)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"damaged")
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **k: opened.append(str(file)) or original(file, **k))
    np.testing.assert_array_equal(load(root, ("test",)).splits["test"].images, expected["test"])
    assert len(opened) == 9
    assert not [path for path in opened if "train" in Path(path).parts]


def test_folder_labels_of_the_test_split_follow_train(root):
    write_tree(root)
    (root / "test" / "bee").rename(root / "test" / "zebra")
    for splits in (("test",), ("train", "test")):
        with pytest.raises(UserError, match="bee, zebra in one alone"):
            load(root, splits)


def tiny_imagenet(root):
    """Writes Tiny ImageNet's layout; returns the pixels of val in the order of its annotations."""
    wnids = ("n01", "n02", "n03")
    for c, wnid in enumerate(wnids):
        write_image(root / "train" / wnid / "images" / f"{wnid}_0.png", c)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    pixels, lines = [], []
    for i, label in enumerate((2, 0, 1, 0)):
        pixels.append(write_image(root / "val" / "images" / f"val_{i}.png", 100 + i))
        lines.append(f"val_{i}.png\t{wnids[label]}\t0\t0\t4\t4\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(root / "test" / "images" / "test_0.png", 500)  # the real test split has no labels
    (root / "wnids.txt").write_text("n03\nn01\nn02\n")
    return np.stack(pixels)


def test_tiny_imagenet(root):
    expected = tiny_imagenet(root)
    dataset = load(root)
    assert dataset.classes == ("n01", "n02", "n03")
    np.testing.assert_array_equal(dataset.splits["train"].labels, [0, 1, 2])
    np.testing.assert_array_equal(dataset.splits["test"].images, expected)
    np.testing.assert_array_equal(dataset.splits["test"].labels, [2, 0, 1, 0])


@pytest.mark.parametrize("wnids", [True, False])
def test_tiny_imagenet_without_its_training_images(root, wnids):
    tiny_imagenet(root)
    (root / "train").rename(root / "elsewhere")
    if not wnids:
        (root / "wnids.txt").unlink()
    dataset = load(root, ("test",))
    assert dataset.classes == ("n01", "n02", "n03")
    np.testing.assert_array_equal(dataset.splits["test"].labels, [2, 0, 1, 0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../../secret.png\tn01\n", "names '../../secret.png', which is not in"),
        ("val_0.png\tn99\n", "class 'n99' of val_0.png, unknown"),
        ("val_0.png n01\n", "expected 'file<TAB>class"),
    ],
)
def test_tiny_imagenet_wrong_annotations(root, line, message):
    tiny_imagenet(root)
    write_image(root.parent / "secret.png", 0)
    (root / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(UserError, match=message):
        load(root, ("test",))


def test_folder_without_images_or_classes(root):
    with pytest.raises(UserError, match=r"no folder .*test: expected train/<class>"):
        load(root)
    (root / "train").mkdir()
    with pytest.raises(UserError, match="0 class folders"):
        load(root)
    (root / "train" / "ant").mkdir()
    with pytest.raises(UserError, match="1 class folders"):
        load(root)
    for name in CLASSES:
        (root / "train" / name).mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"no images in .*ant"):
        load(root)


def test_folder_with_another_number_of_classes_is_refused_before_decoding(root, monkeypatch):
    write_tree(root)
    forbid_decoding(monkeypatch)
    with pytest.raises(UserError, match=r"3 classes.*num_classes is 10.*--config\.data\.num_classes=3"):
        load(root, num_classes=10)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width, height):
    """Returns a PNG of a few bytes that declares this size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(64))) + png_chunk(b"IEND", b"")


def encoded(kind):
    file = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (6, 5, 3)).astype(np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read the image .*bad.png"),
        (b"GIF89a", "cannot read the image .*bad.png"),
        (encoded("PNG")[:-30], "cannot read the image .*bad.png"),
        (encoded("JPEG")[:-30], "cannot read the image .*bad.png"),
        (png_bomb(50_000, 50_000), "cannot read the image .*bad.png.*decompression bomb"),
        (png_bomb(10_000, 10_000), "cannot read the image .*bad.png.*decompression bomb"),
        (png_bomb(5000, 5000), r"bad.png has 5000x5000 pixels.*\(6, 5, 3\)"),
    ],
)
def test_folder_bad_image(root, content, message):
    write_tree(root)
    (root / "train" / "bee" / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(root)


def test_folder_image_of_more_than_8_bits(root):
    write_tree(root)
    Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(root / "train" / "bee" / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png has more than 8 bits"):
        load(root)


def test_folder_transposed_size_is_another_size(root):
    write_tree(root)
    write_image(root / "train" / "cow" / "turned.png", 0, size=(6, 5))
    with pytest.raises(UserError, match=r"turned\.png has 6x5 pixels"):
        load(root)


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".tif", ".TIFF", ".ppm", ".pgm"])
def test_folder_other_formats(root, suffix):
    mode = "L" if suffix == ".pgm" else "RGB"
    for c, name in enumerate(CLASSES):
        path = root / "test" / name / f"0{suffix}"
        path.parent.mkdir(parents=True)
        pixels = np.random.RandomState(c).randint(0, 256, (6, 5, 3)[: 2 + (mode == "RGB")]).astype(np.uint8)
        Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    images = load(root, ("test",)).splits["test"].images
    np.testing.assert_array_equal(images[2], pixels if mode == "RGB" else np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["tif", "webp"])
def test_folder_image_of_several_pages(root, suffix):
    write_tree(root)
    pages = [Image.new("RGB", (5, 6), (level, 0, 0)) for level in (10, 200)]
    pages[0].save(root / "train" / "bee" / f"pages.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=rf"pages\.{suffix} has several pages or frames"):
        load(root)


def test_folder_what_is_not_read_is_counted_and_named_in_one_line(root):
    expected = write_tree(root)
    assert load(root).notes == ()
    (root / "train" / "ant" / ".DS_Store").write_text("hidden")
    for name in ("a.gif", "b.gif", "c.gif", "line\nbreak.gif"):
        (root / "train" / "ant" / name).write_text("no image")
    write_image(root / "train" / "ant" / "more" / "0.png", 0)
    write_image(root / "test" / "stray.png", 0)
    dataset = load(root)
    np.testing.assert_array_equal(dataset.splits["train"].images, expected["train"])
    (note,) = dataset.notes
    assert "files of other types: 4 (train/ant/a.gif, train/ant/b.gif, train/ant/c.gif, ...)" in note
    assert "nested folders: 1 (train/ant/more)" in note
    assert "files beside the class folders: 1 (test/stray.png)" in note
    assert "DS_Store" not in note and note.isprintable()


def test_folder_both_layouts_at_once_are_told(root):
    write_tree(root)
    inner = write_image(root / "train" / "bee" / "images" / "0.png", 5)
    dataset = load(root)
    np.testing.assert_array_equal(dataset.splits["train"].images[3], inner)
    assert len(dataset.splits["train"].labels) == 7
    (note,) = dataset.notes
    named = "train/bee/000.png, train/bee/001.png, train/bee/002.png"
    assert f"images beside a folder images/: 3 ({named})" in note


def test_folder_of_nested_folders_alone_says_what_it_holds(root):
    for name in CLASSES:
        write_image(root / "test" / name / "left" / "0.png", 0)
    with pytest.raises(UserError, match=r"no images in .*ant: .*; nested folders: 1 \(test/ant/left\)$"):
        load(root, ("test",))


def test_tiny_imagenet_as_it_unpacks_is_read_whole(root):
    tiny_imagenet(root)
    assert load(root).notes == ()
    write_image(root / "val" / "images" / "more.png", 0)
    (note,) = load(root).notes
    assert "images without a line in val_annotations.txt: 1 (val/images/more.png)" in note


# --------------------------------------------------------------------------------------- order of classes


def write_classes(root, names):
    for c, name in enumerate(names):
        write_image(root / "test" / name / "0.png", c)


def test_class_order_is_asked_for_where_text_and_numbers_differ(root):
    write_classes(root, [str(number) for number in range(1, 11)])
    with pytest.raises(UserError) as caught:
        load(root, ("test",), num_classes=10)
    message = str(caught.value)
    assert "text (1, 10, 2, 3, 4, 5, 6, 7, 8, 9) and another as numbers (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)" in message
    assert "--config.data.class_order=text or natural" in message and "\n" not in message


@pytest.mark.parametrize(
    ("order", "classes"), [("text", ("a1", "a10", "a2", "a02b")), ("natural", ("a1", "a2", "a02b", "a10"))]
)
def test_class_order_numbers_the_labels_and_is_told(root, order, classes):
    classes = tuple(sorted(classes)) if order == "text" else classes
    write_classes(root, sorted(classes))
    dataset = load(root, ("test",), num_classes=4, class_order=order)
    assert dataset.classes == classes
    for image, label in zip(*dataset.splits["test"], strict=True):
        expected = np.asarray(Image.open(root / "test" / classes[label] / "0.png"))
        np.testing.assert_array_equal(image, expected)
    assert dataset.notes == (f"data: classes in the order {order}: {', '.join(classes)}",)


@pytest.mark.parametrize(
    "names", [("001", "002", "010"), ("ant", "bee", "cow"), ("n01443537", "n01629819", "n02056570")]
)
def test_class_order_is_not_asked_for_where_both_agree(root, names):
    write_classes(root, names)
    for order in ("auto", "text", "natural"):
        dataset = load(root, ("test",), class_order=order)
        assert (dataset.classes, dataset.notes) == (names, ())


def test_class_order_of_many_classes_is_shortened(root):
    write_classes(root, [str(number) for number in range(40)])
    (note,) = load(root, ("test",), num_classes=40, class_order="natural").notes
    assert note.endswith(": 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..., 39")


def test_tiny_imagenet_in_its_own_order(root):
    tiny_imagenet(root)
    dataset = load(root, class_order="wnids")
    assert dataset.classes == ("n03", "n01", "n02")
    np.testing.assert_array_equal(dataset.splits["test"].labels, [0, 1, 2, 1])
    np.testing.assert_array_equal(dataset.splits["train"].labels, [0, 1, 2])
    assert dataset.notes == ("data: classes in the order wnids: n03, n01, n02",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no wnids\.txt; set --config\.data\.class_order"),
        ("n01 n02", r"does not list every class folder once \(n03\)"),
        ("n01 n02 n03 n04", r"\(n04\)"),
        ("n01 n02 n03 n03", r"\(it repeats some\)"),
    ],
)
def test_tiny_imagenet_without_its_own_order(root, content, message):
    tiny_imagenet(root)
    (root / "wnids.txt").unlink() if content is None else (root / "wnids.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        load(root, class_order="wnids")


# ------------------------------------------------------------------------------------------ other sizes


def test_resize_scales_the_shorter_side_and_crops_the_centre(root):
    wide = write_image(root / "test" / "ant" / "0.png", 0, size=(40, 12))
    tall = write_image(root / "test" / "bee" / "0.png", 1, size=(10, 48))
    fits = write_image(root / "test" / "cow" / "0.png", 2)
    images = load(root, ("test",), resize=True).splits["test"].images
    # 40x12 to 20x6 and 10x48 to 5x24, by Pillow's antialiased filter, of which the middle remains.
    scaled = Image.fromarray(wide).resize((20, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images[0], np.asarray(scaled)[:, 8:13])
    scaled = Image.fromarray(tall).resize((5, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images[1], np.asarray(scaled)[9:15])
    np.testing.assert_array_equal(images[2], fits)
    # Antialiased: a pixel of 5x5 averages a region of noise, instead of picking four pixels of it.
    assert images[0].std() < 0.7 * wide.std()


def test_resize_is_asked_for(root):
    write_tree(root)
    write_image(root / "train" / "bee" / "large.png", 0, size=(10, 12))
    with pytest.raises(UserError, match=r"large\.png has 10x12 pixels.*--config\.data\.resize=true"):
        load(root)


def test_resize_has_a_cache_of_its_own(root, cache):
    write_tree(root)
    write_image(root / "test" / "bee" / "large.png", 0, size=(10, 12))
    resized = load(root, ("test",), resize=True).splits["test"].images
    with pytest.raises(UserError, match=r"large\.png has 10x12 pixels"):
        load(root, ("test",))
    (root / "test" / "bee" / "large.png").unlink()
    load(root, ("test",))
    assert len(list(cache.iterdir())) == 2
    assert len(load(root, ("test",), resize=True).splits["test"].images) == len(resized) - 1
    load(root, ("test",), resize=True, image_shape=(8, 8, 3))
    assert len(list(cache.iterdir())) == 3  # of another size


@pytest.mark.parametrize(
    ("size", "message"), [((10_000, 10_000), "decompression bomb"), ((1, 60_000), "too narrow")]
)
def test_resize_decodes_no_bomb(root, size, message):
    write_tree(root)
    content = png_bomb(*size)
    if message == "too narrow":
        file = io.BytesIO()
        Image.new("L", size).save(file, "PNG")
        content = file.getvalue()
    (root / "test" / "bee" / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read the image .*bad\.png.*{message}"):
        load(root, ("test",), resize=True, image_shape=(64, 64, 3))


# --------------------------------------------------------------------------------------------- cache


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_cache_serves_the_second_load_and_leaves_the_folder_alone(root, cache, monkeypatch):
    expected = write_tree(root)
    before = snapshot(root)
    load(root)
    assert len(list(cache.iterdir())) == 2
    forbid_decoding(monkeypatch)
    for split, images in expected.items():
        np.testing.assert_array_equal(load(root).splits[split].images, images)
    monkeypatch.chdir(root.parent)
    load("images")  # the same folder by another path
    assert snapshot(root) == before


def test_cache_follows_changed_files_and_does_not_pile_up(root, cache):
    write_tree(root)
    load(root)
    changed = root / "train" / "ant" / "001.png"
    pixels = write_image(changed, 77)
    os.utime(changed, ns=(1, 1))  # even if the clock is too coarse
    np.testing.assert_array_equal(load(root).splits["train"].images[1], pixels)
    changed.unlink()
    assert load(root).splits["train"].images.shape == (8, 6, 5, 3)
    assert len(list(cache.iterdir())) == 2


def test_cache_keeps_grey_and_colour_apart(root, cache):
    write_tree(root)
    load(root, ("test",))
    assert load(root, ("test",), image_shape=(6, 5, 1)).splits["test"].images.shape == (9, 6, 5, 1)
    assert len(list(cache.iterdir())) == 2


def flip_a_pixel(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flip_a_pixel, lambda content: content[:-10], lambda _: b""])
def test_damaged_cache_is_rebuilt(root, cache, damage):
    expected = write_tree(root, per_class=8)
    load(root, ("test",))
    [file] = cache.iterdir()
    intact = file.read_bytes()
    file.write_bytes(damage(intact))
    np.testing.assert_array_equal(load(root, ("test",)).splits["test"].images, expected["test"])
    assert len(file.read_bytes()) == len(intact)


def test_cache_that_cannot_be_written_is_no_error(root, tmp_path, monkeypatch):
    expected = write_tree(root)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_array_equal(load(root).splits["test"].images, expected["test"])


# ---------------------------------------------------------------------------------------------- tfds


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Prepares real TFDS data sets named cifar10 and svhn_cropped from PNG bytes, without TensorFlow."""
    import tensorflow_datasets as tfds

    version_of_svhn = tfds.builder_cls("svhn_cropped").VERSION
    # Unregistered, so that they do not hide the real ones.
    with tfds.core.registered.skip_registration():

        class Cifar10(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("3.0.2")

            def _info(self):
                features = {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(names=TFDS_CLASSES),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(30), "test": self._generate_examples(12)}

            def _generate_examples(self, count):
                for i in range(count):
                    file = io.BytesIO()
                    Image.fromarray(tfds_pixels(i)).save(file, "PNG")
                    file.seek(0)
                    yield i, {"id": str(i), "image": file, "label": i % 10}

        class SvhnCropped(Cifar10):
            VERSION = version_of_svhn

    directory = tmp_path_factory.mktemp("tfds")
    for builder in (Cifar10, SvhnCropped):
        builder(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def tfds_pixels(i):
    """Returns the image of example i, whose label is i % 10."""
    return np.random.RandomState(i).randint(0, 256, (32, 32, 3)).astype(np.uint8)


def load_tfds(directory, splits=("train", "test"), **keywords):
    settings = {"name": "cifar10", "image_shape": (32, 32, 3), "num_classes": 10, **keywords}
    return load(directory, splits, source="tfds", **settings)


def test_tfds_prepared_data_are_read_without_tensorflow(tfds_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # its import fails
    dataset = load_tfds(tfds_dir)
    assert dataset.classes == TFDS_CLASSES
    for split, count in (("train", 30), ("test", 12)):
        found = {bytes(image): label for image, label in zip(*dataset.splits[split], strict=True)}
        assert found == {bytes(tfds_pixels(i)): i % 10 for i in range(count)}


def test_svhn_is_read_from_every_source(tfds_dir, root):
    """House numbers as TFDS, in folders 0 to 9 and as arrays: the same images under the same labels."""
    arrays = {}
    for split, count in (("train", 30), ("test", 12)):
        images = np.stack([tfds_pixels(i) for i in range(count)])
        arrays |= {f"x_{split}": images, f"y_{split}": np.arange(count) % 10}
        for i, image in enumerate(images):
            path = root / split / str(i % 10) / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    np.savez(root / "svhn.npz", **arrays)
    for source, directory in (("tfds", tfds_dir), ("folder", root), ("npz", root / "svhn.npz")):
        config = loading.load_checked("svhn", [f"--config.data.source={source}", f"--config.data.dir={directory}"])
        dataset = build.dataset(config, ("train", "test"))
        assert dataset.image_shape == (32, 32, 3) and dataset.num_classes == 10
        for split, (images, labels) in dataset.splits.items():
            found = {bytes(image): int(label) for image, label in zip(images, labels, strict=True)}
            of_split = zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)
            assert found == {bytes(image): label for image, label in of_split}, (source, split)


def copy_with(tfds_dir, target, change):
    """Copies the prepared data set through change(name, content), which returns None to drop a file."""
    folder = target / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    for path in (tfds_dir / "cifar10" / "3.0.2").iterdir():
        content = change(path.name, path.read_bytes())
        if content is not None:
            (folder / path.name).write_bytes(content)
    return target


def test_tfds_test_split_alone_opens_no_training_file(tfds_dir, tmp_path):
    directory = copy_with(tfds_dir, tmp_path / "tfds", lambda name, content: None if "train" in name else content)
    assert load_tfds(directory, ("test",)).splits["test"].images.shape == (12, 32, 32, 3)
    with pytest.raises(UserError, match=r"cannot read train of cifar10 in .*prepare it again"):
        load_tfds(directory, ("train",))


def test_tfds_tfrecord_is_refused_with_the_command_that_prepares_it_again(tfds_dir, tmp_path):
    directory = copy_with(
        tfds_dir, tmp_path / "tfds", lambda _, content: content.replace(b'"array_record"', b'"tfrecord"')
    )
    with pytest.raises(UserError) as caught:
        load_tfds(directory)
    message = str(caught.value)
    assert "holds tfrecord files" in message and "\n" not in message
    command = message.split('python -c "')[1].split('"')[0]
    compile(command, "command", "exec")
    assert f"data_dir='{directory}_array_record', file_format='array_record'" in command
    assert f"--config.data.dir={directory}_array_record" in message


def test_tfds_unlike_the_configuration(tfds_dir):
    with pytest.raises(UserError, match=r"10 classes.*--config\.data\.num_classes=10"):
        load_tfds(tfds_dir, num_classes=3)
    for resize in (False, True):
        with pytest.raises(UserError, match=r"\(32, 32, 3\).*\(32, 32, 1\)"):
            load_tfds(tfds_dir, image_shape=(32, 32, 1), resize=resize)
    with pytest.raises(UserError, match=r"\(32, 32, 3\).*\(16, 16, 3\).*--config\.data\.resize=true"):
        load_tfds(tfds_dir, image_shape=(16, 16, 3))


def test_tfds_of_other_sizes_is_resized(tfds_dir):
    images, labels = load_tfds(tfds_dir, ("test",), image_shape=(16, 16, 3), resize=True).splits["test"]
    expected = [Image.fromarray(tfds_pixels(i)).resize((16, 16), Image.Resampling.BILINEAR) for i in range(12)]
    assert {(bytes(image), int(label)) for image, label in zip(images, labels, strict=True)} == {
        (np.asarray(image).tobytes(), i % 10) for i, image in enumerate(expected)
    }


def test_tfds_not_prepared_and_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError) as caught:
        load_tfds(tmp_path / "empty")
    for part in ("pip install 'cudfkd_jax[tfds]'", "--config.data.source=archive --config.data.dir=", "=folder"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"or read an image folder with .*=folder .*=npz") as caught:
        load_tfds(tmp_path / "empty", name="svhn_cropped")
    assert "archive" not in str(caught.value)
    assert not (tmp_path / "empty").exists()


def test_tfds_failed_download_says_how_to_supply_the_data(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda _: "found")
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"cannot download and prepare cifar10 \(no network\).*source=archive"):
        load_tfds(tmp_path / "empty")


def test_tfds_unknown_name(tmp_path):
    with pytest.raises(UserError, match="TensorFlow Datasets has no 'nonesuch'"):
        load_tfds(tmp_path, name="nonesuch")
