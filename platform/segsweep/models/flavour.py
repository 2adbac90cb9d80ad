"""What `mlflow.pyfunc.load_model("models:/NAME/1")` gives for our models: scans in, label maps written, their paths back.

`mlflow models serve` serves the same: it reads and writes the files of the machine that it runs on, for whoever can reach it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segsweep.data.readers import is_scan, stem
from segsweep.errors import InputError, SegsweepError
from segsweep.inference.formats import demand_apart
from segsweep.inference.prediction import predict, segment_scan
from segsweep.inference.predictor import Predictor
from segsweep.inference.scans import ScanCase, Segmentable, find_dicom
from segsweep.inference.writers import write_label_map
from segsweep.models.ensemble import load_predictor
from segsweep.workspace import current_workspace

# isort: split
# After ensemble, which sets the switches that MLflow reads when it is imported.
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

REQUIRED = ("image", "output")


class RefusedError(InputError, MlflowException):
    """An InputError whose sentence MLflow's server gives its client, with HTTP status 400; it hides those of other exceptions."""


class Segmenter:
    """A single model or an ensemble behind MLflow's pyfunc interface."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:  # noqa: ARG002
        """Segment each row's scan and return the paths of the written label maps, in the same order.

        `model_input` is a table (pandas) or a list of dictionaries with "image" (path of a scan or of the folder of a DICOM
        series, or a list of paths, one a channel) and "output": the label map's path, such as OUT/liver.nii.gz, or a folder, which
        then holds CASE.nii.gz and labels.json. Of a model that joins several datasets, "dataset" names the one whose structures are
        segmented. MLflow's interface asks for `params`; there are none. Raises InputError that names the row or file.
        """
        try:
            return [str(self._segment(row)) for row in _rows(model_input)]
        except SegsweepError as error:
            raise RefusedError(str(error), error_code=BAD_REQUEST) from None

    def _segment(self, row: Mapping[str, Any]) -> Path:
        output = Path(row["output"])
        scan = _case(row["image"], channels=self.predictor.table_task.channels)
        predictor = self.predictor.only(row["dataset"]) if "dataset" in row else self.predictor
        if is_scan(output):
            demand_apart([output], scans=[scan])
            found = segment_scan(scan, predictor=predictor)
            write_label_map(found.label, geometry=found.geometry, path=output)
            return output
        failures = predict([scan], predictor=predictor, out=output).failures
        if failures:
            raise InputError(failures[scan.case_id])
        return output / f"{scan.case_id}.nii.gz"


def _load_pyfunc(data_path: str) -> Segmenter:
    """Called by MLflow with the stored folder; members of an ensemble come from the workspace's registry."""
    return Segmenter(load_predictor(Path(data_path), workspace=current_workspace()))


def _case(image: Any, *, channels: Sequence[str]) -> Segmentable:
    paths = (image,) if isinstance(image, str | Path) else tuple(image)
    if not paths:
        raise InputError("a row names no image; expected a path, or one path a channel")
    images = tuple(Path(path) for path in paths)
    if len(images) == 1 and images[0].is_dir():
        return _only_series(images[0], channels=channels)
    return ScanCase(case_id=stem(images[0]).removesuffix("_0000"), images=images)


def _only_series(folder: Path, *, channels: Sequence[str]) -> Segmentable:
    cases = find_dicom(folder, channels=channels)
    if len(cases) > 1:
        raise InputError(f"{folder} holds {len(cases)} DICOM series; expected one a row; give the folder of one")
    return cases[0]


def _rows(model_input: Any) -> Sequence[Mapping[str, Any]]:
    if hasattr(model_input, "to_dict"):
        model_input = model_input.to_dict(orient="records")
    given = [model_input] if isinstance(model_input, Mapping) else list(model_input)
    # A table has a value in every cell: NaN where a row had none.
    rows = [{name: value for name, value in row.items() if not _absent(value)} for row in given]
    for number, row in enumerate(rows):
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise InputError(
                f"row {number} lacks {missing[0]!r} (it has: {', '.join(row)}); expected 'image' and 'output'"
            )
    return rows


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
