"""Each finding: a clean dataset gives none, and one planted fault gives exactly that finding."""

import json
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segsweep.data.geometry import Geometry
from segsweep.data.index import CaseRecord
from segsweep.data.quality import check, three_digits
from segsweep.data.quality_report import MOST_ROWS, write
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import StoreError

SHAPE = (12, 40, 48)
NAMES = ("Cord", "LeftParotid", "RightParotid", "Tumour")
TABLE = LabelTable(
    labels=LabelSet(structures=NAMES, pairs=(("LeftParotid", "RightParotid"),)),
    atoms=((), (0,), (1,), (2,), (3,), (0, 3)),
)
CORD, LEFT, RIGHT, TUMOUR, BOTH = 1, 2, 3, 4, 5
GEOMETRY = Geometry(
    shape=SHAPE,
    spacing=(3.0, 2.0, 2.0),
    origin=(0.0, 0.0, 0.0),
    direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
)


@dataclass
class MemoryGrid:
    image: np.ndarray
    label: np.ndarray
    geometry: Geometry = GEOMETRY
    damaged: bool = False

    @property
    def shape(self):
        return self.geometry.shape

    def read_image(self, region=None):
        return self.image[(slice(None), *(region or (slice(None),) * 3))]

    def read_label(self, region=None):
        if self.damaged:
            raise StoreError("case_3/native: label is damaged; convert the case again")
        return self.label[region or (slice(None),) * 3]


@dataclass
class MemoryStore:
    """Eight clean cases in memory, with what `check` uses of a Store."""

    grids: dict[str, MemoryGrid] = field(default_factory=dict)
    cases: dict[str, CaseRecord] = field(default_factory=dict)
    dataset: str = "memory"
    digest: str = "0123"
    channels: tuple[str, ...] = ("CT",)
    table: LabelTable = TABLE

    def grid(self, case_id):
        return self.grids[case_id]


@pytest.fixture
def store() -> Any:
    made = MemoryStore()
    for index in range(8):
        case_id, generator = f"case_{index}", np.random.default_rng(index)
        label = np.zeros(SHAPE, dtype=np.uint8)
        label[1:11, 20:23, 22 : 25 + index % 2] = CORD
        label[3:8, 15:20, 35:40] = LEFT
        label[3:8, 15:20, 8:13] = RIGHT
        if index % 2:
            label[4:6, 5:9, 20:26] = TUMOUR
        image = generator.normal(40, 10, (1, *SHAPE)).round().astype(np.int16)
        # Bone lies elsewhere in each patient.
        bone = generator.random((3, 10, 12)) > 0.8
        image[0][bone.repeat(4, axis=0).repeat(4, axis=1).repeat(4, axis=2)] = 700
        image[:, :, :2] = -1000
        made.grids[case_id] = MemoryGrid(image=image, label=label)
        made.cases[case_id] = CaseRecord(
            case_id=case_id,
            annotated=NAMES,
            split="train",
            group="",
            geometry=GEOMETRY,
            source_geometry=GEOMETRY,
            atoms=TABLE.atoms,
            voxels=dict(enumerate(np.bincount(label.ravel(), minlength=6).tolist())),
            digest=case_id,
            source_digests=(case_id,),
        )
    return made


def serious(store):
    return [found for found in check(store).findings if found.severity != "info"]


def only(store):
    found = serious(store)
    assert len(found) == 1, found
    return found[0]


def test_clean_cases_give_no_errors_or_warnings(store):
    report = check(store)
    # Half of the cases have no tumour, which is worth knowing but no fault.
    assert {(found.severity, found.structure) for found in report.findings} == {("info", "Tumour")}
    assert report.num_cases == 8
    parotid = report.structures[1]
    assert (parotid.name, parotid.annotated, parotid.present) == ("LeftParotid", 8, 8)
    assert parotid.median_ml == pytest.approx(5 * 5 * 5 * 12 / 1000)


def test_progress_counts_cases(store):
    seen = []
    check(store, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(index, 8) for index in range(1, 9)]


def test_a_much_too_large_structure(store):
    label = store.grids["case_3"].label
    label[0:12, 18:38, 16:32] = np.where(label[0:12, 18:38, 16:32] == 0, CORD, label[0:12, 18:38, 16:32])
    found = only(store)
    assert (found.severity, found.case_id, found.structure) == ("warning", "case_3", "Cord")
    assert "46.1 ml, the median is 1.25 ml" in found.message


def test_a_much_too_small_structure_unless_the_scan_ends_there(store):
    label = store.grids["case_3"].label
    label[label == LEFT] = 0
    label[4:6, 16:19, 36:38] = LEFT
    found = only(store)
    assert (found.case_id, found.structure) == ("case_3", "LeftParotid")
    label[label == LEFT] = 0
    label[0:2, 16:19, 36:38] = LEFT
    assert not serious(store)


def test_a_pair_of_uneven_size(store):
    """Each is within what is usual for it alone; together they are not."""
    for index, case_id in enumerate(store.grids):
        height = 3 + index % 3
        store.grids[case_id].label[3:8, 15:20][store.grids[case_id].label[3:8, 15:20] > 0] = 0
        store.grids[case_id].label[1 : 1 + 2 * height, 15:20, 35:40] = LEFT
        store.grids[case_id].label[1 : 1 + 2 * height, 15:20, 8:13] = RIGHT
    grid = store.grids["case_3"]
    grid.label[np.isin(grid.label, (LEFT, RIGHT))] = 0
    grid.label[1:11, 15:20, 35:41] = LEFT
    grid.label[3:6, 15:20, 8:13] = RIGHT
    found = only(store)
    assert (found.case_id, found.structure) == ("case_3", "LeftParotid")
    assert "4 times as large as RightParotid, usually 1 times" in found.message


def test_a_pair_that_is_not_where_the_others_are():
    names = ("EyeL", "EyeR", "LensL", "LensR", "EarL", "EarR", "JawL", "JawR")
    pairs = tuple(zip(names[::2], names[1::2], strict=True))
    table = LabelTable(
        labels=LabelSet(structures=names, pairs=pairs), atoms=((), *((index,) for index in range(len(names))))
    )
    label = np.zeros(SHAPE, dtype=np.uint8)
    for index, (left, right) in enumerate(((34, 12), (36, 10), (40, 6), (44, 26))):
        for value, x in ((2 * index + 1, left), (2 * index + 2, right)):
            label[4:8, 4 + 8 * index : 9 + 8 * index, x : x + 3] = value
    image = np.random.default_rng(0).normal(40, 10, (1, *SHAPE))
    image[:, :, :2], image[:, :, 3] = -1000, 700
    made = MemoryStore(table=table)
    made.grids["head"] = MemoryGrid(image=image, label=label)
    made.cases["head"] = CaseRecord(
        case_id="head", annotated=names, split="train", group="", geometry=GEOMETRY, source_geometry=GEOMETRY,
        atoms=table.atoms, voxels={}, digest="", source_digests=(),
    )  # fmt: skip
    found = only(made)
    assert (found.severity, found.structure) == ("warning", "JawL")
    assert "lies 24 mm to the left of the other pairs' middle" in found.message


def test_volumes_are_not_compared_among_four_cases(store):
    store.cases = {case_id: store.cases[case_id] for case_id in list(store.cases)[:4]}
    store.grids["case_3"].label[1:11, 20:36, 16:32] = CORD
    assert not serious(store)


def test_ordinary_variation_is_no_outlier(store):
    for index, grid in enumerate(store.grids.values()):
        grid.label[3 : 8 + index % 3, 15:20, 35:40] = LEFT
    assert not serious(store)


def test_swapped_sides(store):
    label = store.grids["case_2"].label
    label[...] = np.array([0, CORD, RIGHT, LEFT, TUMOUR, BOTH], dtype=np.uint8)[label]
    found = only(store)
    assert (found.severity, found.case_id, found.structure) == ("error", "case_2", "LeftParotid")
    assert "54 mm to the patient's right of RightParotid" in found.message


def test_a_usual_structure_that_is_empty(store):
    label = store.grids["case_5"].label
    label[label == CORD] = 0
    store.cases["case_9"], store.grids["case_9"] = extra(store, "case_9")
    store.cases["case_10"], store.grids["case_10"] = extra(store, "case_10")
    found = only(store)
    assert (found.severity, found.case_id, found.structure) == ("warning", "case_5", "Cord")
    assert "9 of 10" in found.message


def test_a_structure_that_no_annotated_case_has(store):
    for grid in store.grids.values():
        grid.label[grid.label == TUMOUR] = 0
    found = only(store)
    assert (found.severity, found.case_id, found.structure) == ("error", "", "Tumour")
    assert "annotated in 8 cases, but no voxel of it" in found.message


def test_a_structure_that_nobody_annotated(store):
    for case_id, grid in store.grids.items():
        grid.label[grid.label == TUMOUR] = 0
        store.cases[case_id] = replace(store.cases[case_id], annotated=NAMES[:3])
    found = only(store)
    assert (found.severity, found.structure) == ("warning", "Tumour")
    assert "none of the cases" in found.message


def test_voxels_of_a_structure_that_does_not_count_as_annotated(store):
    store.cases["case_1"] = replace(store.cases["case_1"], annotated=NAMES[:3])
    found = only(store)
    assert (found.case_id, found.structure) == ("case_1", "Tumour")
    assert found.message.startswith("48 voxels")


def test_overlapping_structures_count_for_both(store):
    store.grids["case_1"].label[4:6, 20:22, 22:25] = BOTH
    assert not [found for found in serious(store) if found.structure == "Cord"]
    tumour = check(store).structures[3]
    assert tumour.largest_ml == pytest.approx((48 + 12) * 12 / 1000)


def test_fragments_of_a_structure_that_is_usually_whole(store):
    label = store.grids["case_4"].label
    label[5, 15:20, 35:40] = 0
    found = only(store)
    assert (found.severity, found.case_id, found.structure) == ("warning", "case_4", "LeftParotid")
    assert "2 pieces, the largest holds 50%" in found.message


def test_fragments_of_a_structure_that_is_usually_many_are_normal(store):
    for grid in store.grids.values():
        grid.label[5, 15:20, 35:40] = 0
    assert not serious(store)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda image: np.maximum(image, 0), "no air, the lowest value is 0"),
        (lambda image: np.minimum(image, 90), "the highest value is 90"),
        (lambda image: np.where(image == 700, 20000, image), "above 4000 HU, up to 20000"),
    ],
)
def test_implausible_intensities(store, change, expected):
    grid = store.grids["case_6"]
    grid.image = change(grid.image)
    found = only(store)
    assert (found.severity, found.case_id, found.structure) == ("warning", "case_6", "")
    assert expected in found.message
    store.channels = ("MR",)
    assert not serious(store)


def test_padding_is_worth_knowing(store):
    store.grids["case_6"].image[:, :, :1] = -3024
    assert not serious(store)
    messages = [found.message for found in check(store).findings if found.case_id == "case_6"]
    assert any("2.5% of the voxels are padding below -1024 HU, down to -3024" in message for message in messages)


def test_the_same_image_twice(store):
    store.grids["case_7"].image = store.grids["case_1"].image.copy()
    found = only(store)
    assert (found.severity, found.case_id) == ("error", "case_7")
    assert "same image as case case_1" in found.message
    for case_id in ("case_1", "case_7"):
        store.cases[case_id] = replace(store.cases[case_id], group="patient")
    assert only(store).severity == "warning"
    store.cases["case_7"] = replace(store.cases["case_7"], split="test")
    assert only(store).severity == "error"


def test_nearly_the_same_image_twice(store):
    noise = np.random.default_rng(0).normal(0, 5, (1, *SHAPE))
    store.grids["case_5"].image = (store.grids["case_2"].image + noise).round().astype(np.int16)
    found = only(store)
    assert (found.severity, found.case_id) == ("warning", "case_5")
    assert "looks like case case_2 (correlation 1.00); remove one" in found.message
    for case_id in ("case_2", "case_5"):
        store.cases[case_id] = replace(store.cases[case_id], group="patient")
    assert not serious(store)


def test_a_damaged_case_is_a_finding_and_the_others_go_on(store):
    store.grids["case_3"].damaged = True
    found = only(store)
    assert (found.severity, found.case_id) == ("error", "case_3")
    assert "damaged" in found.message


def test_errors_come_first(store):
    store.grids["case_0"].image = np.maximum(store.grids["case_0"].image, 0)
    store.grids["case_7"].image = store.grids["case_1"].image.copy()
    assert [found.severity for found in check(store).findings[:3]] == ["error", "warning", "info"]


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


def test_report_files(store, tmp_path: Path):
    store.dataset = "<b>memory</b><script>alert(1)</script>"
    label = store.grids["case_2"].label
    label[...] = np.array([0, CORD, RIGHT, LEFT, TUMOUR, BOTH], dtype=np.uint8)[label]
    store.grids["case_6"].image = np.maximum(store.grids["case_6"].image, 0)
    store.grids["case_3"].damaged = True
    report = check(store)
    path = Path(write(report, store=store, folder=tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["quality.html", "quality.json"]
    values = json.loads((tmp_path / "quality.json").read_text())
    assert len(values["findings"]) == len(report.findings)
    assert values["findings"][0] == {
        "severity": "error", "case_id": "case_2", "structure": "LeftParotid", "message": report.findings[0].message
    }  # fmt: skip
    text = path.read_text()
    page = Page()
    page.feed(text)
    assert "script" not in page.tags and "default-src 'none'" in text, "and a browser would run none"
    assert "b" in page.tags and "&lt;b&gt;memory" in text and "<b>memory" not in text
    # Two pictures, both inside the page; the damaged case is named without one.
    assert len(page.addresses) == 2
    assert all(address.startswith("data:image/png;base64,iVBOR") for address in page.addresses)
    assert "the case cannot be read" in text
    assert "<b>2</b>errors" in text and "<b>1</b>warnings" in text
    assert "case_2: LeftParotid: lies 54 mm" in text


def test_a_page_has_so_many_rows_and_the_file_all(store, tmp_path: Path):
    found = replace(check(store).findings[0], case_id="nobody")
    report = replace(check(store), findings=(found,) * (MOST_ROWS + 5))
    text = Path(write(report, store=store, folder=tmp_path)).read_text()
    assert text.count(">nobody</td>") == MOST_ROWS
    assert "5 more are in quality.json" in text
    assert len(json.loads((tmp_path / "quality.json").read_text())["findings"]) == MOST_ROWS + 5


def test_a_report_without_findings_says_what_was_looked_for(store, tmp_path: Path):
    for grid in store.grids.values():
        grid.label[grid.label == TUMOUR] = 0
    report = replace(check(store), findings=())
    text = Path(write(report, store=store, folder=tmp_path)).read_text()
    assert "Looked for: unreadable cases" in text
    assert '<td class="number">–</td>' in text  # no volume of a tumour


@pytest.mark.parametrize(
    ("value", "text"), [(1512.4, "1512"), (91, "91.0"), (7.9, "7.90"), (0.05123, "0.0512"), (0, "–")]
)
def test_sizes_are_given_to_three_digits(value, text):
    assert three_digits(value) == text


def extra(store, case_id):
    """Another clean case, with an image of its own."""
    grid = store.grids["case_0"]
    # Turned about each other axis in turn: nobody else's bones.
    image = np.flip(grid.image, (1, 2) if len(store.cases) % 2 else (1, 3)).copy()
    return replace(store.cases["case_0"], case_id=case_id), MemoryGrid(image=image, label=grid.label)
