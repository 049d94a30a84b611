"""The result of a distillation from Python."""

import base64
import dataclasses
import html
from pathlib import Path
from typing import Any

import numpy as np

from cudfkd_jax import report
from cudfkd_jax.evaluation.predict import make_predict
from cudfkd_jax.evaluation.summary import describe
from cudfkd_jax.models import count_parameters
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runs.distill import SAMPLES
from cudfkd_jax.runs.export import export
from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.runtime.errors import UserError, choose
from cudfkd_jax.storage import weights
from cudfkd_jax.storage.formats import FORMATS
from cudfkd_jax.storage.records import Record
from cudfkd_jax.storage.weights import Trained

_BATCH = 256


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """The result of `distill`.

    Attributes:
        student: the last student; `student.variables` is `{'params', 'batch_stats'}` of NumPy arrays.
        metrics: of the student, accuracies in percent: with test images `acc1_last`, `agree1`, `loyalty` and the
            best of each; without, `agree1_synthetic` and so on, measured on held-out synthetic images.
        summary: the contents of `summary.json`.
        history: the records of all epochs, as in `metrics.jsonl`.
        classifier: the student's module and input normalisation.
        workdir: the run's folder; None if its files were not kept.
    """

    student: Trained
    metrics: dict[str, Any]
    summary: dict[str, Any]
    history: list[Record]
    classifier: Classifier
    workdir: Path | None

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Computes the student's logits `[N, num_classes]`, float32, of images uint8 `[N, H, W, C]`.

        Raises:
            UserError: the images have another dtype or shape.
        """
        images, shape = np.asarray(images), tuple(self.student.net.image_shape)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(f"images are {images.dtype} {list(images.shape)}; expected uint8 [N, *{shape}]")
        if not len(images):
            return np.zeros((0, self.student.net.num_classes), np.float32)
        devices = local_devices(1)
        predict = make_predict(self.classifier, devices, min(_BATCH, len(images)))
        return predict(devices.replicate(self.student.variables), images)()

    def save(self, folder: str | Path) -> Path:
        """Saves the student as a folder that `--config.teacher.checkpoint` and `storage.weights.load_net` read."""
        folder = Path(folder).expanduser()
        if folder.exists() and not (folder / weights.DESCRIPTION).exists() and any(folder.iterdir()):
            raise UserError(f"{folder} holds something else than a network; name another folder")
        weights.save_net(folder, self.student.net, self.student.variables)
        return folder

    def report(self) -> Path:
        """Writes `report.html` of the run and returns its path.

        Raises:
            UserError: the run's files were not kept.
        """
        return report.write_report(self._folder("report()"))

    def export(self, format_: str) -> Path:
        """Exports the student to `<workdir>/export/<format>/` and returns the file.

        Args:
            format_: "orbax", "safetensors", "torch" or "stablehlo".

        Raises:
            UserError: the format is unknown or lacks a package, or the run's files were not kept.
        """
        choose("format", format_, tuple(FORMATS))
        return export(self._folder("export()"), format_, say=lambda text: None)

    def _folder(self, what: str) -> Path:
        if self.workdir is None:
            raise UserError(f"{what} reads the run's files, and distill() kept none; pass it workdir=…")
        return self.workdir

    def __repr__(self) -> str:
        shown = [self.student.net.arch, f"{count_parameters(self.student.variables['params']):,} parameters"]
        names = {"acc1_last": "acc@1", "agree1": "agree@1", "agree1_synthetic": "agree@1 on synthetic images"}
        shown += [f"{name} {self.metrics[key]:.2f} %" for key, name in names.items() if key in self.metrics]
        return f"Result({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """Shows the table of results and the newest synthetic images in a notebook."""
        pictures = sorted((self.workdir / SAMPLES).glob("epoch_*.png"))[-1:] if self.workdir else []
        images = [
            f'<img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
            for path in pictures
        ]
        return "\n".join([f"<pre>{html.escape(describe(self.summary))}</pre>", *images])
