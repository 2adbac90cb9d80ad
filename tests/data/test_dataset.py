import json
from pathlib import Path

import pytest

from segsweep.data.case import LabelFile
from segsweep.data.dataset import describe
from segsweep.errors import InputError


def test_paths_become_absolute_and_errors_name_the_folder_as_given(
    okbp_raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(okbp_raw.parent)
    given = Path(okbp_raw.name)
    source = describe("openkbp", raw=given).cases[0]
    (label,) = source.labels
    assert source.images == (okbp_raw / "images" / "okbp_000.nii.gz",)
    assert isinstance(label, LabelFile)
    assert label.path == okbp_raw / "labels" / "okbp_000.nii.gz"
    assert source.root == okbp_raw
    with pytest.raises(InputError, match=r"^elsewhere: no such folder"):
        describe("openkbp", raw=Path("elsewhere"))


def test_a_structure_with_a_slash_in_its_name_is_refused(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.nii.gz").touch()
    (tmp_path / "labels" / "a.nii.gz").touch()
    (tmp_path / "labels.json").write_text(json.dumps({"structures": {"kidney/left": 1}}))
    with pytest.raises(InputError, match="'kidney/left' has a slash in its name"):
        describe("nifti_folder", raw=tmp_path)
