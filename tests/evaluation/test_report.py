"""The report in a real browser: what it shows is on the right side, it scrolls and sorts, and it fetches nothing."""

import dataclasses
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segsweep.data.geometry import Geometry
from segsweep.evaluation.metrics import Score
from segsweep.evaluation.profiles import profile
from segsweep.evaluation.report import Report, render
from segsweep.evaluation.sources import Labelled
from segsweep.evaluation.summary import summarise
from segsweep.evaluation.tally import Tally

# A cube of 24 mm on voxels that are none: towards the head, the front and the patient's left.
SHAPE, SPACING = (40, 60, 50), (3.0, 1.5, 2.0)
CUBE = (slice(28, 36), slice(4, 20), slice(34, 46))
ORANGE, BLUE, GREEN, PURPLE = (230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167)


@dataclass(frozen=True)
class Held:
    """A source in memory; the cube is moved by `shift` voxels along y, and half of the corner is taken for it."""

    shift: int
    cases: tuple[str, ...] = ("near", "far", "third")

    def read(self, case: str) -> Labelled:
        label = np.zeros(SHAPE, np.uint8)
        z, y, x = CUBE
        label[z, y.start + self.shift : y.stop + self.shift, x] = 1
        label[2:4, 50:58, 2:6] = 2
        if self.shift:
            label[2:4, 50:54, 2:6] = 1
        grid = Geometry(shape=SHAPE, spacing=SPACING, origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
        return Labelled(case=case, label=label, geometry=grid, values={"cube": (1,), "corner": (2,)}, largest=2)

    def image(self, case: str) -> np.ndarray:
        z, _, _ = np.indices(SHAPE)
        return np.where(case == "near", -160 + 10 * z, 0).astype(np.int16)


def scores(*, less: float) -> list[Score]:
    values = {"near": (0.2, 0.9), "far": (0.5, math.nan), "third": (0.95, 0.85)}
    return [
        Score(
            case=case, structure=structure, dice=dice - less, iou=dice, nsd=dice, tolerance_mm=1.0, volume_reference_ml=13.8,
            volume_prediction_ml=13.8,
        )
        for case, pair in values.items()
        for structure, dice in zip(("cube", "corner"), pair, strict=True)
    ]  # fmt: skip


HELD = {"ours <1>": scores(less=0.0), "other": scores(less=0.1)}


def summary() -> dict[str, Any]:
    marks = Tally(source=Held(0), models={}, rules=profile("plain")).marks()
    return {"profile": "plain", **marks, **summarise(HELD)}


def report() -> str:
    models = {name: Held(6 * i + 2) for i, name in enumerate(HELD)}
    return render(Report(title="ours <1>", scores=HELD, summary=summary(), source=Held(0), models=models, view=2))


EVIL = "\"'><script>alert(1)</script>"


class Hostile(Held):
    """The same with names that would be markup that runs."""

    def read(self, case: str) -> Labelled:
        found = super().read(case.removesuffix(EVIL))
        values = {name + EVIL: own for name, own in found.values.items()}
        return dataclasses.replace(found, case=case, values=values)


def test_no_name_is_run() -> None:
    source = Hostile(0, tuple(case + EVIL for case in Held(0).cases))
    rows = [dataclasses.replace(row, case=row.case + EVIL, structure=row.structure + EVIL) for row in HELD["other"]]
    held = {name + EVIL: rows for name in HELD}
    marks = Tally(source=source, models={}, rules=profile("plain")).marks()
    told = {**marks, "missing_cases": {next(iter(held)): [EVIL]}, "structures_outside_profile": [EVIL]}
    models = {name: Hostile(6 * i + 2, source.cases) for i, name in enumerate(held)}
    plain = report()
    page = render(
        Report(
            title=f"ours {EVIL}", scores=held, summary={"profile": EVIL, **told, **summarise(held)}, source=source,
            models=models, view=2,
        )
    )  # fmt: skip
    assert page.count("<script") == plain.count("<script"), "the page's own"
    assert EVIL not in page and "&#x27;&gt;&lt;script&gt;alert(1)" in page


def numbers(value: Any) -> set[float]:
    """All numbers in nested mappings."""
    if isinstance(value, dict):
        return {one for item in value.values() for one in numbers(item)}
    return {float(value)} if isinstance(value, int | float) else set()


@pytest.fixture(scope="module")
def tab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The report, open, with its viewer's first case shown."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report())
    tab = browser.open(path)
    tab.run("document.querySelector('.viewer').scrollIntoView()")
    tab.wait("document.querySelector('.under').textContent.startsWith('Point')")
    yield tab
    assert tab.complaints() == [], "the console is silent and nothing is fetched, whatever the tests did"


def set_field(tab: Any, *, name: str, value: Any) -> None:
    """Give a field of the viewer's form a value as a user does."""
    key = "checked" if isinstance(value, bool) else "value"
    tab.run(
        f"(field => {{field.{key} = {value!r}; field.dispatchEvent(new Event('input', {{bubbles: true}}))}})"
        f"(document.querySelector('.viewer form').elements.{name})".replace("True", "true").replace("False", "false")
    )


def place(tab: Any, *, plane: int, colour: tuple[int, int, int]) -> dict[str, float]:
    """Ends of what has a colour in a plane's canvas, as shares of its side."""
    return tab.run(
        f"""(() => {{
        const canvas = document.querySelectorAll('.viewer canvas')[{plane}], side = canvas.width;
        const pen = new OffscreenCanvas(side, side).getContext('2d', {{willReadFrequently: true}}), xs = [], ys = [];
        pen.drawImage(canvas, 0, 0);
        const data = pen.getImageData(0, 0, side, side).data;
        for (let i = 0; i < side * side; i++)
          if ({list(colour)}.every((value, k) => Math.abs(value - data[4 * i + k]) < 12)) {{
            xs.push(i % side); ys.push(Math.floor(i / side));
          }}
        return {{left: Math.min(...xs) / side, right: Math.max(...xs) / side, top: Math.min(...ys) / side, bottom: Math.max(...ys) / side}};
        }})()"""
    )


def slices(tab: Any) -> list[int]:
    return tab.run(
        "[...document.querySelectorAll('.viewer output')].map(one => Number(one.textContent.match(/\\d+/)[0]))"
    )


def pixels(tab: Any, *, plane: int) -> str:
    return tab.run(f"document.querySelectorAll('.viewer canvas')[{plane}].toDataURL()")


def centre(tab: Any, *, selector: str) -> dict[str, float]:
    return tab.run(
        "(box => ({x: box.left + box.width / 2, y: box.top + box.height / 2}))"
        f"(document.querySelector({selector!r}).getBoundingClientRect())"
    )


def test_what_lies_on_the_patients_left_front_and_top_is_shown_there(tab: Any) -> None:
    set_field(tab, name="structure", value="cube")
    set_field(tab, name="prediction", value=False)
    set_field(tab, name="fill", value=100)
    found = [place(tab, plane=plane, colour=ORANGE) for plane in range(3)]
    set_field(tab, name="prediction", value=True)
    set_field(tab, name="fill", value=0)
    axial, coronal, sagittal = found
    assert axial["left"] > 0.5 and axial["bottom"] < 0.5, "the patient's left is on the right, the front at the top"
    assert coronal["left"] > 0.5 and coronal["bottom"] < 0.5, "the patient's left is on the right, the head at the top"
    assert sagittal["right"] < 0.5 and sagittal["bottom"] < 0.5, "the front is on the left, the head at the top"
    for box in found:  # 24 mm of 120 in each plane, a rim of a pixel's line aside
        assert box["right"] - box["left"] == pytest.approx(24 / 120, abs=0.02)
        assert box["bottom"] - box["top"] == pytest.approx(24 / 120, abs=0.02)


def test_reference_and_prediction_are_told_apart(tab: Any) -> None:
    reference, prediction = (place(tab, plane=0, colour=colour) for colour in (ORANGE, BLUE))
    assert prediction["bottom"] > reference["bottom"] and prediction["top"] > reference["top"], "3 mm towards the back"
    assert prediction["left"] == pytest.approx(reference["left"], abs=0.01)


def test_a_structure_taken_for_another_is_filled_as_such(tab: Any) -> None:
    set_field(tab, name="structure", value="corner")
    set_field(tab, name="fill", value=100)
    assert place(tab, plane=0, colour=PURPLE)["left"] is None, "of one structure there is no other"
    where = slices(tab)
    set_field(tab, name="structure", value="")
    assert slices(tab) == where
    unlike, alike = (place(tab, plane=0, colour=colour) for colour in (PURPLE, GREEN))
    assert unlike["right"] < 0.5 < unlike["top"] < unlike["bottom"] < alike["bottom"], "right, at the back"
    set_field(tab, name="fill", value=0)
    set_field(tab, name="structure", value="cube")


def test_wheel_keys_and_sliders_scroll(tab: Any) -> None:
    axial = centre(tab, selector=".viewer canvas")
    before, drawn = slices(tab), pixels(tab, plane=0)
    tab.mouse("mouseWheel", **axial, deltaX=0, deltaY=100)
    assert slices(tab) == before, "the page scrolls until the picture is chosen"
    tab.run("document.querySelector('.viewer').scrollIntoView()")
    axial = centre(tab, selector=".viewer canvas")
    for kind in ("mousePressed", "mouseReleased"):
        tab.mouse(kind, **axial, button="left", clickCount=1)
    before = slices(tab)
    drawn = pixels(tab, plane=0)
    tab.mouse("mouseWheel", **axial, deltaX=0, deltaY=100)
    tab.wait(f"document.querySelector('.viewer output').textContent.startsWith('axial {before[0] - 1} /')")
    assert pixels(tab, plane=0) != drawn
    tab.press("ArrowUp")
    assert (slices(tab), pixels(tab, plane=0)) == (before, drawn)
    tab.press("Home")
    assert slices(tab) == [1, *before[1:]]
    tab.run(
        "(one => {one.value = 7; one.dispatchEvent(new Event('input', {bubbles: true}))})(document.querySelectorAll('.plane input')[2])"
    )
    assert slices(tab) == [1, before[1], 8]


def test_what_is_under_the_pointer_is_named(tab: Any) -> None:
    set_field(tab, name="structure", value="cube")
    box, side = place(tab, plane=0, colour=ORANGE), tab.run("document.querySelector('.viewer canvas').clientWidth")
    corner = tab.run("(box => [box.left, box.top])(document.querySelector('.viewer canvas').getBoundingClientRect())")
    middle = {
        key: corner[k] + side * (box[a] + box[b]) / 2
        for k, (key, a, b) in enumerate((("x", "left", "right"), ("y", "top", "bottom")))
    }
    tab.mouse("mouseMoved", **middle)
    words = tab.run("document.querySelector('.under').textContent")
    slice_index = slices(tab)[0] - 1
    assert words.endswith("HU; reference: cube; prediction: cube")
    assert float(words.split()[0]) == pytest.approx(-160 + 10 * slice_index, abs=2)


def test_windows_fills_and_cases_change_the_picture(tab: Any) -> None:
    shown = {pixels(tab, plane=1)}
    for name, value in (("window", "lung"), ("fill", 60), ("reference", False), ("structure", "corner"), ("case", 1)):
        set_field(tab, name=name, value=value)
        tab.wait("!document.querySelector('.under').textContent.startsWith('loading')")
        shown.add(pixels(tab, plane=1))
    assert len(shown) == 6
    tab.run("document.querySelector('figure button.open').click()")
    tab.wait("document.querySelector('.viewer select').value === '0' && document.activeElement.tagName === 'CANVAS'")


def test_what_is_asked_for_before_the_viewer_has_begun_is_shown(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(report())
    tab = browser.open(tmp_path / "report.html")
    button = "[...document.querySelectorAll('figure button.open')].find(one => one.dataset.structure === 'corner')"
    # Unpacking takes its time, as it does with a large scan: the viewer begins by itself meanwhile, since it came into view.
    tab.run("own = Response.prototype.arrayBuffer, later = () => new Promise(done => setTimeout(done, 200)), 0")
    tab.run("Response.prototype.arrayBuffer = async function () { await later(); return own.call(this); }, 0")
    case = tab.run(f"{button}.click(), {button}.dataset.case")
    tab.wait("document.activeElement.tagName === 'CANVAS'")
    time.sleep(0.5)
    fields = "document.querySelector('.viewer form').elements"
    assert tab.run(f"[{fields}.case.selectedOptions[0].text, {fields}.structure.value]") == [case, "corner"]


def test_tables_sort_by_the_keyboard_and_are_searched(tab: Any) -> None:
    tab.run("document.querySelector('details:has(input)').open = true")
    tab.run("document.querySelector('#all-scores th:nth-child(3) button').focus()")
    column = "[...document.querySelectorAll('#all-scores tbody tr')].filter(row => !row.hidden).map(row => row.cells[2].textContent)"
    tab.press("Enter")
    assert tab.run(column) == ["0.200", "0.500", "0.850", "0.900", "0.950", "-"]
    tab.press("Enter")
    assert tab.run(column) == ["0.950", "0.900", "0.850", "0.500", "0.200", "-"]
    assert (
        tab.run("[...document.querySelectorAll('#all-scores th')].map(one => one.getAttribute('aria-sort'))")[2]
        == "descending"
    )
    tab.run(
        "(one => {one.value = 'NEAR cu'; one.dispatchEvent(new Event('input'))})(document.querySelector('#all-scores input'))"
    )
    assert tab.run(column) == ["0.200"]


def test_it_prints_and_fits_a_phone(tab: Any) -> None:
    assert tab.pdf().startswith(b"%PDF")
    tab.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    assert tab.run("document.documentElement.scrollWidth") <= 360, "tables scroll by themselves"
    assert tab.run("document.querySelector('.viewer canvas').clientWidth") > 300


def test_a_page_that_complains_or_fetches_is_noticed(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<script>console.error('no'); new Image().src = 'http://127.0.0.1:59999/a.png'; nothing()</script>"
    )
    said = " ".join(browser.open(tmp_path / "bad.html").complaints())
    assert "fetched http://127.0.0.1:59999/a.png" in said and '"value": "no"' in said and "ReferenceError" in said


def test_what_the_tables_show_is_in_the_csv_and_the_json() -> None:
    known = {f"{one:.6g}" for one in numbers(summary())}
    known |= {f"{one:.6g}" for score in HELD["ours <1>"] for one in numbers(dataclasses.asdict(score))}
    parts = dict(part.split('">', 1) for part in report().split('<section id="')[1:])
    for name in ("structures", "against-the-others", "all-scores"):
        shown = set(re.findall(r'data-v="([^"]+)"', parts[name]))
        assert shown and shown <= known, name
