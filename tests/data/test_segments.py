"""Named segments are read by what the file is, and become a case's masks beside its other labels."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import slicerio

from segsweep.data.case import CaseSource, SegmentFile, Series
from segsweep.data.dicom import find_series, read_series
from segsweep.data.reading import read_case
from segsweep.data.segments import read_segments, segment_names
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

REAL = Path(slicerio.__file__).parent / "data"
SEG = Path(__file__).resolve().parents[3] / "shared" / "data" / "dcmqi_seg"
BOX = (slice(1, 4), slice(2, 7), slice(3, 8))


def test_rtstruct(write_patient: Callable[..., Path], tmp_path: Path) -> None:
    path = write_patient(tmp_path, rois={"Brain Stem": BOX, "Eye": (slice(0, 1), slice(0, 2), slice(0, 2))})
    (series,) = find_series(tmp_path)
    assert segment_names(path) == ("Brain Stem", "Eye")
    ((structure, mask),) = read_segments(path, scan=read_series(series), names={"Brain Stem": "Brainstem"})
    expected = np.zeros((6, 12, 10), dtype=bool)
    expected[BOX] = True
    assert structure == "Brainstem"
    np.testing.assert_array_equal(mask, expected)


def test_a_case_of_a_nrrd_scan_with_overlapping_segments() -> None:
    path = REAL / "SegmentationOverlapping.seg.nrrd"
    labels = LabelSet(structures=("left lung", "right lung", "sphere"))
    names = {"left lung": "left lung", "right lung": "right lung", "overlapping sphere": "sphere"}
    source = CaseSource(
        case_id="chest", images=(REAL / "CTChest4.nrrd",), labels=(SegmentFile(path=path, names=names),)
    )
    raw = read_case(source, labels=labels)
    theirs = slicerio.read_segmentation(str(path))
    for name, structure in names.items():
        mask = raw.masks[labels.structures.index(structure)]
        np.testing.assert_array_equal(mask.T, slicerio.segment_mask(theirs, name), err_msg=name)
    assert len(raw.digests) == 2


@pytest.mark.skipif(not SEG.is_dir(), reason="the dcmqi example is not here")
def test_a_case_of_a_dicom_series_with_a_seg() -> None:
    source = CaseSource(
        case_id="liver",
        images=(Series(files=tuple((SEG / "ct-3slice").glob("*.dcm"))),),
        labels=(SegmentFile(path=SEG / "liver.dcm", names={"Liver": "liver"}),),
    )
    raw = read_case(source, labels=LabelSet(structures=("liver",)))
    assert int(raw.masks[0].sum()) == 107098
    assert 20 < np.mean(raw.images[0][raw.masks[0]]) < 200


def test_a_file_that_is_cut_off_never_gives_fewer_structures(
    write_patient: Callable[..., Path], tmp_path: Path
) -> None:
    """pydicom takes what is there of a file: cut between two structures, one would be missing without a word."""
    names = {"Heart": "Heart", "Eye": "Eye"}
    path = write_patient(tmp_path, rois={"Heart": BOX, "Eye": (slice(0, 1), slice(0, 2), slice(0, 2))})
    scan, whole = read_series(find_series(tmp_path)[0]), path.read_bytes()
    assert len(list(read_segments(path, scan=scan, names=names))) == 2
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"rs\.dcm"):
            list(read_segments(path, scan=scan, names=names))


def test_what_is_no_segmentation(write_patient: Callable[..., Path], tmp_path: Path) -> None:
    write_patient(tmp_path, rois={})
    with pytest.raises(InputError, match=r"slice_1_0\.dcm is DICOM of another modality"):
        segment_names(tmp_path / "CT" / "slice_1_0.dcm")
    with pytest.raises(InputError, match=r"CTChest4\.nrrd is no DICOM file or a damaged one; expected RTSTRUCT"):
        segment_names(REAL / "CTChest4.nrrd")
    with pytest.raises(InputError, match=r"absent\.dcm is not there"):
        segment_names(tmp_path / "absent.dcm")
    shutil.copy(REAL / "CTChest4.nrrd", tmp_path / "scan.seg.nrrd")
    with pytest.raises(InputError, match=r"scan\.seg\.nrrd: its header names no segments"):
        segment_names(tmp_path / "scan.seg.nrrd")
