"""The challenge's 4D file is what the organisers' own steps make of the masks, as ITK reads it."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segsweep.data.geometry import Geometry
from segsweep.data.segrap_labels import ORGANS, TUMOURS
from segsweep.data.structures import LabelSet, LabelTable, encode
from segsweep.errors import InputError
from segsweep.inference import formats
from segsweep.inference.segrap import write_stacked

GRID = Geometry(
    shape=(3, 7, 5), spacing=(3.0, 0.5234375, 0.51), origin=(-9.0, 4.0, 1.0), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)
)


def segmentation(structures: tuple[str, ...]) -> formats.Segmentation:
    """Every structure at random: all overlap."""
    masks = np.random.default_rng(0).random((len(structures), *GRID.shape)) < 0.3
    atoms = encode(dict(enumerate(masks)), shape=GRID.shape)
    table = LabelTable(labels=LabelSet(structures=structures), atoms=tuple(sorted({(), *atoms.atoms})))
    values = np.array([table.atoms.index(atom) for atom in atoms.atoms], dtype=np.uint16)
    return formats.Segmentation(case_id="a", label=values[atoms.label], geometry=GRID, table=table)


def official(found: formats.Segmentation, *, structures: tuple[str, ...], path: Path) -> sitk.Image:
    """As the organisers join masks: each an image of its own, then a series, then the scan's spacing."""
    masks = [found.table.mask(found.label, structure=name).astype(np.uint8) for name in structures]
    joined = sitk.JoinSeries([sitk.GetImageFromArray(mask, isVector=False) for mask in masks])
    joined.SetSpacing((*found.geometry.spacing[::-1], 1))
    sitk.WriteImage(joined, str(path), True)
    return sitk.ReadImage(str(path))


@pytest.mark.parametrize(("kind", "structures"), [("segrap2023_oar", ORGANS), ("segrap2023_gtv", TUMOURS)])
def test_it_is_what_the_organisers_steps_make(kind: str, structures: tuple[str, ...], tmp_path: Path) -> None:
    found = segmentation((*TUMOURS[::-1], *ORGANS))  # in an order of its own, with more than is asked for
    formats.demand_possible(kind, scans=(), table=found.table)
    formats.find_format(kind).write(found, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mha"]
    ours = sitk.ReadImage(str(tmp_path / "a.mha"))
    theirs = official(found, structures=structures, path=tmp_path / "theirs.mha")
    assert ours.GetSize() == theirs.GetSize() == (5, 7, 3, len(structures))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    for fact in ("PixelID", "NumberOfComponentsPerPixel", "Spacing", "Origin", "Direction", "MetaDataKeys"):
        assert getattr(ours, f"Get{fact}")() == getattr(theirs, f"Get{fact}")(), fact


def test_a_model_of_other_structures_is_told_what_is_missing(tmp_path: Path) -> None:
    table = LabelTable(labels=LabelSet(structures=(*ORGANS[2:], "GTVp")), atoms=((),))
    with pytest.raises(InputError, match="does not segment Brain, BrainStem; expected all 45"):
        formats.demand_possible("segrap2023_oar", scans=(), table=table)
    with pytest.raises(InputError, match="does not segment GTVnd; expected all 2"):
        write_stacked(
            np.zeros(GRID.shape, np.uint8), geometry=GRID, table=table, structures=TUMOURS, path=tmp_path / "a.mha"
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = segmentation(TUMOURS)
    with pytest.raises(InputError, match=r"a\.mha cannot be written \(File exists\)"):
        formats.find_format("segrap2023_gtv").write(found, tmp_path / "file")
