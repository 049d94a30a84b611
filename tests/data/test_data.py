"""Tests of loading in general, the digits, .npz files and the CIFAR archives."""

import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest

from cudfkd_jax import data
from cudfkd_jax.runtime.errors import UserError

CIFAR = {"image_shape": (32, 32, 3), "num_classes": 10}


def load(source, directory="", splits=("train", "test"), name="cifar10", **keywords):
    return data.load(source, name=name, directory=str(directory), splits=splits, **{**CIFAR, **keywords})


# ------------------------------------------------------------------------------------------ in general


def test_import_is_light():
    heavy = "{'jax', 'tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL'}"
    code = f"import sys, cudfkd_jax.data; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_unknown_source_lists_the_valid_ones():
    with pytest.raises(UserError, match=r"'imagenet'.*digits, tfds, archive, folder, npz"):
        load("imagenet")


@pytest.mark.parametrize("source", ["archive", "folder", "npz"])
def test_missing_directory(source, tmp_path):
    with pytest.raises(UserError, match=r"--config\.data\.dir"):
        load(source)
    with pytest.raises(UserError, match=r"nowhere does not exist.*--config\.data\.dir"):
        load(source, tmp_path / "nowhere")


def test_a_digest_follows_labels_and_images():
    random = np.random.RandomState(0)
    images, labels = random.randint(0, 256, (50, 4, 4, 1)).astype(np.uint8), np.arange(50, dtype=np.int32)
    known = data.digest(data.Split(images, labels))
    assert known == data.digest(data.Split(images.copy(), labels.copy()))
    changed = images.copy()
    changed[7] = 0
    others = [(images, labels[::-1]), (images[::-1], labels), (images[1:], labels[1:]), (changed, labels)]
    assert len({known, *(data.digest(data.Split(*other)) for other in others)}) == 5


# -------------------------------------------------------------------------------------------- digits


def digits(**keywords):
    return load("digits", name="digits", **{"image_shape": (16, 16, 1), **keywords})


def test_digits_split_is_stratified_and_always_the_same():
    dataset = digits()
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert dataset.classes == tuple("0123456789")
    assert train.images.shape == (1438, 16, 16, 1) and test.images.shape == (359, 16, 16, 1)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    totals = np.bincount(np.concatenate([train.labels, test.labels]))
    np.testing.assert_array_equal(np.bincount(test.labels), np.rint(totals * 0.2))
    # Pins the choice of images, so that all runs, past and future, share this test split.
    assert zlib.crc32(test.labels.astype("<i4").tobytes()) == 454731895


def test_digits_are_scaled_and_resized_bilinearly():
    """They are those of scikit-learn, whose file is read directly."""
    from sklearn.datasets import load_digits

    original = digits(image_shape=(8, 8, 1))
    splits = original.splits.values()
    found = [(bytes(image), label) for split in splits for image, label in zip(*split, strict=True)]
    expected = np.floor(load_digits().images * 255 / 16 + 0.5).astype(np.uint8)
    assert sorted(found) == sorted(zip(map(bytes, expected), load_digits().target, strict=True))

    # Bilinear doubling by hand: weights 3/4 and 1/4, edges repeated.
    small = original.splits["test"].images[:, :, :, 0].astype(float)
    for axis in (1, 2):
        before = np.concatenate([small.take([0], axis), small.take(range(7), axis)], axis)
        after = np.concatenate([small.take(range(1, 8), axis), small.take([7], axis)], axis)
        pair = np.stack([0.75 * small + 0.25 * before, 0.75 * small + 0.25 * after], axis + 1)
        small = pair.reshape([16 if i == axis else n for i, n in enumerate(small.shape)])
    doubled = digits().splits["test"].images[..., 0]
    assert np.abs(doubled - small).max() <= 1  # Pillow rounds after each direction


def test_only_the_requested_split_is_returned():
    assert set(digits(splits=("test",)).splits) == {"test"}


def test_outcome_is_checked_against_the_configuration():
    with pytest.raises(UserError, match=r"10 classes.*num_classes is 7.*--config\.data\.num_classes=10"):
        digits(num_classes=7)
    with pytest.raises(UserError, match=r"\(8, 8, 1\).*\(8, 8, 3\).*--config\.data\.image_shape"):
        digits(image_shape=(8, 8, 3))


# ----------------------------------------------------------------------------------------------- npz


def npz_arrays(n=12, shape=(8, 8, 3)):
    random = np.random.RandomState(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = random.randint(0, 256, (n, *shape)).astype(np.uint8)
        arrays[f"y_{split}"] = random.randint(0, 10, n)
    return arrays


def load_npz(path, image_shape=(8, 8, 3), **keywords):
    return load("npz", path, name="mine", image_shape=image_shape, **keywords)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    arrays = npz_arrays()
    save(tmp_path / "mine.npz", **arrays)
    for place in (tmp_path / "mine.npz", tmp_path):
        dataset = load_npz(place)
        for split in ("train", "test"):
            np.testing.assert_array_equal(dataset.splits[split].images, arrays[f"x_{split}"])
            np.testing.assert_array_equal(dataset.splits[split].labels, arrays[f"y_{split}"])
            assert dataset.splits[split].labels.dtype == np.int32


def test_npz_grey_images_and_column_labels(tmp_path):
    arrays = npz_arrays(shape=(8, 8))
    arrays["y_test"] = arrays["y_test"][:, None].astype(np.uint8)
    np.savez(tmp_path / "mine.npz", **arrays)
    test = load_npz(tmp_path, image_shape=(8, 8, 1)).splits["test"]
    np.testing.assert_array_equal(test.images[..., 0], arrays["x_test"])
    np.testing.assert_array_equal(test.labels, arrays["y_test"][:, 0])


def test_npz_test_split_alone_needs_no_training_arrays(tmp_path):
    arrays = npz_arrays()
    np.savez(tmp_path / "mine.npz", x_test=arrays["x_test"], y_test=arrays["y_test"])
    assert set(load_npz(tmp_path, splits=("test",)).splits) == {"test"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.zeros((12, 8, 8, 3), np.float32)}, r"images are float32 \[12, 8, 8, 3\].*uint8"),
        ({"x_test": np.zeros((12, 8), np.uint8)}, r"images are uint8 \[12, 8\]"),
        ({"x_test": np.zeros((0, 8, 8, 3), np.uint8)}, r"images are uint8 \[0, 8, 8, 3\]"),
        ({"x_test": np.zeros((12, 9, 8, 3), np.uint8)}, r"\(9, 8, 3\).*--config\.data\.image_shape"),
        ({"y_test": np.zeros(12)}, r"labels are float64 \[12\]"),
        ({"y_test": np.zeros(11, int)}, r"labels are int64 \[11\], expected integers \[12\]"),
        ({"y_test": np.zeros((12, 2), int)}, r"labels are int64 \[12, 2\]"),
        ({"y_test": np.full(12, 10)}, r"labels run from 10 to 10, outside 0\.\.9"),
        ({"y_test": np.full(12, -1)}, r"labels run from -1 to -1"),
        ({"y_test": np.full(12, 2**32)}, r"labels run from 4294967296"),  # 0 once cast to int32
        ({"y_test": np.arange(12) % 10 + 1}, r"labels run from 1 to 10, so they begin at 1; expected 0\.\.9"),
        (
            {"x_test": np.zeros((12, 3, 8, 8), np.uint8)},
            r"\[12, 3, 8, 8\], channels first; expected channels last",
        ),
        ({"x_test": np.zeros((12, 1, 8, 8), np.float32)}, r"\[12, 1, 8, 8\], channels first"),
        ({"x_test": np.ones((12, 8, 8, 3), np.uint8)}, r"\(test\): no image has an intensity above 1"),
    ],
)
def test_npz_wrong_arrays(tmp_path, changes, message):
    np.savez(tmp_path / "mine.npz", **{**npz_arrays(), **changes})
    with pytest.raises(UserError, match=message):
        load_npz(tmp_path / "mine.npz", splits=("test",))


def test_absent_classes_are_told(tmp_path):
    """An npz file does not say how many classes it has, so that data.num_classes may be another data set's."""
    arrays = npz_arrays()
    np.savez(tmp_path / "mine.npz", **{**arrays, "y_test": np.arange(12) % 3, "y_train": np.arange(12) % 10})
    notes = load_npz(tmp_path / "mine.npz").notes
    assert notes == (f"data: 7 of 10 classes have no image in {tmp_path / 'mine.npz'} (test)",)


def test_npz_by_the_names_of_medmnist(tmp_path):
    arrays = npz_arrays(shape=(8, 8))
    renamed = {f"{split}_images": arrays[f"x_{split}"] for split in ("train", "test")}
    renamed |= {f"{split}_labels": arrays[f"y_{split}"][:, None].astype(np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "mine.npz", val_images=np.zeros(3), val_labels=np.zeros(3), **renamed)
    dataset = load_npz(tmp_path, image_shape=(8, 8, 1))
    for split in ("train", "test"):
        np.testing.assert_array_equal(dataset.splits[split].images[..., 0], arrays[f"x_{split}"])
        np.testing.assert_array_equal(dataset.splits[split].labels, arrays[f"y_{split}"])
    (note, *_) = dataset.notes
    assert note.endswith("mine.npz: val_images, val_labels")
    assert load_npz(tmp_path, image_shape=(8, 8, 1), splits=("test",)).notes[0] == note


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_of_other_sizes_is_resized(tmp_path, channels):
    from PIL import Image

    arrays = npz_arrays(shape=(8, 12, channels))
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=r"--config\.data\.resize=true"):
        load_npz(tmp_path, image_shape=(4, 4, channels))
    dataset = load_npz(tmp_path, image_shape=(4, 4, channels), resize=True)
    assert dataset.image_shape == (4, 4, channels)
    for image, source in zip(dataset.splits["test"].images, arrays["x_test"], strict=True):
        source = source[..., 0] if channels == 1 else source
        scaled = np.asarray(Image.fromarray(source).resize((6, 4), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image, scaled[:, 1:5].reshape(image.shape))
    with pytest.raises(UserError, match=r"have shape \(4, 4, "):
        load_npz(tmp_path, image_shape=(4, 4, 4 - channels), resize=True)


def test_npz_wrong_keys(tmp_path):
    np.savez(tmp_path / "mine.npz", images=np.zeros(3))
    with pytest.raises(UserError, match=r"mine\.npz has no array 'x_train', only: images; it needs x_train"):
        load_npz(tmp_path)


class Payload:
    """Creates a marker file when the ordinary unpickler loads it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def test_npz_object_arrays_are_never_unpickled(tmp_path):
    mark = tmp_path / "mark"
    hostile = np.array([Payload(mark)] * 12, dtype=object)
    np.savez(tmp_path / "mine.npz", **{**npz_arrays(), "x_test": hostile})
    with pytest.raises(UserError, match="x_test holds Python objects"):
        load_npz(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 nor this"])
def test_npz_invalid_file(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.npz is not an \.npz file"):
        load_npz(tmp_path)


def npy_header(shape):
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("lie_in_directory", [False, True])
def test_npz_declaring_more_than_it_holds_is_refused_before_allocating(tmp_path, monkeypatch, lie_in_directory):
    path = tmp_path / "mine.npz"
    shape = (10_000, 1000, 1000, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_test.npy", npy_header(shape) + bytes(1000))
        if lie_in_directory:  # the zip's directory may declare the size too
            archive.filelist[0].file_size = 2**31
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(UserError, match=r"x_test declares uint8 \[10000, 1000, 1000, 1\], more than"):
        load_npz(path, splits=("test",))


def test_npz_damaged_member(tmp_path):
    np.savez(tmp_path / "mine.npz", **npz_arrays())
    content = bytearray((tmp_path / "mine.npz").read_bytes())
    content[400] ^= 1  # among the pixels of x_train
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot read x_train"):
        load_npz(tmp_path)
    load_npz(tmp_path, splits=("test",))  # the training pixels are not read


# ------------------------------------------------------------------------------------------- archive

NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES100 = [f"fine_{i:02d}" for i in range(100)]


def planes_and_labels(seed, classes=10, n=20):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (n, 3072)).astype(np.uint8), [int(i) % classes for i in range(n)]


def python2_pickle(content):
    """Pickles like Python 2 and NumPy 1, which wrote the official files: text and bytes as binary strings."""

    def string(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def item(value):
        if isinstance(value, bytes):
            return string(value)
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        shape = b"".join(map(item, value.shape))
        dtype = b"cnumpy\ndtype\n(" + string(b"u1") + item(0) + item(1) + b"tR"
        dtype += b"(" + item(3) + string(b"|") + b"NNN" + item(-1) * 2 + item(0) + b"tb"
        array = (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + item(0) + b"t" + string(b"b") + b"tR"
        )
        fortran_order = b"\x89" if value.flags.c_contiguous else b"\x88"
        state = item(1) + b"(" + shape + b"t" + dtype + fortran_order + string(value.tobytes("A"))
        return array + b"(" + state + b"tb"

    return b"\x80\x02}(" + b"".join(string(key) + item(value) for key, value in content.items()) + b"u."


def write_archive(root, layout, dump=python2_pickle):
    """Writes a small archive; returns the planes and labels of each split."""
    cifar10 = layout.startswith("cifar-10-")
    classes = 10 if cifar10 else 100
    train = [planes_and_labels(seed, classes) for seed in range(5 if cifar10 else 1)]
    test = planes_and_labels(9, classes)
    folder = root / layout
    folder.mkdir(parents=True)
    names = NAMES10 if cifar10 else NAMES100
    if layout in ("cifar-10-batches-py", "cifar-100-python"):
        labels_key = b"labels" if cifar10 else b"fine_labels"
        names_key = b"label_names" if cifar10 else b"fine_label_names"
        meta = {names_key: [name.encode() for name in names], b"num_vis": 3072}
        (folder / ("batches.meta" if cifar10 else "meta")).write_bytes(dump(meta))
        files = [f"data_batch_{i}" for i in range(1, 6)] if cifar10 else ["train"]
        for name, (planes, labels) in zip(
            [*files, "test_batch" if cifar10 else "test"], [*train, test], strict=True
        ):
            (folder / name).write_bytes(dump({b"data": planes, labels_key: labels, b"batch_label": b"x"}))
    else:
        (folder / ("batches.meta.txt" if cifar10 else "fine_label_names.txt")).write_text(
            "\n".join(names) + "\n\n"
        )
        files = [f"data_batch_{i}.bin" for i in range(1, 6)] if cifar10 else ["train.bin"]
        for name, (planes, labels) in zip(
            [*files, "test_batch.bin" if cifar10 else "test.bin"], [*train, test], strict=True
        ):
            coarse = [] if cifar10 else [[99 - label for label in labels]]
            records = np.concatenate([np.array([*coarse, labels]).T, planes], axis=1).astype(np.uint8)
            records.tofile(folder / name)
    return {
        "train": (np.concatenate([p for p, _ in train]), [label for _, labels in train for label in labels]),
        "test": test,
    }


LAYOUTS = ["cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary"]


def load_archive(directory, layout, **keywords):
    cifar10 = layout.startswith("cifar-10-")
    return load(
        "archive",
        directory,
        name="cifar10" if cifar10 else "cifar100",
        **{"num_classes": 10 if cifar10 else 100, **keywords},
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_archive(tmp_path, layout):
    expected = write_archive(tmp_path, layout)
    for place in (tmp_path, tmp_path / layout):
        dataset = load_archive(place, layout)
        assert dataset.classes == tuple(NAMES10 if layout.startswith("cifar-10-") else NAMES100)
        for split, (planes, labels) in expected.items():
            images = dataset.splits[split].images
            assert images.shape == (len(planes), 32, 32, 3)
            # Pixel (row, column) of channel c is byte 1024 c + 32 row + column of a record.
            for channel, row, column in ((0, 0, 0), (1, 3, 5), (2, 31, 30)):
                np.testing.assert_array_equal(
                    images[:, row, column, channel], planes[:, 1024 * channel + 32 * row + column]
                )
            np.testing.assert_array_equal(dataset.splits[split].labels, labels)


@pytest.mark.parametrize("order", ["C", "F"])
def test_archive_rewritten_by_python_3_or_in_fortran_order(tmp_path, order):
    def dump(content):
        content = {key.decode(): value for key, value in content.items()}
        if "data" in content:
            content["data"] = np.asarray(content["data"], order=order)
        return pickle.dumps(content, protocol=4)

    def names_as_text(content):
        return dump({k: [n.decode() for n in v] if k == b"label_names" else v for k, v in content.items()})

    expected = write_archive(tmp_path, "cifar-10-batches-py", names_as_text)
    test = load_archive(tmp_path, "cifar-10-batches-py").splits["test"]
    np.testing.assert_array_equal(test.images[:, 2, 3, 1], expected["test"][0][:, 1024 + 2 * 32 + 3])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_archive_test_split_alone_opens_no_training_file(tmp_path, layout):
    write_archive(tmp_path, layout)
    for path in (tmp_path / layout).iterdir():
        if "train" in path.name or "data_batch" in path.name:
            path.unlink()
    assert set(load_archive(tmp_path, layout, splits=("test",)).splits) == {"test"}
    with pytest.raises(UserError, match="is missing: unpack"):
        load_archive(tmp_path, layout, splits=("train",))


@pytest.mark.parametrize("hidden_in", ["batches.meta", "test_batch"])
def test_archive_with_code_is_refused_and_the_code_not_run(tmp_path, hidden_in):
    write_archive(tmp_path, "cifar-10-batches-py")
    mark = tmp_path / "mark"
    hostile = pickle.dumps({"data": Payload(mark), "labels": [0]})
    (tmp_path / "cifar-10-batches-py" / hidden_in).write_bytes(hostile)
    with pytest.raises(UserError, match=rf"{hidden_in} .*builtins\.exec.*nothing in it was run"):
        load_archive(tmp_path, "cifar-10-batches-py")
    assert not mark.exists()
    pickle.loads(hostile)
    assert mark.exists()  # the payload works


@pytest.mark.parametrize(
    "value",
    [
        np.array([None] * 3, dtype=object),
        np.zeros(3, "datetime64[s]"),
        np.float64(1),
        Ellipsis,
        pytest.fail,
        {1, 2}.__class__,
    ],
)
def test_archive_admits_nothing_but_plain_data(tmp_path, value):
    write_archive(tmp_path, "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"data": value, "labels": [0]}, protocol=3))
    with pytest.raises(UserError, match="holds more than arrays, lists, strings and numbers"):
        load_archive(tmp_path, "cifar-10-batches-py", splits=("test",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch", b"", "test_batch is damaged"),
        ("test_batch", python2_pickle({b"data": np.zeros((2, 3072), np.uint8)})[:500], "test_batch is damaged"),
        ("test_batch", pickle.dumps([1]), "test_batch is damaged"),
        ("test_batch", python2_pickle({b"labels": [0]}), "test_batch has no entry 'data'"),
        ("test_batch", python2_pickle({b"data": [1], b"labels": [0]}), r"data are int64 \[1\], expected uint8"),
        (
            "test_batch",
            python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}),
            r"labels run from 0 to 10",
        ),
        ("batches.meta", python2_pickle({b"label_names": [b"a", b"b"]}), "2 classes, but data.num_classes is 10"),
    ],
)
def test_archive_damaged(tmp_path, name, content, message):
    write_archive(tmp_path, "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_archive(tmp_path, "cifar-10-batches-py")


def test_archive_truncated_binary(tmp_path):
    write_archive(tmp_path, "cifar-10-batches-bin")
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test_batch\.bin is damaged"):
        load_archive(tmp_path, "cifar-10-batches-bin")


def test_archive_absent_packed_or_of_another_data_set(tmp_path):
    with pytest.raises(UserError, match="no cifar-10-batches-py or cifar-10-batches-bin in"):
        load("archive", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    for place in (tmp_path, tmp_path / "cifar-10-python.tar.gz"):
        with pytest.raises(UserError, match=r"still packed: tar -xzf .*cifar-10-python\.tar\.gz"):
            load("archive", place)
    with pytest.raises(UserError, match="reads cifar10 and cifar100, not 'tiny_imagenet'"):
        load("archive", tmp_path, name="tiny_imagenet")
