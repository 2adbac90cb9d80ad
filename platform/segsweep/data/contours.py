"""Fills planar contours on a pixel grid by the even-odd rule: a contour inside another cuts a hole, one inside the hole fills it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Contours are no better than this, in pixels; without it the noise of arithmetic would decide which side of an edge a centre is on.
DECIMALS = 4


def fill_contours(contours: Sequence[NDArray[np.floating]], *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(rows, columns): the pixels whose centre lies inside an odd number of the contours.

    A contour is (points, 2) of row and column, pixel centres being whole numbers; its last point joins its first, and what lies
    off the grid is cut off. A centre on an edge counts as inside where the region begins there, as outside where it ends, so
    that regions which share an edge share no pixel. Edges that run to and fro (a keyhole) cancel out.
    """
    rows, columns = shape
    # How often a pixel and all those after it in its row change sides; that 256 wraps to 0 leaves odd and even as they are.
    turns = np.zeros((rows, columns + 1), dtype=np.uint8)
    for contour in contours:
        _count_crossings(np.round(contour, DECIMALS), turns=turns)
    return np.cumsum(turns, axis=1, dtype=np.uint8)[:, :columns] % 2 == 1


def _count_crossings(contour: NDArray[np.floating], *, turns: NDArray[np.uint8]) -> None:
    """Adds every crossing of an edge and a row of centres to the first pixel at or after it."""
    rows, columns = turns.shape[0], turns.shape[1] - 1
    start, end = contour, np.roll(contour, -1, axis=0)
    # An edge is walked from its lower row, whichever way the contour runs, so that both ways give the same crossings.
    upward = (start[:, 0] <= end[:, 0])[:, np.newaxis]
    low, high = np.where(upward, start, end), np.where(upward, end, start)
    first = np.clip(np.ceil(low[:, 0]), 0, rows).astype(int)
    last = np.clip(np.ceil(high[:, 0]), 0, rows).astype(int)
    counts = last - first
    edge = np.repeat(np.arange(len(contour)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    along = (row - low[edge, 0]) / (high[edge, 0] - low[edge, 0])
    crossing = np.round(low[edge, 1] + along * (high[edge, 1] - low[edge, 1]), 2 * DECIMALS)
    np.add.at(turns, (row, np.clip(np.ceil(crossing), 0, columns).astype(int)), 1)
