"""What fits is begun, an ensemble's mean goes to disk where memory is short, and what cannot fit is refused with the numbers."""

import re
import tempfile
from types import SimpleNamespace

import pytest

from segsweep.data.geometry import Geometry, Size
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError, ResourceError
from segsweep.inference import budget
from segsweep.inference.budget import Needs, Part, Resources, find_room, needs, resources
from segsweep.inference.spill import Spilled
from segsweep.learning.memory import resident_bytes
from segsweep.learning.task import Normalisation, Task

GB = 2**30


def part(classes: int, *, patch_size: Size = (64, 128, 128)) -> Part:
    names = tuple(f"s{index}" for index in range(1, classes))
    task = Task(
        channels=("CT", "CTC"),
        table=LabelTable(labels=LabelSet(structures=names), atoms=((), *((index,) for index in range(classes - 1)))),
        head="softmax",
        patch_size=patch_size,
        spacing=(3.0, 1.5, 1.5),
        normalisation=(Normalisation(scheme="ct", low=-1, high=1),) * 2,
    )
    return Part(task=task, network_bytes=GB)


def geometry(num_slices: int) -> Geometry:
    return Geometry(
        shape=(num_slices, 512, 512), spacing=(3.0, 1.0, 1.0), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
    )


def of(*parts: Part, num_slices: int = 130) -> Needs:
    return needs(parts, image_bytes=4 * 512 * 512 * num_slices, geometry=geometry(num_slices))


def test_a_taller_scan_takes_no_more_for_logits() -> None:
    low, high = of(part(45)), of(part(45), num_slices=260)
    assert low.parts["slices of logits"] == high.parts["slices of logits"]
    slices = 4 * 45 * 64 * 341 * 341
    assert slices < low.parts["slices of logits"] < 3.5 * slices
    assert low.kept == 0


def test_a_scan_with_45_structures_and_two_channels_fits_into_8_gb() -> None:
    wanted = of(part(46))
    assert GB < wanted.total < 7 * GB
    assert wanted.parts["the network"] == GB


def test_an_ensemble_works_one_member_at_a_time_and_keeps_their_mean() -> None:
    small, large = part(8), part(45)
    assert of(small, large).total == of(large).total
    assert of(large, large, large).kept == 4 * 45 * 130 * 341 * 341


def wanting(total: int, *, kept: int = 0) -> Needs:
    return Needs(parts={"slices of logits": total - 100, "the network": 100}, kept=kept)


def test_what_fits_stays_in_memory_and_what_is_kept_goes_to_disk() -> None:
    allowed = Resources(max_memory=resident_bytes() + 4 * GB)
    assert isinstance(find_room(wanting(GB, kept=GB), resources=allowed)(), dict)
    assert find_room(wanting(GB, kept=4 * GB), resources=allowed) is Spilled


def test_a_scan_that_cannot_fit_is_refused_with_the_numbers() -> None:
    held = resident_bytes()
    with pytest.raises(ResourceError) as refused:
        find_room(wanting(6 * GB), resources=Resources(max_memory=held + 2 * GB))
    text = str(refused.value)
    assert "needs about 6 GB" in text and "slices of logits 6 GB, the network 100 B" in text
    left = float(re.search(r"are ([\d.]+) GB left", text)[1])  # type: ignore[index]
    assert 1.5 < left <= 2.1
    with pytest.raises(ResourceError, match=r"are 0 B left; allow more, or crop the scan"):
        find_room(wanting(GB), resources=Resources(max_memory=1))


def test_without_a_budget_four_fifths_of_what_is_available_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_bytes", lambda: 10 * GB)
    assert Resources().free == 8 * GB
    with pytest.raises(ResourceError, match="of what is available now are 8 GB left"):
        find_room(wanting(9 * GB), resources=Resources())


def test_a_full_disk_is_found_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "shutil", SimpleNamespace(disk_usage=lambda _folder: SimpleNamespace(free=GB)))
    with pytest.raises(ResourceError, match=f"takes 4 GB, {tempfile.gettempdir()} has 1 GB left; set TMPDIR"):
        find_room(wanting(GB, kept=4 * GB), resources=Resources(max_memory=resident_bytes() + 2 * GB))


def test_words_of_the_command_line() -> None:
    found = resources(max_memory="8GB", precision="bfloat16")
    assert (found.max_memory, found.precision) == (8 * GB, "bfloat16")
    assert resources(max_memory=None, precision=None).max_memory is None
    with pytest.raises(InputError, match="did you mean 'float16'"):
        resources(max_memory=None, precision="float17")
    with pytest.raises(InputError, match="expected a number above 0 and a unit"):
        resources(max_memory="much", precision=None)
