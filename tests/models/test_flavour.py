"""MLflow alone loads a registered model or ensemble, and its label maps lie on the scans' own grids."""

import asyncio
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import scoring_server

from segsweep.data.geometry import Geometry
from segsweep.data.readers import read_labels
from segsweep.errors import InputError, ModelError
from segsweep.inference.writers import write_image
from segsweep.models import registry
from segsweep.models.ensemble import build

# Feet first and with an origin of its own; spacing as in the tiny checkpoint's task, so that nothing is resampled.
GEOMETRY = Geometry(
    shape=(6, 10, 9), spacing=(2.0, 1.0, 1.0), origin=(5.0, -3.0, 40.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, -1)
)


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 9, size=GEOMETRY.shape).astype(np.int16)


@pytest.fixture
def scan(tmp_path: Path, voxels: np.ndarray) -> Path:
    write_image(voxels, geometry=GEOMETRY, path=tmp_path / "chest.nii.gz")
    return tmp_path / "chest.nii.gz"


@pytest.fixture
def mlflow_here(workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user of plain MLflow sets."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace.tracking_uri)


@pytest.mark.usefixtures("mlflow_here")
def test_model_segments_to_a_file_and_a_folder(put, scan: Path, voxels: np.ndarray, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(put("flavour-single", threshold=0.5))
    table = pd.DataFrame(
        {"image": [str(scan)] * 2, "output": [str(tmp_path / "a" / "b.nii.gz"), str(tmp_path / "out")]}
    )
    written = model.predict(table)
    assert written == [str(tmp_path / "a" / "b.nii.gz"), str(tmp_path / "out" / "chest.nii.gz")]
    assert (tmp_path / "out" / "labels.json").is_file()
    for path in written:
        label = read_labels(Path(path))
        assert label.geometry.same_grid(GEOMETRY)
        np.testing.assert_array_equal(label.voxels, voxels > 0.5)


@pytest.mark.usefixtures("mlflow_here")
def test_ensemble_loads_its_members(tracker, put, scan: Path, voxels: np.ndarray, tmp_path: Path) -> None:
    members = [put("flavour-low", threshold=-2.5), put("flavour-high", threshold=2.5)]
    ensemble = build(members, name="flavour-ensemble", tracker=tracker)
    model = mlflow.pyfunc.load_model(ensemble.uri)
    (written,) = model.predict([{"image": str(scan), "output": str(tmp_path / "mean.nii.gz")}])
    clear = voxels != 0  # at 0 both probabilities weigh the same
    np.testing.assert_array_equal(read_labels(Path(written)).voxels[clear], (voxels > 0)[clear])


@pytest.mark.usefixtures("mlflow_here")
def test_a_scan_is_never_replaced_by_its_own_labels(put, scan: Path, tmp_path: Path) -> None:
    model, before = mlflow.pyfunc.load_model(put("flavour-in-place", threshold=0.5)), scan.read_bytes()
    for output in (scan, tmp_path):
        with pytest.raises(InputError, match=r"chest\.nii\.gz is, or holds, a scan"):
            model.predict([{"image": str(scan), "output": str(output)}])
    assert scan.read_bytes() == before


@pytest.mark.usefixtures("mlflow_here")
def test_one_path_a_channel(put, scan: Path, voxels: np.ndarray, tmp_path: Path) -> None:
    write_image(voxels[::-1], geometry=GEOMETRY, path=tmp_path / "other.nii.gz")
    scan = scan.rename(tmp_path / "chest_0000.nii.gz")
    model = mlflow.pyfunc.load_model(put("flavour-channels", threshold=0.5, channels=("CT", "PET")))
    images = [str(scan), str(tmp_path / "other.nii.gz")]
    (written,) = model.predict([{"image": images, "output": str(tmp_path / "two")}])
    assert Path(written).name == "chest.nii.gz", "as `predict` names it"
    np.testing.assert_array_equal(read_labels(Path(written)).voxels, voxels > 0.5)
    with pytest.raises(InputError, match="the image has 1 channels"):
        model.predict([{"image": images[0], "output": str(tmp_path / "two")}])


@pytest.mark.usefixtures("mlflow_here")
def test_a_dicom_series_is_given_by_its_folder(put, write_series, voxels: np.ndarray, tmp_path: Path) -> None:
    series = write_series(tmp_path / "thorax", voxels=voxels, spacing=GEOMETRY.spacing)
    model = mlflow.pyfunc.load_model(put("flavour-dicom", threshold=0.5))
    (written,) = model.predict([{"image": str(series), "output": str(tmp_path / "out")}])
    assert Path(written).name == "thorax.nii.gz"
    np.testing.assert_array_equal(read_labels(Path(written)).voxels, voxels > 0.5)
    write_series(tmp_path / "thorax" / "again", voxels=voxels)
    with pytest.raises(InputError, match="thorax holds 2 DICOM series; expected one a row"):
        model.predict([{"image": str(series), "output": str(tmp_path / "out")}])


@pytest.mark.usefixtures("mlflow_here")
def test_a_row_may_name_the_dataset_that_is_asked_for(put, scan: Path, voxels: np.ndarray, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(put("flavour-joint", threshold=0.5, structures=("a/liver", "b/liver")))
    rows = [{"image": str(scan), "output": str(tmp_path / name), "dataset": name} for name in ("a", "b")]
    own, other = (read_labels(Path(path)).voxels for path in model.predict(rows))
    np.testing.assert_array_equal(own, voxels > 0.5)
    assert not other.any()
    assert (tmp_path / "a" / "labels.json").read_text().split() == ["{", '"liver":', "[", "1", "]", "}"]


@pytest.mark.usefixtures("mlflow_here")
def test_rows_that_cannot_be_used_are_named(put, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(put("flavour-rows"))
    with pytest.raises(InputError, match=r"row 1 lacks 'output' \(it has: image\)"):
        model.predict([{"image": "a", "output": "b"}, {"image": "a"}])
    with pytest.raises(InputError, match=r"absent\.nii\.gz is not there"):
        model.predict([{"image": str(tmp_path / "absent.nii.gz"), "output": str(tmp_path / "out")}])
    with pytest.raises(InputError, match="a row names no image"):
        model.predict([{"image": [], "output": str(tmp_path / "out")}])


def post(app: Any, body: Any) -> tuple[int, Any]:
    """A request to /invocations of an ASGI application, without a server: HTTP status and answer."""
    scope = {
        "type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "http_version": "1.1", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "scheme": "http", "server": ("here", 80), "client": ("here", 1),
    }  # fmt: skip
    requests, answers = [{"type": "http.request", "body": json.dumps(body).encode()}], []

    async def receive() -> dict[str, Any]:
        if not requests:
            await asyncio.Event().wait()  # the client stays
        return requests.pop()

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    asyncio.run(app(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in answers)
    return answers[0]["status"], json.loads(content)


@pytest.mark.usefixtures("mlflow_here")
def test_mlflows_server_segments_and_says_what_it_cannot(
    put, scan: Path, voxels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # which the server leaves behind
    model = mlflow.pyfunc.load_model(put("flavour-served", threshold=0.5, structures=("a/liver", "b/liver")))
    app = scoring_server.init(model)
    row = {"image": str(scan), "output": str(tmp_path / "one.nii.gz")}
    rows = [row, {**row, "output": str(tmp_path / "two.nii.gz"), "dataset": "b"}]
    status, answer = post(app, {"dataframe_records": rows})
    assert (status, answer) == (200, {"predictions": [row["output"] for row in rows]})
    np.testing.assert_array_equal(read_labels(tmp_path / "one.nii.gz").voxels, voxels > 0.5)
    assert not read_labels(tmp_path / "two.nii.gz").voxels.any()
    status, answer = post(app, {"dataframe_records": [{"image": str(tmp_path / "absent.nii.gz"), "output": "a"}]})
    assert status == 400 and "absent.nii.gz is not there" in answer["message"] and "stack_trace" not in answer


@pytest.mark.usefixtures("mlflow_here")
def test_damaged_model_is_not_loaded(put, workspace) -> None:
    uri = put("flavour-damaged")
    weights = registry.fetch(uri, workspace=workspace) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"weights\.safetensors.*damaged"):
        mlflow.pyfunc.load_model(uri)
