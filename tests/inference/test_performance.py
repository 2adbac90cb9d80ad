"""What each case took: stages that do not count twice, areas under curves, and a table with one row a case."""

import csv
import time
from pathlib import Path

import numpy as np

from segsweep.inference import performance
from segsweep.inference.performance import COLUMNS, FILE, Curve, Stopwatch, Usage, record


def test_an_inner_stage_stops_the_outer_ones_clock() -> None:
    watch, begun = Stopwatch(), time.perf_counter()
    with watch.stage("export"):
        with watch.stage("network"):
            time.sleep(0.05)
        for _ in watch.during("network", range(3)):
            time.sleep(0.01)
    whole = time.perf_counter() - begun
    assert watch.seconds["network"] >= 0.05 and watch.seconds["export"] >= 0.03
    assert sum(watch.seconds.values()) <= whole


def test_slices_are_handed_on_while_their_making_is_timed() -> None:
    watch = Stopwatch()

    def slow():
        for index in range(3):
            time.sleep(0.02)
            yield index

    assert list(watch.during("network", slow())) == [0, 1, 2]
    assert list(watch.during("none", [])) == []
    assert watch.seconds["network"] >= 0.06 > watch.seconds["none"]


def test_an_area_is_the_sum_of_values_times_their_seconds() -> None:
    curve = Curve()
    curve.add(None, seconds=5.0)
    assert (curve.highest, curve.area) == (None, None)
    for value, seconds in ((10.0, 0.1), (30.0, 0.1), (20.0, 0.2)):
        curve.add(value, seconds=seconds)
    assert curve.highest == 30.0 and np.isclose(curve.area or 0, 1 + 3 + 4)


def test_memory_and_processors_are_watched() -> None:
    with Usage() as usage:
        held = np.ones(2**24)  # 128 MB
        time.sleep(0.25)
        del held
    assert (usage.ram.highest or 0) > 128
    assert 0 <= (usage.cpu.highest or 0) <= 100
    assert usage.ram.area is not None and usage.ram.area > 0.25 * 128


def test_where_the_system_tells_nothing_fields_are_empty(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(performance, "STAT", tmp_path / "absent")
    monkeypatch.setattr(performance, "resident_bytes", lambda: 0)
    with Usage() as usage:
        pass
    record(tmp_path, case_id="a", seconds={"read": 1.5}, usage=usage)
    (row,) = csv.DictReader((tmp_path / FILE).open())
    assert (row["case"], row["running_s"], row["read_s"], row["write_s"]) == ("a", "1.500", "1.500", "0.000")
    assert row["peak_ram_mb"] == row["auc_cpu_percent_s"] == ""


def test_a_case_has_one_row(tmp_path: Path) -> None:
    usage = Usage()
    for case_id, seconds in (("b", 1.0), ("a", 2.0), ("b", 3.0)):
        record(tmp_path, case_id=case_id, seconds={"network": seconds, "write": 0.5}, usage=usage)
    rows = list(csv.DictReader((tmp_path / FILE).open()))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["case"], row["network_s"], row["running_s"]) for row in rows] == [
        ("a", "2.000", "2.500"),
        ("b", "3.000", "3.500"),
    ]


def test_a_table_of_other_columns_is_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("case,seconds\na,1\n")
    record(tmp_path, case_id="b", seconds={}, usage=Usage())
    assert [row["case"] for row in csv.DictReader((tmp_path / FILE).open())] == ["b"]
