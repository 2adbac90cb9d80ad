"""What is left of a case when only contested voxels are kept scores every ensemble as the whole case does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit

from segsweep.evaluation.contested import Access, Decision, Reference, contest

# Two structures that overlap.
MEMBERSHIP = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=bool)
SHAPE = (37, 6, 5)
IGNORED = len(MEMBERSHIP)


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
    return Reference(label=label, membership=membership, ignored=IGNORED, annotated=annotated)


def plain_dice(mean: NDArray, *, label: NDArray, channels: str) -> NDArray:
    """The same by the definitions, on whole volumes in float64."""
    scores = mean if channels == "atoms" else np.tensordot(MEMBERSHIP.astype(float), logit(mean), axes=1)
    found = np.argmax(scores, axis=0)
    kept = label != IGNORED
    pairs = [(MEMBERSHIP[found[kept], s], MEMBERSHIP[label[kept], s]) for s in range(2)]
    return np.array([2 * (f & t).sum() / (f.sum() + t.sum()) for f, t in pairs])


@pytest.mark.parametrize("channels", ["atoms", "structures"])
@pytest.mark.parametrize("weights", [(1, 0, 0, 0), (1, 1, 1, 1), (3, 0, 1, 2), (0, 0, 5, 7)])
@pytest.mark.parametrize("kept", ["memory", "file"])
def test_streamed_dice_is_that_of_whole_volumes(channels, weights, kept: str, tmp_path: Path) -> None:
    candidates, label = scans(channels)
    decision = Decision(membership=MEMBERSHIP, channels=channels)
    found = contest(
        "a",
        candidates=[access(values) for values in candidates],
        decision=decision,
        reference=reference(label),
        scratch=tmp_path if kept == "file" else None,
    )
    assert 0 < found.values.shape[2] < label.size
    assert isinstance(found.values, np.memmap) == (kept == "file")
    share = np.array(weights, dtype=float)
    dice = found.dice(np.tensordot(share, found.values.astype(float), axes=1), total=share.sum())
    mean = np.tensordot(share / share.sum(), np.array(candidates) / 255, axes=1)
    if channels == "structures":
        mean = np.clip(mean, 1e-7, 1 - 1e-7)
    assert dice == pytest.approx(plain_dice(mean, label=label, channels=channels), abs=1e-12)


def test_no_more_than_a_slab_is_asked_for_at_once() -> None:
    candidates, label = scans("atoms")
    asked = []

    def recorded(values: NDArray[np.uint8]) -> Callable[[slice], NDArray[np.uint8]]:
        def read(part: slice) -> NDArray[np.uint8]:
            asked.append(part.stop - part.start)
            return values[:, part]

        return read

    decision = Decision(membership=MEMBERSHIP, channels="atoms")
    contest("a", candidates=[recorded(values) for values in candidates], decision=decision, reference=reference(label))
    assert max(asked) == 16


def test_what_was_not_annotated_is_not_scored() -> None:
    candidates, label = scans("atoms")
    found = contest(
        "a",
        candidates=[access(values) for values in candidates],
        decision=Decision(membership=MEMBERSHIP, channels="atoms"),
        reference=reference(label, annotated=(1,)),
    )
    assert np.isnan(found.dice(found.values[0], total=1)).tolist() == [True, False]


def test_a_structure_that_no_atom_holds_leaves_voxels_settled() -> None:
    decision = Decision(membership=MEMBERSHIP[[0, 1]], channels="structures")
    assert decision.settled(np.array([[250, 3], [255, 255]], dtype=np.uint8)).tolist() == [1, 0]


def test_candidates_that_agree_leave_nothing_contested() -> None:
    candidates, label = scans("atoms")
    found = contest(
        "a",
        candidates=[access(candidates[0])] * 2,
        decision=Decision(membership=MEMBERSHIP, channels="atoms"),
        reference=reference(label),
    )
    assert found.values.shape == (2, 4, 0)
    assert found.disagreement.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    whole = plain_dice(candidates[0] / 255, label=label, channels="atoms")
    assert found.dice(found.values[0], total=1) == pytest.approx(whole)


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
    )
    assert found.disagreement == pytest.approx(np.array([[0, 2 / 3], [2 / 3, 0]]))
