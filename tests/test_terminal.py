import re
from types import SimpleNamespace

import pytest

from segsweep import terminal


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is printed where there is no terminal, of a training that was interrupted after its second epoch of five."""
    monkeypatch.setattr(terminal, "LINE_EVERY", 0.0)
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with terminal.bars() as shown:
        shown.trial("trial-0001", 0, 0, "starting")
        for epoch in (3, 4, 5):
            shown.trial("trial-0001", epoch, 5, f"loss 0.{epoch}")
        shown.trial("trial-0001", 5, 5, "ended: dice 0.700")
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_no_name_in_a_complaint_reaches_the_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.complain("case \x1b[2J\x1b]0;title\x07 of a\nstore: größer als \u202e1 mm")
    assert capsys.readouterr().err == "segsweep: case ?[2J?]0;title? of a store: größer als ?1 mm\n"
    terminal.say("no prediction for [b]\x1b[2J\nreport: a")
    assert capsys.readouterr().out == "no prediction for [b]?[2J\nreport: a\n"


def test_a_trial_tells_its_pace_and_its_end(lines: list[str]) -> None:
    assert lines[0] == "trial-0001  starting"
    assert lines[1] == "trial-0001  3/5  loss 0.3"
    assert re.fullmatch(r"trial-0001  4/5  loss 0\.4, \d+\.0 s an epoch, ends about \d\d:\d\d", lines[2]), lines[2]
    assert lines[3:] == ["trial-0001  5/5  loss 0.5", "trial-0001  ended: dice 0.700"]
