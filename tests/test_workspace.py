"""Where results go: a folder, or a bucket with what cannot lie there on this machine."""

from pathlib import Path

import pytest

from segsweep.errors import InputError
from segsweep.workspace import Workspace, current_workspace


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEGSWEEP_WORKSPACE", "SEGSWEEP_STUDIES", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def test_a_folder_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_workspace() == Workspace(root=tmp_path / "workspace") and (tmp_path / "workspace").is_dir()
    monkeypatch.setenv("SEGSWEEP_WORKSPACE", "elsewhere")
    assert current_workspace() == Workspace(root=tmp_path / "elsewhere")
    assert list(tmp_path.glob("state")) == []


def test_databases_of_a_workspace_in_a_bucket_lie_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSWEEP_WORKSPACE", "s3://lab-data/head/neck/")
    found, root = current_workspace(), tmp_path / "state" / "segsweep" / "lab-data" / "head" / "neck"
    assert found == Workspace(root=root, uri="s3://lab-data/head/neck") and root.is_dir()
    assert found.tracking_uri == f"sqlite:///{root / 'mlflow.db'}" and found.outbox == root / "outbox"


@pytest.mark.parametrize(
    "given", ["s3://", "s3://Lab/x", "s3://lab/a/../../b", "s3://lab/..", "gs://lab/x", "s3://me:hunter2@lab/x"]
)
def test_what_is_no_place_is_refused_and_no_password_repeated(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSWEEP_WORKSPACE", given)
    with pytest.raises(InputError, match=r"expected a folder or s3://BUCKET/FOLDER") as caught:
        current_workspace()
    assert "hunter2" not in str(caught.value) and list(tmp_path.iterdir()) == []
