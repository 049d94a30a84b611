"""TensorFlow Datasets through its random-access interface: array_record files, without TensorFlow."""

import importlib.util
import io
from typing import Any

import numpy as np

from cudfkd_jax.data.base import (
    Dataset,
    Request,
    Split,
    check_image_shape,
    check_num_classes,
    make_split,
    one_line,
)
from cudfkd_jax.data.images import decode_images
from cudfkd_jax.runtime.errors import UserError

_ARCHIVES = ("cifar10", "cifar100")


def load(request: Request) -> Dataset:
    """Reads the features `image` and `label` of a data set, which TensorFlow, if installed, prepares when missing.

    `request.directory` is TFDS's data_dir; '' is its default, $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: the data set is unknown, prepared in a format without random access, or not prepared while
        TensorFlow is not installed, or the download fails.
    """

    builder = _prepared_builder(request)
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise UserError(f"{builder.data_dir} has the features {', '.join(features)}, needed: image and label")
    where = f"{request.name} in {builder.data_dir}"
    check_num_classes(features["label"].num_classes, request, where)
    shape = features["image"].shape
    check_image_shape((*request.image_shape[:2], shape[2]) if request.resize else shape, request, where)

    splits = {split: _read_split(request, split, builder, where) for split in request.splits}
    classes = tuple(features["label"].names or ())
    return Dataset(request.num_classes, classes, request.image_shape, splits)


def _otherwise(request: Request) -> str:
    """Returns how to supply a data set that TFDS does not."""
    archive = "the official archive with --config.data.source=archive --config.data.dir=PATH, "
    return (
        f"or read {archive if request.name in _ARCHIVES else ''}an image folder with --config.data.source=folder "
        "--config.data.dir=PATH or arrays with --config.data.source=npz --config.data.dir=FILE"
    )


def _read_split(request: Request, split: str, builder: Any, where: str) -> Split:
    import tensorflow_datasets as tfds

    if split not in builder.info.splits:
        raise UserError(f"{where} has no split {split!r}, only: {', '.join(builder.info.splits)}")
    try:
        source = tfds.data_source(
            request.name,
            split=split,
            data_dir=request.directory or None,
            download=False,
            # Pillow decodes below, in parallel; TFDS decodes sequentially.
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        examples = source.__getitems__(range(len(source)))
    # The reader raises errors of many types on missing and damaged files.
    except Exception as error:
        raise UserError(f"cannot read {split} of {where} ({one_line(error)}): prepare it again") from error

    def open_image(index: int) -> tuple[str, io.BytesIO]:
        return f"{split}[{index}] of {where}", io.BytesIO(examples[index]["image"])

    images = decode_images(len(examples), open_image, request.image_shape, resize=request.resize)
    labels = np.array([example["label"] for example in examples])
    return make_split(images, labels, request.num_classes, where)


def _prepared_builder(request: Request) -> Any:
    """Returns the builder of a data set prepared on disk in a format with random access."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import file_adapters

    data_dir = request.directory or None
    try:
        builder = tfds.builder(request.name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"TensorFlow Datasets has no {request.name!r}: prepare it in --config.data.dir, {_otherwise(request)}"
        ) from None
    if not (builder.data_path / "dataset_info.json").exists():
        _prepare(request)
        builder = tfds.builder(request.name, data_dir=data_dir)
    formats = builder.info.available_file_formats()
    if not formats & file_adapters.FileFormat.with_random_access():
        raise UserError(
            f"{builder.data_dir} holds {', '.join(sorted(f.value for f in formats))} files, which only "
            f"TensorFlow reads: {_repreparation(request.name, str(builder.data_dir_root))}"
        )
    return builder


def _repreparation(name: str, data_dir: str) -> str:
    """Returns the command that prepares a data set a second time, beside the first and from its downloads."""
    target = f"{data_dir.rstrip('/')}_array_record"
    code = (
        f"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={target!r}, "
        f"file_format='array_record').download_and_prepare(download_dir={data_dir + '/downloads'!r})"
    )
    return (
        "prepare it as array_record with pip install 'cudfkd_jax[tfds]' and "
        f'python -c "{code}", then set --config.data.dir={target}'
    )


def _prepare(request: Request) -> None:
    """Downloads the data set and writes it as array_record, which needs TensorFlow to encode the images."""
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{request.name} is not prepared in {request.directory or 'the data directory of TFDS'} and "
            f"preparing it needs TensorFlow: pip install 'cudfkd_jax[tfds]', {_otherwise(request)}"
        )
    try:
        builder = tfds.builder(request.name, data_dir=request.directory or None, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    # Downloading and generating raise errors of many types.
    except Exception as error:
        raise UserError(
            f"cannot download and prepare {request.name} ({one_line(error)}): try again, {_otherwise(request)}"
        ) from error
