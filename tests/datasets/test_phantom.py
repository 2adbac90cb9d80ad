"""The phantom is the same for the same seed, overlaps, and has left on the left in every file orientation."""

import json
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.readers import Scan, read_labels, read_scan
from segsweep.data.reading import read_case
from segsweep.errors import InputError
from segsweep.recipes import load

phantom = load("datasets", name="phantom")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    phantom.make(folder)
    return folder


def masks(source: CaseSource) -> dict[str, np.ndarray]:
    """Canonical masks (z, y, x) by structure."""
    found: dict[str, np.ndarray] = {}
    for file in source.labels:
        assert isinstance(file, LabelFile)
        scan = read_labels(file.path)
        for value, names in file.values.items():
            for name in names:
                part = scan.geometry.reorientation.apply(scan.voxels == value)
                found[name] = found.get(name, np.zeros_like(part)) | part
    return found


def canonical(path: Path) -> np.ndarray:
    scan = read_scan(path)
    return scan.geometry.reorientation.apply(scan.voxels)


def letters(scan: Scan) -> str:
    turn = scan.geometry.reorientation
    names = ["SI"[turn.flips[0]], "PA"[turn.flips[1]], "LR"[turn.flips[2]]]
    return "".join(names[turn.axes.index(axis)] for axis in (2, 1, 0))


def test_splits_and_annotation(raw: Path) -> None:
    sources = phantom.cases(raw)
    assert [source.case_id for source in sources] == [f"phantom_{number:03d}" for number in range(16)]
    held_out = [source for source in sources if source.split == "validation"]
    train = [source for source in sources if source.split == "train"]
    assert (len(train), len(held_out)) == (12, 4)
    assert all(source.annotated == phantom.LABELS.structures for source in held_out)
    assert sum(not source.annotated for source in train) == 2
    assert sum(0 < len(source.annotated) < len(phantom.LABELS.structures) for source in train) == 2


def test_files_differ_in_orientation_and_agree_within_a_case(raw: Path) -> None:
    kinds, oblique = set(), 0
    for source in phantom.cases(raw):
        scans = [read_scan(path) for path in source.images] + [read_labels(file.path) for file in source.labels]
        assert all(scan.geometry.same_grid(scans[0].geometry) for scan in scans)
        kinds.add(letters(scans[0]))
        oblique += bool(np.abs(np.abs(scans[0].geometry.direction) - 0.5).min() < 0.49)
    assert kinds == {"LPS", "RAS", "PIR", "LAS"}
    assert oblique == 3


def test_left_is_left_and_all_annotated_is_there(raw: Path) -> None:
    for source in phantom.cases(raw):
        found = masks(source)
        assert set(found) == set(source.annotated)
        assert all(mask.sum() > 50 for mask in found.values())
        for left, right in phantom.LABELS.pairs:
            if left in found:
                assert np.nonzero(found[left])[2].mean() > np.nonzero(found[right])[2].mean() + 5


def test_head_is_up_and_nose_in_front(raw: Path) -> None:
    for source in phantom.cases(raw):
        found = masks(source)
        if "Brain" in found:
            assert np.nonzero(found["Brain"])[0].mean() > np.nonzero(found["Larynx"])[0].mean()
            assert np.nonzero(found["Eye_L"])[1].mean() < np.nonzero(found["BrainStem"])[1].mean()


def test_structures_overlap(raw: Path) -> None:
    touching = 0
    for source in phantom.cases(raw):
        found = masks(source)
        if "Brain" in found:
            assert not (found["BrainStem"] & ~found["Brain"]).any()
        if {"GTVp", "OralCavity"} <= set(found):
            touching += bool((found["GTVp"] & found["OralCavity"]).any())
    assert touching >= 8


def test_tumour_shows_with_contrast(raw: Path) -> None:
    for source in phantom.cases(raw)[:4]:
        tumour = masks(source)["GTVp"]
        plain, enhanced = (canonical(path)[tumour].mean() for path in source.images)
        assert enhanced > plain + 80


def test_voxels_are_hounsfield_units(raw: Path) -> None:
    source = phantom.cases(raw)[2]
    image, found = canonical(source.images[0]), masks(source)
    assert image.dtype == np.int16
    assert image[found["Mandible"]].mean() > 400
    assert image[found["Trachea"]].mean() < -600
    assert 20 < image[found["Brain"]].mean() < 60


def test_same_seed_same_bytes_other_seed_other_voxels(raw: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    phantom.make(tmp_path / "again", cases=3, progress=lambda *step: seen.append(step))
    phantom.make(tmp_path / "other", cases=3, seed=1)
    assert seen == [("phantom", 1, 3), ("phantom", 2, 3), ("phantom", 3, 3)]
    for path in (tmp_path / "again").rglob("*.nii.gz"):
        name = path.relative_to(tmp_path / "again")
        assert path.read_bytes() == (raw / name).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cases\.json"):
        phantom.cases(tmp_path / "absent")
    phantom.make(tmp_path, cases=1)
    (tmp_path / "images" / "phantom_000_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case phantom_000: phantom_000_0001\.nii\.gz is not there"):
        read_case(phantom.cases(tmp_path)[0], labels=phantom.LABELS)


@pytest.mark.parametrize(
    "content",
    [
        "rubbish",
        "[]",
        "{}",
        '{"cases": 3}',
        json.dumps({"cases": [{"id": "../../etc", "split": "train", "annotated": []}]}),
        json.dumps({"cases": [{"id": 7, "split": "train", "annotated": []}]}),
        json.dumps({"cases": [{"id": "a", "split": "elsewhere", "annotated": []}]}),
        json.dumps({"cases": [{"id": "a", "split": "train", "annotated": ["Heart"]}]}),
        json.dumps({"cases": []}),
    ],
)
def test_damaged_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(content)
    with pytest.raises(InputError, match=r"cases\.json"):
        phantom.cases(tmp_path)


def test_no_cases_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cases=0"):
        phantom.make(tmp_path, cases=0)
