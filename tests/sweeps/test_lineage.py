"""A run says which commit and which cases it comes from, and nothing where nothing is known."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError
from segsweep.sweeps.lineage import commit_of, lineage_of, origin, scores_of


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_is_that_of_the_files_own_checkout(tmp_path: Path) -> None:
    assert commit_of(tmp_path / "alone.py") == {}
    git(tmp_path, "init", "-q")
    code = tmp_path / "code.py"
    code.write_text("a = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(code) == {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": "false"}
    code.write_text("a = 2\n")
    assert commit_of(code) == {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": "true"}
    installed = tmp_path / "lib" / "package.py"
    installed.parent.mkdir()
    installed.write_text("a = 3\n")
    assert commit_of(installed) == {}, "a package within somebody's checkout is not of its commit"


def test_origin_without_git_names_command_and_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    assert origin("segsweep tune toy") == {
        "mlflow.source.name": "segsweep tune toy", "mlflow.source.type": "LOCAL", "mlflow.user": "ada",
    }  # fmt: skip


def test_a_damaged_validation_is_named(tmp_path: Path) -> None:
    assert scores_of(tmp_path) == {}
    (tmp_path / "validation.json").write_text('{"c01": {"Heart": 0.5}}')
    assert scores_of(tmp_path) == {"c01": {"Heart": 0.5}}
    (tmp_path / "validation.json").write_bytes(b'{"c01": {"Heart')
    with pytest.raises(
        InputError, match=r"validation\.json: cannot be used .*delete it and the result\.json beside it"
    ):
        scores_of(tmp_path)


def test_a_folds_cases_are_two_datasets_with_the_stores_digest(tiny_store: Callable[..., Path]) -> None:
    label = np.ones((4, 4, 4), np.uint8)
    cases = {f"c{number}": label for number in range(10)}
    store = open_store(tiny_store("toy", labels=LabelSet(structures=("organ",)), cases=cases))
    training, validation = lineage_of(store, folds=(0,), command="segsweep train unet").inputs[0]
    assert (training["name"], training["context"]) == ("toy fold 0 training", "training fold 0")
    assert (validation["name"], validation["context"]) == ("toy fold 0 validation", "validation fold 0")
    assert training["digest"] == validation["digest"] == store.digest
    assert (training["profile"]["cases"], validation["profile"]["cases"]) == (8, 2)
    assert training["profile"]["cases_in_store"] == 10
    (everything,) = lineage_of(store, folds=("all",), command="segsweep train unet").inputs["all"]
    assert (everything["context"], everything["profile"]["cases"]) == ("training all folds", 10)
