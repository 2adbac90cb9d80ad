"""What is said of a voxel before any mean is taken holds for every mean."""

import numpy as np
import pytest

from segsweep.evaluation.decision import Decision

# Two structures that overlap.
MEMBERSHIP = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=bool)


def test_ties_go_to_the_lower_atom() -> None:
    decision = Decision(membership=MEMBERSHIP, channels="atoms")
    sums = np.array([[3, 1, 0], [3, 2, 0], [1, 2, 0], [0, 2, 7]])
    assert decision.atoms(sums, total=1).tolist() == np.argmax(sums, axis=0).tolist() == [0, 1, 3]


def test_a_structure_that_no_atom_holds_has_no_say() -> None:
    decision = Decision(membership=MEMBERSHIP[[0, 1]], channels="structures")
    votes = decision.votes(np.array([[250, 3], [255, 255]], dtype=np.uint8))
    assert decision.elected(votes).tolist() == [1, 0]


def test_a_set_that_is_no_atom_is_not_elected() -> None:
    decision = Decision(membership=MEMBERSHIP[[0, 2, 1]], channels="structures")
    values = np.array([[0, 255, 0, 255], [0, 0, 255, 255]], dtype=np.uint8)
    assert decision.elected(decision.votes(values)).tolist() == [0, 2, 1, -1]


@pytest.mark.parametrize("channels", ["atoms", "structures"])
@pytest.mark.parametrize("atoms", [[0, 1, 2, 3], [3, 2, 0, 1], [2, 0, 1]])
def test_a_duel_says_what_every_mean_takes(channels, atoms: list[int]) -> None:
    # All pairs of a few values, so that ties and means of one half are among them.
    decision = Decision(membership=MEMBERSHIP[atoms], channels=channels)
    rows = len(atoms) if channels == "atoms" else 2
    steps = np.array([0, 60, 127, 128, 195, 255] if channels == "structures" else [0, 60, 100, 195], dtype=np.uint8)
    one = np.stack(np.meshgrid(*[steps] * rows, indexing="ij")).reshape(rows, -1)
    pairs = np.stack(np.meshgrid(np.arange(one.shape[1]), np.arange(one.shape[1]), indexing="ij")).reshape(2, -1)
    values = np.moveaxis(one[:, pairs], 0, 1)
    duels = decision.duels(values)
    votes = [decision.votes(candidate) for candidate in values]
    contested = (votes[0] != votes[1]).any(axis=0)
    two = contested & ~duels.open
    assert two.sum() > 100
    for shares in ([1, 0], [0, 1], [1, 1], [2, 5]):
        found = decision.atoms(np.tensordot(shares, values.astype(int), axes=1), total=sum(shares))
        sums = np.tensordot(shares, duels.lead.astype(int), axes=1)
        assert np.array_equal(np.where(sums > 0, duels.second, duels.first)[two], found[two])
        elected = decision.elected(votes[0])
        agreed = ~contested & (elected >= 0)
        if channels == "structures":
            assert np.array_equal(elected[agreed], found[agreed])
