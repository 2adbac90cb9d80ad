"""A case with ignored voxels, from its label file to what training, planning and the quality report see of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segsweep.data import fingerprint
from segsweep.data.building import current_case, derive_grid
from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.fingerprint import read_fingerprints
from segsweep.data.quality import check
from segsweep.data.quality_report import write
from segsweep.data.store import Store, open_store
from segsweep.data.structures import IGNORED, LabelSet

LABELS = LabelSet(structures=("liver", "spleen"))
SHAPE = (16, 32, 32)
IGNORE = 7


@pytest.fixture
def store(tiny_store: Callable[..., Path]) -> Store:
    """Two cases: in `a` a quarter is ignored, the liver's upper half among it; `b` has neither ignored voxels nor a spleen."""
    first, second = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    first[2:12, 4:20, 4:12] = second[2:12, 4:20, 4:12] = 1
    first[2:12, 4:20, 20:28] = 2
    first[7:, :, :16] = IGNORE
    return open_store(tiny_store("s", labels=LABELS, cases={"a": first, "b": second}, ignore=IGNORE))


def test_the_table_has_no_ignored_atom_and_the_label_keeps_the_voxels(store: Store) -> None:
    label = store.grid("a").read_label()
    expected = np.zeros(SHAPE, dtype=bool)
    expected[7:, :, :16] = True
    assert store.table.atoms == ((), (0,), (1,))
    assert store.cases["a"].atoms == ((), (0,), (1,), IGNORED)
    np.testing.assert_array_equal(label == store.table.ignored, expected)
    assert store.table.mask(label, structure="liver").sum() == 5 * 16 * 8
    assert store.table.mask(label, structure="spleen").sum() == 10 * 16 * 8


def test_voxels_are_counted_apart(store: Store) -> None:
    counts = store.cases["a"].voxels
    assert counts[store.table.ignored] == 9 * 32 * 16
    assert (counts[1], counts[2]) == (5 * 16 * 8, 10 * 16 * 8)
    assert sum(counts.values()) == np.prod(SHAPE)
    assert set(store.cases["b"].voxels) == {0, 1}


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_samples_hold_no_ignored_voxel(store: Store, spacing: tuple[float, float, float] | None) -> None:
    derive_grid(store.home("a"), spacing=(2.0, 2.0, 2.0))
    grid = store.grid("a", spacing)
    label = grid.read_label()
    assert (label == store.table.ignored).any()
    assert set(grid.foreground) == {1, 2}
    for value, voxels in grid.foreground.items():
        assert (label[tuple(voxels.T)] == value).all()


def test_plans_see_intensities_of_structures_alone(store: Store) -> None:
    (sampled,) = (case.intensities for case in read_fingerprints(store) if case.case_id == "a")
    label = store.grid("a").read_label()
    inside = store.grid("a").read_image()[0][(label == 1) | (label == 2)]
    np.testing.assert_array_equal(np.sort(sampled[0]), np.sort(inside))


def test_plans_are_made_from_so_many_intensities_of_all_cases(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {case.case_id: case.intensities for case in read_fingerprints(store)}
    assert min(values.shape[1] for values in whole.values()) > 150
    monkeypatch.setattr(fingerprint, "MOST_SAMPLES", 300)
    for case in read_fingerprints(store):
        values = case.intensities
        assert 75 < values.shape[1] <= 150
        assert values.base is None, "it would keep all of them in memory"
        step = -(-whole[case.case_id].shape[1] // 150)
        np.testing.assert_array_equal(values, whole[case.case_id][:, ::step])


def test_the_quality_report_leaves_ignored_voxels_out(store: Store, tmp_path: Path) -> None:
    report = check(store)
    liver = next(one for one in report.structures if one.name == "liver")
    assert liver.smallest_ml == pytest.approx(5 * 16 * 8 * 2.0 / 1000)
    assert any(found.case_id == "b" and found.structure == "spleen" for found in report.findings)
    assert Path(write(report, store=store, folder=tmp_path)).is_file()


def test_a_label_read_in_another_way_is_built_again(store: Store) -> None:
    folder, raw = Path(store.home("a")), Path(store.uri).parent / "raw-s"
    values = {1: ("liver",), 2: ("spleen",)}
    file = LabelFile(path=raw / "a.nii.gz", values=values, ignore=IGNORE)
    source = CaseSource(case_id="a", images=(raw / "a_0000.nii.gz",), labels=(file,), annotated=LABELS.structures)
    assert current_case(folder, source=source, labels=LABELS) is not None
    for other in (replace(file, ignore=None), replace(file, values={**values, 2: ("liver",)})):
        assert current_case(folder, source=replace(source, labels=(other,)), labels=LABELS) is None
