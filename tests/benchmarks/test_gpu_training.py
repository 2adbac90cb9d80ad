"""The benchmark of training on a GPU: it runs where there is none when asked to, and else says what it needs."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_training.py"
TINY = ("--patch", "16", "16", "16", "--features", "2", "--structures", "2", "--iterations", "2", "--rounds", "1")


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of the script, in this process."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(ended.value.code or 0)


def test_a_cpu_tries_it_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--device", "cpu", "--compile", "off", *TINY, monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("16x16x16")]
    assert [(row[1], row[3]) for row in rows] == [
        (precision, layout) for precision in ("float32", "bfloat16") for layout in ("contiguous", "channels")
    ]
    assert all(float(row[-3]) > 0 and float(row[-1]) > 0 for row in rows)
    assert lines[-1].startswith("longest wait for data")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().out.startswith("no CUDA GPU was found; expected one: run this on a machine with a GPU")
