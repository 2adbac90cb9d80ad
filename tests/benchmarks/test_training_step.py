"""The benchmark of a training step measures both sides and prints what they are judged by."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "training_step.py"
TINY = ("--patch", "16", "16", "16", "--features", "2", "--structures", "2", "--iterations", "2", "--rounds", "1")


def test_both_sides_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = str(torch.get_num_threads())
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *TINY, "--threads", threads])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = {line.partition("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert all(float(lines[name].split()[1]) > 0 for name in ("loop", "bare"))
    assert "bar 1.08" in lines["loop / bare"]
