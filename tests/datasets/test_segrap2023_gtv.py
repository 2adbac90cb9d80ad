from collections.abc import Callable
from pathlib import Path

from segsweep.data.dataset import describe


def test_tumours_on_the_contrast_ct(
    tmp_path: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    write("segrap_0000/image_contrast.nii.gz")
    write("segrap_0000/GTVnd.nii.gz", 0, 1, 1)
    (tmp_path / "segrap_0000" / "Brain.nii.gz").write_bytes(b"not read")
    write("segrap_0001/image.nii.gz")
    write("segrap_0001/image_contrast.nii.gz")
    write("Task001/segrap_0001.nii.gz", 2, 2, 2)
    write("Task002/segrap_0001.nii.gz", 1, 2, 2)
    dataset = describe("segrap2023_gtv", raw=tmp_path)
    assert (dataset.labels.structures, dataset.labels.pairs) == (("GTVp", "GTVnd"), ())
    assert dataset.channels == ("contrast_CT",)
    names = [[path.name for path in case.images if isinstance(path, Path)] for case in dataset.cases]
    assert names == [["image_contrast.nii.gz"]] * 2
    assert [case.annotated for case in dataset.cases] == [("GTVnd",), ("GTVp", "GTVnd")]
    assert voxels(dataset, "segrap_0000") == {"GTVnd": 2}
    assert voxels(dataset, "segrap_0001") == {"GTVp": 1, "GTVnd": 2}
