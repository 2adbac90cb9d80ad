import numpy as np
import pytest
from scipy import ndimage

from segsweep.data import duplicates
from segsweep.data.duplicates import signature, similar


def scan(seed: int) -> np.ndarray:
    """Tissue of coarse random shape in air, as different from another seed's as two patients of one region."""
    generator = np.random.default_rng(seed)
    shape = (48, 72, 80)
    body = np.full(shape, -1000.0)
    left, right = generator.integers(4, 20), generator.integers(60, 76)
    body[:, 12:60, left:right] = 20
    detail = ndimage.gaussian_filter(generator.normal(size=shape), 4)
    return np.where(body > -1000, body + 200 * detail / detail.std(), body).astype(np.float32)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a + np.random.default_rng(9).normal(0, 20, a.shape),
        lambda a: ndimage.zoom(a, (0.7, 1.3, 1.3), order=1),
        lambda a: a[1:],
        lambda a: 0.98 * a + 10,
        lambda a: np.where(a == -1000, -3024, a),
    ],
    ids=["noise", "resampled", "one slice less", "other calibration", "other padding"],
)
def test_the_same_scan_in_another_form(change) -> None:
    signatures = [signature(scan(seed)) for seed in range(3)] + [signature(change(scan(1)))]
    (pair,) = similar(signatures)
    assert (pair.first, pair.second) == (1, 3)
    assert pair.correlation >= duplicates.SAME


def test_pairs_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_TOGETHER", 2)
    signatures = [signature(scan(seed)) for seed in (0, 1, 2, 3, 0, 2)]
    assert [(pair.first, pair.second) for pair in similar(signatures)] == [(0, 4), (2, 5)]


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 40, 33), (64, 64, 64)])
def test_small_and_constant_scans_have_signatures(shape) -> None:
    assert np.isfinite(signature(np.random.default_rng(0).normal(size=shape).astype(np.float32))).all()
    assert not signature(np.zeros(shape, dtype=np.int16)).any()
