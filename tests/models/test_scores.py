"""Scores of whole scans are kept for one model and one store, and never trusted when they are damaged or of others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from segsweep.data.manifest import seal
from segsweep.data.store import Store
from segsweep.evaluation.measure import Measure
from segsweep.models.catalogue import Registered
from segsweep.models.scores import file_of, scan_scores
from segsweep.workspace import Workspace

CASES = ["c00", "c01", "c02"]


def test_no_scan_is_segmented_twice(enter: Callable[..., Registered], workspace: Workspace, organs: Store) -> None:
    told: list[tuple[int, int]] = []

    def scores(model: Registered, cases: list[str]) -> dict[str, dict[str, float]]:
        return scan_scores(
            model,
            store=organs,
            case_ids=cases,
            workspace=workspace,
            measure=Measure(),
            progress=lambda *done: told.append(done),
        )

    good, bad = enter("kept", 55.0), enter("kept", 1000.0)
    found = scores(good, CASES[:2])
    assert list(found) == CASES[:2] and all(0.1 < values["organ"] < 1 for values in found.values())
    assert scores(bad, CASES[:1]) == {"c00": {"organ": 0.0}}
    assert told == [(1, 2), (2, 2), (1, 1)]
    every = scores(good, CASES)
    assert {case: every[case] for case in CASES[:2]} == found and told[3:] == [(1, 1)]
    kept = file_of(good, store=organs, workspace=workspace)
    whole = kept.read_bytes()
    kept.write_bytes(whole.replace(b"0.", b"1.", 1))
    assert scores(good, CASES) == every and told[4:] == [(1, 3), (2, 3), (3, 3)]
    assert kept.read_bytes() == whole
    other = seal({"model": bad.digest, "data": organs.digest, "dice": {"c00": {"organ": 1.0}}})
    kept.write_bytes(other)
    assert scores(good, CASES[:1])["c00"] == every["c00"] and len(told) == 8


def test_scores_in_a_bucket_are_every_machines(
    enter: Callable[..., Registered], workspace: Workspace, organs: Store, object_storage: Any, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    good = enter("kept-there", 55.0)
    found = []
    for root in (workspace.root, tmp_path / "two"):
        place = Workspace(root=root, uri=f"{object_storage.uri}/lab")
        found.append(
            scan_scores(
                good, store=organs, case_ids=CASES[:1], workspace=place, measure=Measure(),
                progress=lambda *done: told.append(done),
            )
        )  # fmt: skip
    assert found[0] == found[1] and told == [(1, 1)]
    assert not (tmp_path / "two").exists()


def test_scores_of_surfaces_are_kept_beside_dice(
    enter: Callable[..., Registered], workspace: Workspace, organs: Store
) -> None:
    told: list[tuple[int, int]] = []

    def scores(measure: Measure) -> dict[str, dict[str, float]]:
        return scan_scores(
            good,
            store=organs,
            case_ids=CASES[:1],
            workspace=workspace,
            measure=measure,
            progress=lambda *done: told.append(done),
        )

    good = enter("kept-nsd", 55.0)
    near, far = (scores(Measure(metric="nsd", nsd_tolerance=tolerance))["c00"]["organ"] for tolerance in (0.5, 50.0))
    assert near < far == 1
    dice = scores(Measure())["c00"]["organ"]
    assert dice not in (near, far) and len(told) == 2, "the Dice was kept when the NSD was measured"
    assert scores(Measure(metric="nsd", nsd_tolerance=0.5))["c00"]["organ"] == near and len(told) == 2
