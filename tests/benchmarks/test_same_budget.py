"""The same-budget benchmark without its trainings: how the budget is divided, what is compared, and what it says when it cannot."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from segsweep.errors import SegsweepError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def same_budget(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("same_budget")


def raw_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "cases.json").write_text("{}")
    return folder


def write_scores(path: Path, *, dice: dict[str, list[str]]) -> Path:
    rows = [f"case{i},{name},{value}" for name, values in dice.items() for i, value in enumerate(values)]
    path.write_text("\n".join(["case,structure,dice", *rows]) + "\n")
    return path


def test_an_epoch_is_timed_without_the_start(same_budget: ModuleType) -> None:
    assert same_budget.epoch_seconds({0: 100.0, 1: 103.0, 3: 109.0}) == 3.0
    with pytest.raises(SegsweepError, match="more iterations"):
        same_budget.epoch_seconds({4: 100.0})


def test_epochs_fill_the_budget(same_budget: ModuleType) -> None:
    assert same_budget.fitting_epochs(61.0, seconds=2400.0) == 39
    assert same_budget.fitting_epochs(5000.0, seconds=2400.0) == 2


def test_only_what_both_scored_is_compared(same_budget: ModuleType, tmp_path: Path) -> None:
    mine = write_scores(tmp_path / "mine.csv", dice={"cord": ["0.8", "0.6", "0.9"], "liver": ["0.5", "", "0.7"]})
    other = write_scores(tmp_path / "other.csv", dice={"cord": ["0.7", "0.5", ""], "liver": ["0.6", "0.1", "0.8"]})
    found = same_budget.summarise(same_budget.read_dice(mine), theirs=same_budget.read_dice(other))
    cord, liver, mean = (found["dice"][name] for name in ("cord", "liver", "mean"))
    assert (cord["segsweep"], cord["nnunet"]) == (pytest.approx(0.7), pytest.approx(0.6))
    assert cord["difference"]["cases"] == 2
    assert cord["difference"]["low"] == pytest.approx(0.1) == cord["difference"]["high"]
    assert (liver["segsweep"], liver["nnunet"]) == (pytest.approx(0.6), pytest.approx(0.7))
    assert mean["difference"]["mean"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("raw", "python", "said"),
    [
        ("absent", sys.executable, "has no cases.json"),
        ("raw", sys.executable, "has no nnunetv2"),
        ("raw", "absent", "expected a Python interpreter"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, raw: str, python: str, said: str) -> None:
    raw_folder(tmp_path / "raw")
    script = BENCHMARKS / "same_budget.py"
    given = [tmp_path / raw, "--nnunet-python", python, "--work", tmp_path / "work"]
    done = subprocess.run([sys.executable, script, *given], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_work_folder_keeps_its_settings(
    same_budget: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "settings.json").write_text("{}")
    # An interpreter that answers as one with nnU-Net does.
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 2.8.1\n")
    python.chmod(0o755)
    raw = raw_folder(tmp_path / "raw")
    assert same_budget.main([str(raw), "--nnunet-python", str(python), "--work", str(work)]) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_failed_command_is_named_with_its_last_words(same_budget: ModuleType, tmp_path: Path) -> None:
    sides = sys.modules[same_budget.Work.__module__]
    log = tmp_path / "step.log"
    words = [sys.executable, "-c", "print('first'); raise SystemExit('gone wrong')"]
    with pytest.raises(SegsweepError, match=r"step failed with exit code 1 \(gone wrong\)"):
        sides.follow(words, environment=os.environ, log=log)
    sides.follow(words, environment=os.environ, log=log, allowed=(1,))
    assert "first" in log.read_text()


def test_memory_counts_the_processes_below(same_budget: ModuleType) -> None:
    sides = sys.modules[same_budget.Work.__module__]
    held = "held = bytes(bytearray(range(256)) * 400_000); print(flush=True); input()"
    alone = sides.tree_memory(os.getpid())
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        both = sides.tree_memory(os.getpid())
        process.communicate(b"\n")
    assert both > alone + 90e6
