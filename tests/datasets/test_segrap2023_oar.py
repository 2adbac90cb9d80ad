from collections.abc import Callable
from pathlib import Path

from segsweep.data.dataset import describe
from segsweep.data.segrap_labels import ORGANS


def test_organs_on_the_ct_without_contrast(
    tmp_path: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    write("segrap_0000/image.nii.gz")
    write("segrap_0000/Brain.nii.gz", 1, 1, 0)
    (tmp_path / "segrap_0000" / "GTVp.nii.gz").write_bytes(b"not read")
    write("segrap_0001/image.nii.gz")
    write("Task001/segrap_0001.nii.gz", 2, 2, 2)
    write("Task002/segrap_0001.nii.gz", 1, 1, 1)
    dataset = describe("segrap2023_oar", raw=tmp_path)
    assert (dataset.labels.structures, len(dataset.labels.pairs)) == (ORGANS, 16)
    assert dataset.channels == ("non_contrast_CT",)
    assert [[path.name for path in case.images if isinstance(path, Path)] for case in dataset.cases] == [
        ["image.nii.gz"]
    ] * 2
    assert [case.annotated for case in dataset.cases] == [("Brain",), ORGANS]
    assert voxels(dataset, "segrap_0000") == {"Brain": 2}
    counts = voxels(dataset, "segrap_0001")
    assert {name: count for name, count in counts.items() if count} == {"Brain": 3, "BrainStem": 3}
