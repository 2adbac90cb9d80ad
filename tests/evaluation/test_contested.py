"""What is left of a case when only contested voxels are kept scores every ensemble as the whole case does."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit

from segsweep.evaluation import contested
from segsweep.evaluation.contested import Access, Reference, contest
from segsweep.evaluation.decision import Decision
from segsweep.evaluation.measure import Measure
from segsweep.evaluation.surface import surfaces

# Two structures that overlap.
MEMBERSHIP = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=bool)
SHAPE = (37, 6, 5)
SPACING = (2.0, 1.0, 1.5)
IGNORED = len(MEMBERSHIP)


class Scores(NamedTuple):
    """Of both structures."""

    dice: list[float]
    nsd: list[float]


def access(values: NDArray[np.uint8]) -> Access:
    return lambda part: values[:, part]


def scans(channels: str, seed: int = 0) -> tuple[list[NDArray[np.uint8]], NDArray]:
    """Four candidates' quantised probabilities that mostly agree, and a reference with ignored voxels."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, len(MEMBERSHIP) + 1, SHAPE)
    meant = np.minimum(label, len(MEMBERSHIP) - 1)
    true = np.moveaxis(np.eye(len(MEMBERSHIP))[meant] if channels == "atoms" else MEMBERSHIP[meant], -1, 0)
    candidates = []
    for _ in range(4):
        noisy = np.clip(0.8 * true + 0.1 + generator.normal(0, 0.25, true.shape), 0.001, 1)
        share = noisy / noisy.sum(axis=0) if channels == "atoms" else np.minimum(noisy, 0.999)
        candidates.append(np.rint(255 * share).astype(np.uint8))
    return candidates, label


def reference(label: NDArray, annotated: tuple[int, ...] = (0, 1)) -> Reference:
    membership = np.concatenate([MEMBERSHIP, np.zeros((1, 2), dtype=bool)])
    return Reference(label=label, spacing=SPACING, membership=membership, ignored=IGNORED, annotated=annotated)


def plain_scores(candidates: list[NDArray[np.uint8]], *, shares: NDArray, label: NDArray, channels: str) -> Scores:
    """The same by the definitions, on whole volumes; sums are whole numbers, so that ties are ties."""
    sums = np.tensordot(shares, np.array(candidates, dtype=np.int64), axes=1)
    if channels == "structures":
        mean = np.clip(sums / (255 * shares.sum()), 1e-7, 1 - 1e-7)
        sums = np.tensordot(MEMBERSHIP.astype(float), logit(mean), axes=1)
    found = np.where(label == IGNORED, 0, np.argmax(sums, axis=0))
    drawn = np.where(label == IGNORED, 0, label)
    pairs = [(MEMBERSHIP[found, s], MEMBERSHIP[drawn, s]) for s in range(2)]
    return Scores(
        dice=[2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()) for mine, theirs in pairs],
        nsd=[surfaces(mine, reference=theirs, spacing=SPACING).normalised_dice(1.2) for mine, theirs in pairs],
    )


SHARES = [(1, 0, 0, 0), (1, 1, 1, 1), (3, 0, 1, 2), (0, 0, 5, 7), (27720, 100, 0, 9240)]


@pytest.mark.parametrize("channels", ["atoms", "structures"])
@pytest.mark.parametrize("metric", ["dice", "nsd"])
@pytest.mark.parametrize("kept", ["memory", "file"])
def test_scores_are_those_of_averaged_whole_volumes(
    channels, metric: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates, label = scans(channels)
    if kept == "file":
        monkeypatch.setattr(contested, "MOST_HELD", 0)
    found = contest(
        "a",
        candidates=[access(values) for values in candidates],
        decision=Decision(membership=MEMBERSHIP, channels=channels),
        reference=reference(label),
        measure=Measure(metric=metric, nsd_tolerance=1.2),
        scratch=tmp_path if kept == "file" else None,
    )
    assert 0 < found.lead.shape[1] < label.size and 0 < len(found.truth) < label.size
    assert found.lead.shape[1] + len(found.truth) < (label != IGNORED).sum()
    assert isinstance(found.lead, np.memmap) == isinstance(found.values, np.memmap) == (kept == "file")

    def expected(shares: NDArray) -> list[float]:
        return getattr(plain_scores(candidates, shares=shares, label=label, channels=channels), metric)

    for shares in map(np.array, SHARES):
        assert found.scores(shares).tolist() == expected(shares)
        one_more = [expected(shares + np.eye(4, dtype=int)[one]) for one in (1, 3)]
        assert found.additions(shares, candidates=[1, 3]).tolist() == one_more


def test_no_more_than_a_slab_is_asked_for_at_once() -> None:
    candidates, label = scans("atoms")
    asked = []

    def recorded(values: NDArray[np.uint8]) -> Callable[[slice], NDArray[np.uint8]]:
        def read(part: slice) -> NDArray[np.uint8]:
            asked.append(part.stop - part.start)
            return values[:, part]

        return read

    decision = Decision(membership=MEMBERSHIP, channels="atoms")
    accesses = [recorded(values) for values in candidates]
    contest("a", candidates=accesses, decision=decision, reference=reference(label), measure=Measure())
    assert max(asked) == 16


def test_what_was_not_annotated_is_not_scored() -> None:
    candidates, label = scans("atoms")
    found = contest(
        "a",
        candidates=[access(values) for values in candidates],
        decision=Decision(membership=MEMBERSHIP, channels="atoms"),
        reference=reference(label, annotated=(1,)),
        measure=Measure(),
    )
    assert np.isnan(found.scores(np.array([1, 0, 0, 0]))).tolist() == [True, False]


def test_candidates_that_agree_leave_nothing_contested() -> None:
    candidates, label = scans("atoms")
    found = contest(
        "a",
        candidates=[access(candidates[0])] * 2,
        decision=Decision(membership=MEMBERSHIP, channels="atoms"),
        reference=reference(label),
        measure=Measure(),
    )
    assert found.lead.shape == (2, 0) and found.values.shape == (2, 4, 0)
    assert found.disagreement.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    whole = plain_scores(candidates[:1], shares=np.array([1]), label=label, channels="atoms")
    assert found.scores(np.array([1, 2])).tolist() == whole.dice


@pytest.mark.parametrize("metric", ["dice", "nsd"])
def test_nothing_found_where_nothing_is_counts_as_right(metric: str) -> None:
    empty = np.zeros((4, *SHAPE), dtype=np.uint8)
    empty[0] = 255
    found = contest(
        "a",
        candidates=[access(empty)] * 2,
        decision=Decision(membership=MEMBERSHIP, channels="atoms"),
        reference=reference(np.zeros(SHAPE, dtype=int)),
        measure=Measure(metric=metric),
    )
    assert found.scores(np.array([1, 1])).tolist() == [1.0, 1.0]


def test_disagreement_is_the_share_of_unlike_foreground() -> None:
    label = np.zeros((1, 1, 4), dtype=int)
    one, other = (
        np.moveaxis(255 * np.eye(4, dtype=np.uint8)[atoms], -1, 0) for atoms in ([[[0, 1, 1, 2]]], [[[0, 0, 1, 1]]])
    )
    found = contest(
        "a",
        candidates=[access(one), access(other)],
        decision=Decision(membership=MEMBERSHIP, channels="atoms"),
        reference=reference(label),
        measure=Measure(),
    )
    assert found.disagreement == pytest.approx(np.array([[0, 2 / 3], [2 / 3, 0]]))
