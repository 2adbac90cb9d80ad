"""A plain folder: label maps with labels.json, or a mask a structure; channels by number; what is annotated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slicerio

from segsweep.data.building import build_case
from segsweep.data.case import LabelFile, MaskFile
from segsweep.data.dataset import describe
from segsweep.data.readers import read_labels, read_scan
from segsweep.data.segments import read_segments, segment_names
from segsweep.errors import InputError
from segsweep.inference.writers import write_label_map

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "openkbp_hn"

SLICER = Path(slicerio.__file__).parent / "data"
STRUCTURES = {"Lungs": [2, 3], "Heart": 1, "Lung_L": 2, "Lung_R": 3}


def state(raw: Path, **content: Any) -> None:
    (raw / "labels.json").write_text(json.dumps(content))


@pytest.fixture
def maps(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    """Three scans, two of them with a label map."""
    for name in ("a", "b_0001", "c"):
        write(f"images/{name}.nii.gz")
    write("labels/a.nrrd", 1, 2, 2, 3)
    write("labels/b_0001.nii.gz", 1)
    junk("images", "labels")
    state(tmp_path, structures=STRUCTURES)
    return tmp_path


@pytest.fixture
def masks(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    """Three scans, two of them with masks."""
    for name in ("a", "b", "c"):
        write(f"images/{name}.nii.gz")
    write("labels/a/Heart.nii.gz", 1, 1, 1)
    write("labels/a/Aorta.nii.gz", 0, 0, 5)
    write("labels/b/Heart.nii.gz", 1)
    junk("images", "labels/a")
    return tmp_path


def test_label_maps(maps: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("nifti_folder", raw=maps)
    assert dataset.labels.structures == ("Lungs", "Heart", "Lung_L", "Lung_R")
    assert dataset.labels.pairs == (("Lung_L", "Lung_R"),)
    assert dataset.channels == ("CT",)
    assert [case.case_id for case in dataset.cases] == ["a", "b_0001", "c"]
    assert [len(case.annotated) for case in dataset.cases] == [4, 4, 0]
    assert voxels(dataset, "a") == {"Lungs": 3, "Heart": 1, "Lung_L": 2, "Lung_R": 1}


def test_background_may_be_named(maps: Path) -> None:
    state(maps, structures={"background": 0, **STRUCTURES})
    assert describe("nifti_folder", raw=maps).labels.structures == ("Lungs", "Heart", "Lung_L", "Lung_R")


def test_pairs_as_stated(maps: Path) -> None:
    structures = {"Ventricle_L": 1, "Ventricle_R": 2, "Eye_L": 3, "Eye_R": 3}
    state(maps, structures=structures)
    assert describe("nifti_folder", raw=maps).labels.pairs == (("Eye_L", "Eye_R"),)
    state(maps, structures=structures, pairs=[["Ventricle_L", "Ventricle_R"]])
    assert describe("nifti_folder", raw=maps).labels.pairs == (("Ventricle_L", "Ventricle_R"),)


def test_annotated_case_by_case(maps: Path, voxels: Callable[..., dict[str, int]]) -> None:
    state(maps, structures=STRUCTURES, annotated={"a": ["Heart", "Lung_L"], "b_0001": []})
    dataset = describe("nifti_folder", raw=maps)
    assert [case.annotated for case in dataset.cases] == [("Heart", "Lung_L"), (), ()]
    assert dataset.cases[0].labels == (
        LabelFile(path=maps / "labels" / "a.nrrd", values={1: ("Heart",), 2: ("Lung_L",), 3: ()}),
    )
    assert dataset.cases[1].labels == ()
    assert voxels(dataset, "a") == {"Heart": 1, "Lung_L": 2}


def test_what_is_stated_of_no_case_or_of_no_label_map(maps: Path, voxels: Callable[..., dict[str, int]]) -> None:
    state(maps, structures=STRUCTURES, annotated={"a": ["Heart"], "scan_b": ["Heart"]})
    with pytest.raises(
        InputError, match=r"labels\.json: 'annotated': no 'scan_b' among cases \(there are: a, b_0001, c\)"
    ):
        describe("nifti_folder", raw=maps)
    state(maps, structures=STRUCTURES, annotated={"c": ["Heart"]})
    dataset = describe("nifti_folder", raw=maps)
    assert voxels(dataset, "a") == {"Lungs": 3, "Heart": 1, "Lung_L": 2, "Lung_R": 1}
    with pytest.raises(InputError, match=r"c\.nii\.gz is not there \(in .*labels\)"):
        voxels(dataset, "c")


def test_masks(masks: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("nifti_folder", raw=masks)
    assert dataset.labels.structures == ("Aorta", "Heart")
    assert [case.annotated for case in dataset.cases] == [("Aorta", "Heart"), ("Heart",), ()]
    assert dataset.cases[1].labels == (MaskFile(path=masks / "labels" / "b" / "Heart.nii.gz", structure="Heart"),)
    assert voxels(dataset, "a") == {"Aorta": 1, "Heart": 3}
    record = build_case(dataset.cases[0], labels=dataset.labels, folder=masks / "store" / "a")
    assert [tuple(atom) for atom in record["atoms"]] == [(), (1,), (0, 1)]


def test_masks_that_are_not_there_may_count_as_empty(masks: Path) -> None:
    state(masks, annotated="all", structures={"Liver": 1}, channels=["MR"])
    dataset = describe("nifti_folder", raw=masks)
    assert dataset.labels.structures == ("Liver", "Aorta", "Heart")
    assert dataset.channels == ("MR",)
    assert [len(case.annotated) for case in dataset.cases] == [3, 3, 0]
    state(masks, annotated={"c": ["Heart"]})
    empty = describe("nifti_folder", raw=masks).cases[2]
    assert (empty.case_id, empty.annotated, empty.labels) == ("c", ("Heart",), ())


def test_segmentations_of_slicer(masks: Path, voxels: Callable[..., dict[str, int]]) -> None:
    """Segments may overlap, and name their structures; a damaged file or a link out of the folder fails its case alone."""
    for name in ("c", "d"):
        shutil.copy(SLICER / "CTChest4.nrrd", masks / "images" / f"{name}.nrrd")
    (masks / "images" / "c.nii.gz").unlink()
    shutil.copy(SLICER / "SegmentationOverlapping.seg.nrrd", masks / "labels" / "c.seg.nrrd")
    (masks / "labels" / "d.seg.nrrd").symlink_to(SLICER / "SegmentationOverlapping.seg.nrrd")
    (masks / "labels" / "a.seg.nrrd").write_bytes(b"NRRD0004\n")
    shutil.rmtree(masks / "labels" / "a")
    dataset = describe("nifti_folder", raw=masks)
    names = tuple(segment_names(masks / "labels" / "c.seg.nrrd"))
    assert set(dataset.labels.structures) == {"Heart", *names}
    case = dataset.cases[2]
    assert (case.case_id, set(case.annotated)) == ("c", set(names))
    expected = read_segments(
        masks / "labels" / "c.seg.nrrd",
        scan=read_scan(masks / "images" / "c.nrrd"),
        names={name: name for name in names},
    )
    assert voxels(dataset, "c") == {name: int(mask.sum()) for name, mask in expected}
    with pytest.raises(InputError, match=r"case a: a\.seg\.nrrd"):
        voxels(dataset, "a")
    with pytest.raises(InputError, match=r"case d: d\.seg\.nrrd is a link that leads out"):
        voxels(dataset, "d")
    assert voxels(dataset, "b") == {"Heart": 1}


def test_a_segmentation_in_capitals_or_among_masks(masks: Path, voxels: Callable[..., dict[str, int]]) -> None:
    shutil.copy(SLICER / "CTChest4.nrrd", masks / "images" / "d.nrrd")
    moved = Path(shutil.copy(SLICER / "Segmentation.seg.nrrd", masks / "labels" / "d.SEG.NRRD"))
    names = segment_names(moved)
    dataset = describe("nifti_folder", raw=masks)
    assert set(voxels(dataset, "d")) == set(names) and len(names) == 7
    moved.rename(masks / "labels" / "a" / "Segmentation.seg.nrrd")
    with pytest.raises(
        InputError, match=r"labels/a/Segmentation\.seg\.nrrd holds named segments; .* labels/a\.seg\.nrrd"
    ):
        describe("nifti_folder", raw=masks)


def test_a_mask_that_is_there_twice(masks: Path, write: Callable[..., Path]) -> None:
    write("labels/a/Heart.mha", 1)
    with pytest.raises(InputError, match="Heart is there twice"):
        describe("nifti_folder", raw=masks)


def test_channels(tmp_path: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        write(f"images/{name}.nii.gz")
    write("labels/a/Heart.nii.gz", 1)
    state(tmp_path, channels=["CT", "PET"])
    dataset = describe("nifti_folder", raw=tmp_path)
    assert dataset.channels == ("CT", "PET")
    assert [(case.case_id, len(case.images)) for case in dataset.cases] == [("a", 2), ("b", 2)]
    (tmp_path / "images" / "a_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case a: a_0001\.nii\.gz is not there"):
        voxels(describe("nifti_folder", raw=tmp_path), "a")
    (tmp_path / "images" / "b_0001.nii.gz").rename(tmp_path / "images" / "b_0002.nii.gz")
    with pytest.raises(InputError, match=r"b: has channels \[0, 2\]"):
        describe("nifti_folder", raw=tmp_path)
    (tmp_path / "images" / "b_0002.nii.gz").unlink()
    state(tmp_path)
    assert [case.case_id for case in describe("nifti_folder", raw=tmp_path).cases] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Heart": 1}, "'Heart' means nothing; expected structures, pairs, channels, annotated"),
        ({}, "there is no 'structures'"),
        ({"structures": {"background": 1, "Heart": 0}}, "'Heart' has the value '0'"),
        ({"structures": {"Heart": "1"}}, "'Heart' has the value '1'"),
        ({"structures": STRUCTURES, "channels": "CT"}, "'channels' is"),
        ({"structures": STRUCTURES, "channels": []}, "no structures or no channels"),
        ({"structures": STRUCTURES, "channels": [3]}, "'3' cannot be a name"),
        ({"structures": STRUCTURES, "pairs": ["Lung_L"]}, r"no list of \[left, right\]"),
        ({"structures": STRUCTURES, "annotated": "most"}, "'annotated' is 'most'"),
        ({"structures": STRUCTURES, "annotated": {"a": ["Liver"]}}, "a is annotated for 'Liver'"),
        ({"structures": STRUCTURES, "annotated": {"a": "Heart"}}, "'a' is 'Heart'"),
    ],
)
def test_a_labels_json_that_does_not_fit(content: dict[str, Any], message: str, maps: Path) -> None:
    state(maps, **content)
    with pytest.raises(InputError, match=message):
        describe("nifti_folder", raw=maps)


def test_labels_that_fit_no_scan(maps: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]) -> None:
    write("labels/c/Heart.nii.gz", 1)
    write("labels/c.nii.gz", 1)
    with pytest.raises(InputError, match="c: has labels of 2 kinds; expected one, a label map"):
        describe("nifti_folder", raw=maps)
    (maps / "labels" / "c.nii.gz").unlink()
    (maps / "images" / "c.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case c: c\.nii\.gz is not there"):
        voxels(describe("nifti_folder", raw=maps), "c")
    (maps / "images" / "c.hdr").write_bytes(b"")
    with pytest.raises(InputError, match=r"case c: c\.hdr is no scan that can be read; expected a name that ends with"):
        voxels(describe("nifti_folder", raw=maps), "c")
    for path in (maps / "images").iterdir():
        path.rename(path.with_name(f"scan_{path.name}"))
    with pytest.raises(InputError, match="names in labels/ is that of a scan"):
        describe("nifti_folder", raw=maps)
    (maps / "labels.json").unlink()
    with pytest.raises(InputError, match=r"no labels\.json"):
        describe("nifti_folder", raw=maps)


def test_a_name_that_is_no_case_id(maps: Path, write: Callable[..., Path]) -> None:
    write("images/my scan.nii.gz")
    with pytest.raises(InputError, match=r"case id 'my scan' cannot be used; .*; rename the case's files"):
        describe("nifti_folder", raw=maps)


@pytest.mark.skipif(not DATA.is_dir(), reason="the OpenKBP scans are not here")
def test_a_real_case_is_the_same_from_three_layouts(tmp_path: Path) -> None:
    """An OpenKBP case as it is, as nnU-Net's raw folder, and as a mask a structure: the same voxels of the same structures."""
    described = describe("openkbp", raw=DATA)
    case, names = described.cases[0], described.labels.structures
    image, label = case.images[0], case.labels[0]
    assert isinstance(image, Path) and isinstance(label, LabelFile)
    nnunet, plain = tmp_path / "Dataset001_OpenKBP", tmp_path / "plain"
    for source, target in (
        (image, nnunet / "imagesTr" / f"{case.case_id}_0000.nii.gz"),
        (label.path, nnunet / "labelsTr" / f"{case.case_id}.nii.gz"),
        (image, plain / "images" / f"{case.case_id}.nii.gz"),
    ):
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
    values = {name: value for value, (name,) in label.values.items()}
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **values}, "file_ending": ".nii.gz"}
    (nnunet / "dataset.json").write_text(json.dumps(content))
    scan = read_labels(label.path)
    for name, value in values.items():
        mask = (scan.voxels == value).astype("uint8")
        write_label_map(mask, geometry=scan.geometry, path=plain / "labels" / case.case_id / f"{name}.nii.gz")
    counts = []
    for recipe, raw in (("openkbp", DATA), ("nnunet_raw", nnunet), ("nifti_folder", plain)):
        dataset = describe(recipe, raw=raw)
        record = build_case(dataset.cases[0], labels=dataset.labels, folder=tmp_path / "store" / recipe / case.case_id)
        atoms = [tuple(dataset.labels.structures[index] for index in atom) for atom in record["atoms"]]
        counts.append(dict(zip(atoms, record["voxels"], strict=True)))
        assert set(dataset.labels.structures) == set(names) and len(dataset.labels.pairs) == 1
    assert counts[0] == counts[1] == counts[2] and len(counts[0]) == 8
