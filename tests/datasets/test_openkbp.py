"""OpenKBP's folder is read as its index says, and an index that does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from segsweep.errors import InputError
from segsweep.recipes import load

openkbp = load("datasets", name="openkbp")

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "openkbp_hn"
VALUES = {name: value for value, name in enumerate(openkbp.LABELS.structures, start=1)}


def folder(tmp_path: Path, **changes: Any) -> Path:
    """An OpenKBP folder of two empty files a case; `changes` replace entries of its index."""
    entries = [{"id": "okbp_001", "upstream_split": "train"}, {"id": "okbp_002", "upstream_split": "validation"}]
    for entry in entries:
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{entry['id']}.nii.gz").touch()
    (tmp_path / "cases.json").write_text(json.dumps({"labels": VALUES, "cases": entries} | changes))
    return tmp_path


def test_cases_and_splits(tmp_path: Path) -> None:
    first, second = openkbp.cases(folder(tmp_path))
    assert (first.split, second.split) == ("train", "validation")
    assert first.annotated == openkbp.LABELS.structures
    assert first.labels[0].values[4] == ("LeftParotid",)
    assert first.images == (tmp_path / "images" / "okbp_001.nii.gz",)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"labels": {"Heart": 1}}, "Heart"),
        ({"labels": 3}, "cannot be used"),
        ({"cases": []}, "no cases"),
        ({"cases": [{"id": "../x", "upstream_split": "train"}]}, "no case id"),
        ({"cases": [{"id": "okbp_001", "upstream_split": "test"}]}, "upstream_split"),
        ({"cases": [{"id": "okbp_001"}]}, "upstream_split"),
    ],
)
def test_index_that_does_not_fit(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=word):
        openkbp.cases(folder(tmp_path, **changes))


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cases\.json"):
        openkbp.cases(tmp_path / "absent")


@pytest.mark.skipif(not DATA.is_dir(), reason="the OpenKBP scans are not here")
def test_real_folder() -> None:
    sources = openkbp.cases(DATA)
    assert len(sources) == 34
    assert sum(source.split == "train" for source in sources) == 30
    assert sum(source.split == "validation" for source in sources) == 4
