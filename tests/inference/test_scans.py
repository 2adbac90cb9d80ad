"""DICOM series as cases, and scans in files that cannot be used: each fails alone, with one sentence, and the others go on."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from torch import Tensor, nn

from segsweep.data.dicom import find_series, read_series
from segsweep.data.geometry import Geometry
from segsweep.data.readers import read_labels
from segsweep.data.segments import read_segments
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError
from segsweep.inference.prediction import predict
from segsweep.inference.predictor import Member, Predictor
from segsweep.inference.scans import LoadedScan, Misfit, ScanCase, Segmentable, SeriesCase, find_files, find_scans
from segsweep.inference.writers import write_image
from segsweep.learning.task import Normalisation, Task

WriteSeries = Callable[..., Path]
SPACING = (2.0, 2.0, 2.0)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSWEEP_CASE_KEY", "a key for these tests")


class Bright(nn.Module):
    """One structure: wherever a voxel is above 0."""

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        return [x_BCZYX[:, :1]]


def bright(*channels: str) -> Predictor:
    task = Task(
        channels=channels,
        table=LabelTable(labels=LabelSet(structures=("bright",)), atoms=((), (0,))),
        head="sigmoid",
        patch_size=(8, 8, 8),
        spacing=SPACING,
        normalisation=(Normalisation(scheme="ct", low=-1024, high=3000),) * len(channels),
    )
    return Predictor(members=(Member(model=Bright(), task=task),))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(-400, 500, shape).astype(np.int16)
    return np.where(values == 0, 1, values)


def grid(shape: tuple[int, int, int], *, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Geometry:
    return Geometry(shape=shape, spacing=SPACING, origin=origin, direction=tuple(np.eye(3).ravel()))


ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "prone": ((-1, 0, 0), (0, -1, 0)),
    "feet first": ((-1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((0.6, 0.64, 0.48), (-0.8, 0.48, 0.36)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_series_in_any_orientation(name: str, write_series: WriteSeries, tmp_path: Path) -> None:
    row, column = ORIENTATIONS[name]
    voxels = noise(5, 7, 6)
    series = write_series(tmp_path / "in", voxels=voxels, row=row, column=column, spacing=SPACING)
    (case,) = cases = find_scans(series, channels=("CT",))
    assert predict(cases, predictor=bright("CT"), out=tmp_path / "out").written == ("in",)
    found = read_labels(tmp_path / "out" / "in.nii.gz")
    assert np.array_equal(found.voxels, voxels > 0)
    assert found.geometry.same_grid(case.load().source)
    steps = 2 * np.cross(row, column) + 4 * np.array(column) + 5 * np.array(row)
    corner = np.array([-31, 12.5, 104]) + SPACING[0] * steps
    assert np.allclose(found.geometry.position((2, 4, 5)), corner, atol=1e-3)


@pytest.mark.parametrize(("kind", "file"), [("dicom-seg", "in.seg.dcm"), ("rtstruct", "in.rtstruct.dcm")])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_series_becomes_an_object_on_it(
    name: str, kind: str, file: str, write_series: WriteSeries, tmp_path: Path
) -> None:
    row, column = ORIENTATIONS[name]
    voxels = noise(5, 7, 6)
    cases = find_scans(
        write_series(tmp_path / "in", voxels=voxels, row=row, column=column, spacing=SPACING), channels=("CT",)
    )
    predict(cases, predictor=bright("CT"), out=tmp_path / "out", kind=kind)
    assert [path.name for path in (tmp_path / "out").glob("*in*")] == [file]
    (series,) = find_series(tmp_path / "in")
    ((_, mask),) = read_segments(tmp_path / "out" / file, scan=read_series(series), names={"bright": "bright"})
    assert np.array_equal(mask, voxels > 0)


@dataclass(frozen=True)
class Elsewhere:
    """A case from a reader of one's own."""

    case: Segmentable
    case_id: str = "own"

    def load(self) -> LoadedScan:
        return replace(self.case.load(), reference=None)


def test_objects_on_a_series_need_a_series(write_series: WriteSeries, tmp_path: Path) -> None:
    write_image(noise(4, 7, 6), geometry=grid((4, 7, 6)), path=tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"rtstruct refers to a DICOM series.*choose one of nii\.gz, nrrd, mha"):
        predict(find_scans(tmp_path, channels=("CT",)), predictor=bright("CT"), out=tmp_path / "out", kind="rtstruct")
    assert not (tmp_path / "out").exists(), "refused before any work"
    (case,) = find_scans(write_series(tmp_path / "in", voxels=noise(4, 7, 6)), channels=("CT",))
    done = predict([Elsewhere(case), case], predictor=bright("CT"), out=tmp_path / "out", kind="dicom-seg")
    assert done.written == ("in",) and "own did not come as one" in done.failures["own"]


def test_the_loaded_series_says_which_it_is(write_series: WriteSeries, tmp_path: Path) -> None:
    write_series(tmp_path, voxels=noise(4, 7, 6))
    (case,) = find_scans(tmp_path, channels=("anything",))
    reference = case.load().reference
    assert reference is not None
    files = [pydicom.dcmread(path) for path in reference.files]
    assert [item.InstanceNumber for item in files] == [1, 2, 3, 4]
    assert tuple(item.SOPInstanceUID for item in files) == reference.sop_uids


def test_a_damaged_series_does_not_stop_the_others(write_series: WriteSeries, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write_series(tmp_path / "in" / name, voxels=noise(4, 7, 6), patient=f"P{number}")
    (tmp_path / "in" / "notes.txt").write_text("not DICOM")
    next((tmp_path / "in" / "b").glob("*002.dcm")).unlink()
    done = predict(find_scans(tmp_path / "in", channels=("CT",)), predictor=bright("CT"), out=tmp_path / "out")
    assert done.written == ("a", "c")
    assert done.failures["b"].startswith("b: ") and "mm apart, most slices" in done.failures["b"]


def test_series_of_the_models_modality_are_chosen(write_series: WriteSeries, tmp_path: Path) -> None:
    for name, modality, kind in (("ct", "CT", "2"), ("mr", "MR", "4")):
        sop_class = f"1.2.840.10008.5.1.4.1.1.{kind}"
        write_series(tmp_path / name, voxels=noise(4, 7, 6), values={"Modality": modality, "SOPClassUID": sop_class})
    for path in (tmp_path / "mr").iterdir():
        item = pydicom.dcmread(path)
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID
        item.save_as(path)
    assert [case.case_id for case in find_scans(tmp_path, channels=("CT",))] == ["ct"]
    assert [case.case_id for case in find_scans(tmp_path, channels=("T1",))] == ["ct", "mr"]
    with pytest.raises(InputError, match="holds DICOM series, but none of modality CT, which the model expects"):
        find_scans(tmp_path / "mr", channels=("CT",))
    with pytest.raises(InputError, match=r"series of one channel each; the model expects 2 \(CT, PT\); convert them"):
        find_scans(tmp_path, channels=("CT", "PT"))


def test_scan_files_in_a_folder_come_before_series(write_series: WriteSeries, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", voxels=noise(4, 7, 6))
    assert isinstance(find_scans(tmp_path, channels=("CT",))[0], SeriesCase)
    write_image(noise(4, 7, 6), geometry=grid((4, 7, 6)), path=tmp_path / "a.nii.gz")
    assert find_scans(tmp_path, channels=("CT",)) == [ScanCase(case_id="a", images=(tmp_path / "a.nii.gz",))]
    with pytest.raises(InputError, match=r"is no scan; expected .*or the folder of a DICOM series"):
        find_scans(next(series.iterdir()), channels=("CT",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no scans; expected files that end with .*or DICOM series"):
        find_scans(tmp_path / "empty", channels=("CT",))


def rewrite(path: Path, *, start: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + len(content)] = content
    path.write_bytes(bytes(data))


def unusable(folder: Path) -> dict[str, str]:
    """Files that no model can segment, and what is said of each."""
    for name in ("huge", "skewed", "two_0000", "two_0001"):
        write_image(noise(4, 7, 6), geometry=grid((4, 7, 6)), path=folder / f"{name}.nii")
    rewrite(folder / "huge.nii", start=42, content=struct.pack("<h", 5000))
    # The row along x of the sform leans by a fifth into y.
    rewrite(folder / "skewed.nii", start=252, content=struct.pack("<2h", 0, 1))
    rewrite(folder / "skewed.nii", start=280, content=struct.pack("<4f", 2.0, 0.4, 0.0, 0.0))
    write_image(np.zeros((1, 1, 1), np.int16), geometry=grid((1, 1, 1)), path=folder / "tiny.nii")
    sitk.WriteImage(sitk.GetImageFromArray(noise(2, 4, 7, 6).astype(np.float32), isVector=False), folder / "time.nii")
    sitk.WriteImage(sitk.GetImageFromArray(noise(4, 7, 6, 2), isVector=True), folder / "vector.nrrd")
    (folder / "text.mha").write_text("no scan at all")
    (folder / "cut.nii.gz").write_bytes(b"\x1f\x8b")
    return {
        "huge": "huge.nii: dim",
        "skewed": "skewed.nii",
        "tiny": "tiny.nii: all voxels are 0",
        "time": "time.nii: dim",
        "vector": "vector.nrrd: sizes is",
        "text": "text.mha",
        "cut": "cut.nii.gz",
        "two": "two: found 2 channels (two_0000.nii, two_0001.nii), the model expects 1",
    }


def test_files_that_cannot_be_used_do_not_stop_the_others(tmp_path: Path) -> None:
    expected = unusable(tmp_path)
    for name, shape in (("good", (4, 7, 6)), ("small", (1, 2, 1)), ("thin", (30, 1, 2))):
        write_image(noise(*shape, seed=3), geometry=grid(shape), path=tmp_path / f"{name}.nii.gz")
    done = predict(find_scans(tmp_path, channels=("CT",)), predictor=bright("CT"), out=tmp_path / "out")
    assert done.written == ("good", "small", "thin")
    assert done.failures.keys() == expected.keys()
    for case_id, start in expected.items():
        assert done.failures[case_id].startswith(start), case_id
        assert "\n" not in done.failures[case_id]
    for name, shape in (("small", (1, 2, 1)), ("thin", (30, 1, 2))):
        found = read_labels(tmp_path / "out" / f"{name}.nii.gz").voxels
        assert np.array_equal(found, noise(*shape, seed=3) > 0)


def test_a_case_that_does_not_fit_fails_alone_among_others(tmp_path: Path) -> None:
    for name in ("a scan.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "c.nii.gz"):
        (tmp_path / name).touch()
    found = find_files(tmp_path, channels=("CT", "PT"))
    assert [type(case) for case in found] == [Misfit, ScanCase, Misfit]
    with pytest.raises(InputError, match="c: found 1 channels"):
        found[2].load()
    with pytest.raises(InputError, match="b: found 2 channels"):
        find_files(tmp_path / "b_0000.nii.gz", channels=("CT",))


def test_two_files_of_one_case_are_a_matter_of_that_case(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "b.nrrd", "c.nii.gz", "c_0000.nii.gz"):
        (tmp_path / name).touch()
    found = find_files(tmp_path, channels=("CT",))
    assert [type(case) for case in found] == [ScanCase, Misfit, Misfit]
    with pytest.raises(InputError, match=r"b: both b\.nii\.gz and b\.nrrd are there; expected one"):
        found[1].load()
    assert find_files(tmp_path / "a.nii.gz", channels=("CT",)) == found[:1]
    with pytest.raises(InputError, match=r"c: both c\.nii\.gz and c_0000\.nii\.gz are there"):
        find_files(tmp_path / "c.nii.gz", channels=("CT",))


def test_segmentations_of_slicer_are_no_scans(write_series: WriteSeries, tmp_path: Path) -> None:
    for name in ("a.nrrd", "a.seg.nrrd", "b.SEG.nrrd"):
        (tmp_path / name).touch()
    assert [case.case_id for case in find_scans(tmp_path, channels=("CT",))] == ["a"]
    with pytest.raises(InputError, match=r"a\.seg\.nrrd is no scan"):
        find_scans(tmp_path / "a.seg.nrrd", channels=("CT",))
    (tmp_path / "a.nrrd").unlink()
    write_series(tmp_path / "series", voxels=noise(4, 7, 6))
    assert isinstance(find_scans(tmp_path, channels=("CT",))[0], SeriesCase)


@pytest.mark.parametrize(("shift", "same"), [(0.0, True), (0.1, True), (0.2, False)])
def test_channels_lie_on_one_grid_but_for_the_rounding_of_headers(shift: float, same: bool, tmp_path: Path) -> None:
    """By the rule that a label map of a dataset is held to."""
    for number in range(2):
        place = grid((4, 7, 6), origin=(number * shift, 0.0, 0.0))
        write_image(noise(4, 7, 6, seed=number), geometry=place, path=tmp_path / f"p_{number:04d}.nii.gz")
    (case,) = find_files(tmp_path, channels=("CT", "PT"))
    if same:
        assert case.load().image.shape == (2, 4, 7, 6)
        return
    with pytest.raises(InputError, match=r"p: p_0001\.nii\.gz lies on another grid"):
        case.load()


def test_a_model_is_asked_for_its_own_number_of_channels(write_series: WriteSeries, tmp_path: Path) -> None:
    write_series(tmp_path, voxels=noise(4, 7, 6))
    cases = find_scans(tmp_path, channels=("CT",))
    done = predict(cases, predictor=bright("CT", "PT"), out=tmp_path / "out")
    assert "the image has 1 channels; the model expects ('CT', 'PT')" in done.failures[cases[0].case_id]
    assert not list((tmp_path / "out").iterdir())
