"""Odd files, broken cases and a broken dataset.json: each is refused in one sentence that names file or case, and the others go on.

The formats' own faults are in test_intake.py (NIfTI), test_intake_text.py (NRRD, MetaImage), test_dicom.py, test_rtstruct.py,
test_dicom_seg.py and test_segmented_nrrd.py.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from segsweep import cli
from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.dataset import describe
from segsweep.data.dicom import find_series
from segsweep.data.geometry import Geometry
from segsweep.data.readers import read_scan
from segsweep.data.reading import read_case
from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError
from segsweep.inference.writers import write_image, write_label_map

VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
SCAN = (
    b"NRRD0004\ntype: uint8\ndimension: 3\nspace: LPS\nsizes: 6 5 4\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
    b"encoding: raw\nspace origin: (0,0,0)\n\n" + bytes(range(120))
)
LABELS = LabelSet(structures=("liver",))
GRID = Geometry(shape=(4, 5, 6), spacing=(3, 2, 2), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.nii.gz")
    return folder / "a.nii.gz"


def circle(folder: Path) -> Path:
    (folder / "a.nrrd").symlink_to(folder / "b.nrrd")
    (folder / "b.nrrd").symlink_to(folder / "a.nrrd")
    return folder / "a.nrrd"


def made(folder: Path, name: str, content: bytes = b"") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def made_folder(path: Path) -> Path:
    path.mkdir()
    return path


ODD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "not there": (lambda folder: folder / "a.nrrd", "is not there"),
    "a folder": (lambda folder: made_folder(folder / "a.nii.gz"), "is no file"),
    "a named pipe": (fifo, "is no file"),
    "a device": (lambda folder: _link(folder / "a.nii", Path("/dev/zero")), "is no file"),
    "links in a circle": (circle, "is not there"),
    "a broken link": (lambda folder: _link(folder / "a.mha", folder / "gone"), "is not there"),
    "below a file": (lambda folder: made(folder, "x") / "a.nrrd", "is not there"),
    "a name that is not UTF-8": (lambda folder: made(folder, os.fsdecode(b"a\xff.nrrd"), SCAN), "UTF-8"),
    "a name of two lines": (lambda folder: made(folder, "a\nb.nrrd", SCAN), "printable"),
    "a name that is shown backwards": (lambda folder: made(folder, "a\u202eb.nrrd", SCAN), "printable"),
    "a name that is too long": (lambda folder: folder / f"{'a' * 5000}.nrrd", "cannot be read"),
    "no suffix": (lambda folder: made(folder, "a", SCAN), "expected a name that ends with"),
    "an archive": (lambda folder: made(folder, "a.zip", b"PK"), "expected a name that ends with"),
    "NRRD named NIfTI": (lambda folder: made(folder, "a.nii", SCAN * 2), "sizeof_hdr"),
    "NIfTI named MetaImage": (lambda folder: made(folder, "a.mha", b"\x5c\1\0\0" + bytes(500)), "without an end"),
}


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_scan(path)
    message = str(caught.value)
    assert path.name in message or repr(path.name)[1:-1] in message
    assert message.isprintable(), "one line that every terminal can show"
    return message


@pytest.mark.parametrize("kind", ODD_FILES)
def test_an_odd_file_is_refused_and_never_waited_for(kind: str, tmp_path: Path) -> None:
    make, fragment = ODD_FILES[kind]
    assert fragment in refused(make(tmp_path))


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = made(tmp_path, "a.nrrd", SCAN)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # to whom no file is closed
        os.seteuid(65534)
    try:
        assert "Permission denied" in refused(path)
    finally:
        os.seteuid(user)


def test_a_catalogue_of_dicom_files_leads_nowhere(dicom: Any, tmp_path: Path) -> None:
    series = dicom.series("root/series")
    record = Dataset()
    record.ReferencedFileID = ["..", "secret"]
    catalogue = Dataset()
    catalogue.SOPClassUID, catalogue.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.5"
    catalogue.DirectoryRecordSequence = [record]
    dicom.write(catalogue, "root/DICOMDIR")
    shutil.copy(series.files[0], tmp_path / "secret")
    assert find_series(tmp_path / "root") == (series,)


def swap_axes(folder: Path) -> None:
    turned = Geometry(shape=(6, 5, 4), spacing=(3, 2, 2), origin=(0, 0, 0), direction=GRID.direction)
    write_label_map(np.ones((6, 5, 4), np.uint8), geometry=turned, path=folder / "label.nii.gz")


def turn_left_and_right(folder: Path) -> None:
    turned = Geometry(shape=(4, 5, 6), spacing=(3, 2, 2), origin=(0, 0, 0), direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    write_label_map(np.ones((4, 5, 6), np.uint8), geometry=turned, path=folder / "label.nii.gz")


def link_out(folder: Path) -> None:
    path = (folder / "image.nii.gz").rename(folder.parent / "image.nii.gz")
    (folder / "image.nii.gz").symlink_to(path)


BROKEN_CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no label": (lambda folder: (folder / "label.nii.gz").unlink(), "label.nii.gz is not there"),
    "no image": (lambda folder: (folder / "image.nii.gz").unlink(), "image.nii.gz is not there"),
    "the label's axes swapped": (swap_axes, "another grid than the image: it has (6, 5, 4) voxels"),
    "the label's left and right turned": (turn_left_and_right, "corners up to 10.00 mm away"),
    "the image linked from outside": (link_out, "image.nii.gz is a link that leads out of raw/"),
    "an unknown value": (
        lambda folder: write_label_map(np.full((4, 5, 6), 7, np.uint8), geometry=GRID, path=folder / "label.nii.gz"),
        "holds label value 7",
    ),
    "the label is the image": (
        lambda folder: shutil.copy(folder / "image.nii.gz", folder / "label.nii.gz"),
        "label.nii.gz",
    ),
    "the image is the label": (
        lambda folder: shutil.copy(folder / "label.nii.gz", folder / "image.nii.gz"),
        "all voxels are 1",
    ),
}


@pytest.mark.parametrize("fault", BROKEN_CASES)
def test_a_broken_case_is_named_with_its_file(fault: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_image(VOXELS - 500, geometry=GRID, path=raw / "image.nii.gz")
    write_label_map(np.ones((4, 5, 6), np.uint8), geometry=GRID, path=raw / "label.nii.gz")
    file = LabelFile(path=raw / "label.nii.gz", values={1: ("liver",)})
    source = CaseSource(case_id="p1", images=(raw / "image.nii.gz",), labels=(file,), root=raw)
    assert read_case(source, labels=LABELS).masks[0].all()
    break_it, fragment = BROKEN_CASES[fault]
    break_it(raw)
    with pytest.raises(InputError) as caught:
        read_case(source, labels=LABELS)
    message = str(caught.value)
    assert message.startswith("case p1: ") and fragment in message and message.isprintable()


BROKEN_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "dataset.json cannot be used"),
    "no UTF-8": (b'{"labels": "\xff"}', "dataset.json cannot be used"),
    "a list": (b"[]", "no JSON object"),
    "null": (b"null", "no JSON object"),
    "cut off": (b'{"labels": {"0": "back', "dataset.json cannot be used"),
    "11 MB": (b'{"a": "' + b"x" * 11 * 2**20 + b'"}', "bytes"),
    "nested 100,000 deep": (b'{"a":' * 100_000, "dataset.json cannot be used"),
    "nested 40 deep": (b'{"a":' * 40 + b"1" + b"}" * 40, "nested too deep"),
    "a key twice": (b'{"labels": {"0": "background"}, "labels": {}}', "'labels' is there twice"),
    "a structure twice": (b'{"labels": {"background": 0, "liver": 1, "liver": 2}}', "'liver' is there twice"),
    "no labels": (b"{}", "there is no 'labels'"),
    "labels in a list": (b'{"labels": ["background", "liver"]}', "'labels' is"),
}


@pytest.mark.parametrize("fault", BROKEN_JSON)
@pytest.mark.parametrize("recipe", ["decathlon", "nnunet_raw"])
def test_a_broken_dataset_json_is_refused(recipe: str, fault: str, tmp_path: Path) -> None:
    content, fragment = BROKEN_JSON[fault]
    made(tmp_path, "dataset.json", content)
    with pytest.raises(InputError) as caught:
        describe(recipe, raw=tmp_path)
    assert fragment in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.usefixtures("cluster")
def test_bad_cases_do_not_stop_good_ones(
    okbp_raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listing = json.loads((okbp_raw / "cases.json").read_text())
    for number in range(2, 7):
        name = f"okbp_{number:03d}"
        for folder in ("images", "labels"):
            shutil.copy(okbp_raw / folder / "okbp_000.nii.gz", okbp_raw / folder / f"{name}.nii.gz")
        listing["cases"].append({"id": name, "upstream_split": "train"})
    (okbp_raw / "cases.json").write_text(json.dumps(listing))
    images, labels = okbp_raw / "images", okbp_raw / "labels"
    (images / "okbp_003.nii.gz").unlink()
    (labels / "okbp_004.nii.gz").write_bytes((labels / "okbp_004.nii.gz").read_bytes()[:-9])
    (images / "okbp_005.nii.gz").unlink()
    os.mkfifo(images / "okbp_005.nii.gz")
    shutil.copy(labels / "okbp_001.nii.gz", labels / "okbp_006.nii.gz")
    assert cli.main(["convert", "openkbp", str(okbp_raw), "--store", "store"]) == 2
    shown = capfd.readouterr()
    assert "3 cases written, 0 kept, 4 failed" in shown.out
    failures = [line for line in shown.err.splitlines() if "case okbp_" in line]
    expected = {"003": "is not there", "004": "compressed stream", "005": "is no file", "006": "on another grid"}
    for line, (number, reason) in zip(sorted(failures), expected.items(), strict=True):
        assert f"case okbp_{number}: okbp_{number}.nii.gz" in line and reason in line
    assert "Traceback" not in shown.err + shown.out
    assert sorted(open_store(tmp_path / "store").cases) == ["okbp_000", "okbp_001", "okbp_002"]
    assert {path.name for path in (tmp_path / "store" / "cases").iterdir()} == {"okbp_000", "okbp_001", "okbp_002"}
