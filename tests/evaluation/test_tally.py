"""What happens to cases that are missing, damaged, on another grid, or hold something unexpected: named, and nothing else is lost."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError, StorageAwayError, StoreError
from segsweep.evaluation.evaluation import Evaluation, Options, evaluate
from segsweep.evaluation.sources import StoreLabels, open_folder
from segsweep.evaluation.tally import Readable
from segsweep.inference.writers import write_label_map

GRID = Geometry(
    shape=(8, 9, 10), spacing=(2.0, 1.0, 1.5), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
)
LABELS = {"GTVp": 1, "GTVnd": 2}


def tumour(*, nodes: int = 2) -> NDArray[np.uint8]:
    """A primary tumour and up to two nodes."""
    label = np.zeros(GRID.shape, dtype=np.uint8)
    label[2:5, 2:5, 2:5] = 1
    for node in range(nodes):
        label[6:8, 6:8, 4 * node : 4 * node + 2] = 2
    return label


def write_floats(path: Path, *, label: NDArray) -> None:
    """As some programs store label maps."""
    image = sitk.GetImageFromArray(label.astype(np.float32))
    image.SetSpacing(GRID.spacing[::-1])
    sitk.WriteImage(image, path)


def write(path: Path, *, maps: dict[str, NDArray], labels: dict | None = LABELS, grid: Geometry = GRID) -> Path:
    """A folder of label maps."""
    for case, label in maps.items():
        write_label_map(label, geometry=grid, path=path / f"{case}.nii.gz")
    if labels:
        (path / "labels.json").write_text(json.dumps(labels))
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Four cases."""
    return write(tmp_path / "reference", maps={name: tumour() for name in "abcd"})


def run(tmp_path: Path, *, predictions: Path, reference: Path, profile: str, **options: object) -> Evaluation:
    """Into `out`."""
    return evaluate(
        predictions,
        reference=reference,
        profile=profile,
        out=tmp_path / "out",
        options=Options(**options),  # type: ignore[arg-type]
    )


def broken(tmp_path: Path) -> Path:
    """One good prediction, one cut off, one on another grid, none of d, and one that nothing refers to."""
    path = write(tmp_path / "p", maps={"a": tumour(), "b": tumour(), "stranger": tumour()})
    write(path, maps={"c": tumour()}, grid=replace(GRID, origin=(5.0, 0.0, 0.0)))
    whole = (path / "b.nii.gz").read_bytes()
    (path / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize(("profile", "cases"), [("plain", {"a"}), ("segrap2023_gtv", {"a", "b", "c", "d"})])
def test_files_that_cannot_be_used_are_missing_cases(
    tmp_path: Path, reference: Path, profile: str, cases: set[str]
) -> None:
    found = run(tmp_path, predictions=broken(tmp_path), reference=reference, profile=profile)
    assert {score.case for score in found.scores["p"]} == cases
    assert all(score.dice == (score.case == "a") for score in found.scores["p"])
    assert found.summary["missing_cases"] == {"p": ["b", "c", "d"]}
    assert list(found.summary["failed_cases"]["p"]) == ["b", "c"]
    assert found.summary["cases_without_reference"] == {"p": ["stranger"]}
    unreadable, elsewhere = found.failures
    assert unreadable.startswith("p: b.nii.gz")
    assert "p: c: the prediction lies on a grid" in elsewhere
    assert "5.00 mm apart" in elsewhere
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_reference_that_cannot_be_read_costs_its_own_case(tmp_path: Path, reference: Path) -> None:
    (reference / "a.nii.gz").write_bytes(b"no scan")
    predictions = write(tmp_path / "p", maps={name: tumour() for name in "abcd"})
    found = run(tmp_path, predictions=predictions, reference=reference, profile="segrap2023_gtv")
    assert {score.case for score in found.scores["p"]} == {"b", "c", "d"}
    assert "missing_cases" in found.summary
    assert not found.summary["missing_cases"]
    assert found.failures[0].startswith("reference: a.nii.gz")


def test_nothing_left_to_score_is_an_error(tmp_path: Path, reference: Path) -> None:
    predictions = write(tmp_path / "p", maps={"a": tumour()})
    write_floats(predictions / "a.nii.gz", label=tumour() + 0.4)
    with pytest.raises(InputError, match=r"p: a\.nii\.gz: the label map holds fractions"):
        run(tmp_path, predictions=predictions, reference=reference, profile="plain")
    assert not (tmp_path / "out").exists()
    predictions = write(tmp_path / "q", maps={"a": tumour()}, labels={"liver": 1})
    with pytest.raises(InputError, match=r"the references hold GTVp, GTVnd; expected .* pass --labels FILE"):
        run(tmp_path, predictions=predictions, reference=reference, profile="flare22")


def test_whole_numbers_stored_as_floats_and_huge_values_are_labels(tmp_path: Path, reference: Path) -> None:
    values = {"GTVp": 1, "GTVnd": 60000}
    label = tumour().astype(np.uint16)
    label[label == 2] = 60000
    predictions = write(tmp_path / "p", maps={"a": label}, labels=values)
    whole = write(tmp_path / "q", maps={"a": tumour()})
    write_floats(whole / "a.nii.gz", label=tumour())
    for path in (predictions, whole):
        found = run(tmp_path, predictions=path, reference=reference, profile="plain")
        assert [score.dice for score in found.scores[path.name]] == [1.0, 1.0]


def test_ids_as_names_in_one_side_only(tmp_path: Path) -> None:
    """A value that only one of the two files holds scores 0, as nnU-Net's evaluation has it; it is not left out."""
    reference = write(tmp_path / "reference", maps={"a": tumour(), "b": tumour(nodes=0)}, labels=None)
    predictions = write(tmp_path / "p", maps={"a": tumour(nodes=0), "b": tumour()}, labels=None)
    found = run(tmp_path, predictions=predictions, reference=reference, profile="nnunet")
    assert [(score.case, score.structure, score.dice) for score in found.scores["p"]] == [
        ("a", "1", 1.0),
        ("a", "2", 0.0),
        ("b", "1", 1.0),
        ("b", "2", 0.0),
    ]


def test_masks_against_a_label_map_and_a_forbidden_value_in_a_mask(tmp_path: Path) -> None:
    lesion = (tumour() == 1).astype(np.uint8)
    reference = write(tmp_path / "reference", maps={"a": lesion, "b": lesion}, labels={"lesion": 1})
    for case, value in (("a", 1), ("b", 2)):
        write(tmp_path / "p" / case, maps={"lesion": lesion * value, "liver": lesion}, labels=None)
    found = run(tmp_path, predictions=tmp_path / "p", reference=reference, profile="flare24_pancancer")
    assert [(score.dice, score.nsd) for score in found.scores["p"]] == [(1.0, 1.0), (0.0, 0.0)]
    assert found.summary["cases_with_forbidden_values"] == {"p": ["b"]}


def test_masks_stored_in_different_orders_of_axes(tmp_path: Path, reference: Path) -> None:
    turned = replace(GRID, origin=(0.0, 8.0, 0.0), direction=(1, 0, 0, 0, -1, 0, 0, 0, 1))
    masks = {name: (tumour() == value).astype(np.uint8) for name, value in LABELS.items()}
    write(tmp_path / "p" / "a", maps={"GTVp": masks["GTVp"]}, labels=None)
    write(tmp_path / "p" / "a", maps={"GTVnd": masks["GTVnd"][:, ::-1]}, labels=None, grid=turned)
    found = run(tmp_path, predictions=tmp_path / "p", reference=reference, profile="plain")
    assert [score.dice for score in found.scores["p"]] == [1.0, 1.0]


def test_lesions_have_a_file_of_their_own(tmp_path: Path, reference: Path) -> None:
    predictions = write(tmp_path / "p", maps={"a": tumour(nodes=1), "b": tumour()})
    found = run(tmp_path, predictions=predictions, reference=reference, profile="segrap2023_gtv")
    with (tmp_path / "out" / "lesions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["missed"], row["f1"]) for row in rows if row["structure"] == "GTVnd"] == [
        ("a", "1", str(2 / 3)),
        ("b", "0", "1.0"),
        ("c", "2", "0.0"),
        ("d", "2", "0.0"),
    ]
    nodes = found.summary["lesions"]["p"]["GTVnd"]
    assert (nodes["found"], nodes["missed"], nodes["invented"]) == (3, 5, 0)
    assert nodes["f1"]["mean"] == pytest.approx((2 / 3 + 1) / 4)
    plain = run(tmp_path, predictions=predictions, reference=reference, profile="plain", lesions=("gtvp", "spleen"))
    assert list(plain.summary["lesions"]["p"]) == ["GTVp"]
    (sentence,) = plain.failures
    assert sentence.startswith("no 'spleen' among scored structures")


def submitted(path: Path, *, masks: NDArray) -> None:
    """A 4D file as the tutorial's Docker image writes it: masks, z, y, x."""
    path.parent.mkdir(exist_ok=True)
    image = sitk.JoinSeries([sitk.GetImageFromArray(mask) for mask in masks.astype(np.uint8)])
    image.SetSpacing((*GRID.spacing[::-1], 1.0))
    sitk.WriteImage(image, path, useCompression=path.stem != "b")


def test_submissions_to_segrap2023(tmp_path: Path, reference: Path) -> None:
    both = np.stack([tumour() == 1, tumour() == 2])
    for case in "ab":
        submitted(tmp_path / "p" / f"{case}.mha", masks=both)
    submitted(tmp_path / "p" / "c.mha", masks=np.stack([both[0], both[0], both[1]]))
    (tmp_path / "p" / "d.mha").write_bytes((tmp_path / "p" / "a.mha").read_bytes()[:-20])
    found = run(tmp_path, predictions=tmp_path / "p", reference=reference, profile="segrap2023_gtv")
    assert {score.case: score.dice for score in found.scores["p"]} == {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    number, cut_off = found.failures
    assert "c.mha: holds 3 masks; expected 45 or 2 in the order of SegRap2023" in number
    assert cut_off.startswith("p: d.mha: ")


def test_the_last_case_is_read_once(reference: Path) -> None:
    readable = Readable(open_folder(reference), failed={"c"})
    assert readable.cases == ("a", "b", "d")
    assert readable.read("a") is readable.read("a")
    assert (readable.read("b").case, readable.read("a").case, readable.image("a")) == ("b", "a", None)


@pytest.fixture
def store(tiny_store: Callable[..., Path], tmp_path: Path) -> str:
    """A store of two cases, with predictions of both in `p`."""
    label = (tumour() == 1).astype(np.uint8)
    grid = replace(GRID, spacing=(2.0, 1.0, 1.0))
    for case in "ab":
        write_label_map(label, geometry=grid, path=tmp_path / "p" / f"{case}.nii.gz")
    (tmp_path / "p" / "labels.json").write_text(json.dumps({"GTVp": 1}))
    return str(tiny_store("s", labels=LabelSet(structures=("GTVp",)), cases=dict.fromkeys("ab", label)))


def test_a_damaged_case_of_a_store_costs_itself_alone(store: str, tmp_path: Path) -> None:
    next(path for path in Path(store, "cases", "a", "grids").rglob("values/c/0/0/0")).write_bytes(b"")
    found = evaluate(tmp_path / "p", reference=store, profile="plain", out=tmp_path / "out")
    assert [(score.case, score.dice) for score in found.scores["p"]] == [("b", 1.0)]
    (sentence,) = found.failures
    assert sentence.startswith("reference: a: ") and "--deep` to write it again" in sentence


def test_a_damaged_image_costs_a_background_and_no_scores(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(self: StoreLabels, case: str) -> NDArray:
        if case == "a":
            raise StoreError(f"{case}: grids/native/image is damaged")
        return whole(self, case)

    whole = StoreLabels.image
    monkeypatch.setattr(StoreLabels, "image", damaged)
    found = evaluate(tmp_path / "p", reference=store, profile="plain", out=tmp_path / "out")
    assert len(found.scores["p"]) == 2 and (tmp_path / "out" / "report.html").read_text().count("data:image/png") == 2
    assert "segsweep: a: grids/native/image is damaged" in capsys.readouterr().err


def test_a_storage_that_is_away_is_no_damage(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> NDArray:
        raise StorageAwayError("the storage cannot be reached")

    for read in ("image", "read"):
        monkeypatch.setattr(StoreLabels, read, away)
        with pytest.raises(StorageAwayError):
            evaluate(tmp_path / "p", reference=store, profile="plain", out=tmp_path / "out")
