import pytest
import torch
import torch.nn.functional as F

from segsweep.learning.supervision import NNUNET, Supervision, shrink


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (1, (1.0,)),
        (4, (0.5714, 0.2857, 0.1429, 0)),
        (5, (0.5333, 0.2667, 0.1333, 0.0667, 0)),
        (6, (0.5161, 0.2581, 0.1290, 0.0645, 0.0323, 0)),
    ],
)
def test_nnunet_weights_are_the_printed_ones(levels, expected):
    assert NNUNET.weights(levels) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("supervision", "levels", "expected"),
    [
        (Supervision(heads=4), 6, (8 / 15, 4 / 15, 2 / 15, 1 / 15, 0, 0)),
        (Supervision(heads=4), 3, (4 / 7, 2 / 7, 1 / 7)),
        (Supervision(heads=None), 3, (4 / 7, 2 / 7, 1 / 7)),
        (Supervision(heads=4, decay=1.0), 5, (0.25, 0.25, 0.25, 0.25, 0)),
        (Supervision(heads=None, decay=1.0), 2, (0.5, 0.5)),
        (Supervision(heads=1), 4, (1.0, 0, 0, 0)),
    ],
)
def test_the_levels_that_count_share_one(supervision, levels, expected):
    assert supervision.weights(levels) == pytest.approx(expected)


def test_shrink_equals_nearest_exact():
    atoms = torch.randint(0, 300, (2, 9, 8, 16))
    for shape in ((9, 8, 16), (5, 4, 8), (3, 2, 4), (9, 1, 1)):
        expected = F.interpolate(atoms[:, None].float(), size=shape, mode="nearest-exact")[:, 0].long()
        assert torch.equal(shrink(atoms, shape=shape), expected)
