"""Surface elements of a mask and their distances to another mask's surface (Nikolov et al. 2018, the surface-distance definition).

Every 2 x 2 x 2 block of voxels that is neither empty nor full holds a piece of surface. Its area comes from the marching-cubes
polygons through the midpoints of the block's edges; its distance is that from the block's centre to the nearest such
block of the other mask. Distances are looked for from these blocks only, in a tree of the other mask's: a transform of the
whole box would give the same numbers for hundreds of times as many voxels.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from segsweep.data.geometry import Spacing

Corner = tuple[int, ...]
Point = tuple[float, ...]
Box = tuple[slice, slice, slice]

FULL = 255
# A tree answers at once where the other surface is near. Where it is not, a search costs about as much as the distance transform
# takes for this many voxels.
NEAR_VOXELS, VOXELS_A_SEARCH = 4, 200


@dataclass(frozen=True, kw_only=True)
class Surface:
    """One mask's surface elements: distances to the other surface in mm, ascending, and the elements' areas in mm²."""

    distances: NDArray[np.float64]
    areas: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Total area in mm²."""
        return float(self.areas.sum())

    def within(self, tolerance: float) -> float:
        """Area in mm² that lies at most `tolerance` mm from the other surface."""
        return float(self.areas[self.distances <= tolerance].sum())

    @property
    def mean(self) -> float:
        """Area-weighted mean distance in mm; NaN without elements, infinite when the other mask is empty."""
        return float((self.distances * self.areas).sum() / self.area) if len(self.areas) else float("nan")

    def percentile(self, percent: float) -> float:
        """Distance in mm that `percent` % of the area does not exceed; infinite without elements."""
        if not len(self.areas):
            return float("inf")
        share = np.cumsum(self.areas) / np.sum(self.areas)
        return float(self.distances[min(int(np.searchsorted(share, percent / 100)), len(share) - 1)])


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Both masks' surface elements, each with its distances to the other mask's surface."""

    reference: Surface
    prediction: Surface

    def normalised_dice(self, tolerance: float) -> float:
        """Normalised surface Dice at a tolerance in mm; NaN when both masks are empty."""
        total = self.reference.area + self.prediction.area
        return (self.reference.within(tolerance) + self.prediction.within(tolerance)) / total if total else float("nan")

    def hausdorff(self, percent: float) -> float:
        """Larger of the two directed percentile distances in mm (95: HD95; 100: the Hausdorff distance)."""
        return max(self.reference.percentile(percent), self.prediction.percentile(percent))


def surfaces(prediction: NDArray[np.bool_], *, reference: NDArray[np.bool_], spacing: Spacing) -> Surfaces:
    """Surface elements of two masks (z, y, x) of one grid; `spacing` in mm in the same order.

    When a mask is empty it has no elements, and all distances of the other one are infinite.
    """
    box = joint_box(prediction, other=reference)
    if box is None:
        nothing = Surface(distances=np.empty(0), areas=np.empty(0))
        return Surfaces(reference=nothing, prediction=nothing)
    codes = {"reference": neighbour_codes(reference[box]), "prediction": neighbour_codes(prediction[box])}
    places = {name: np.flatnonzero(_is_border(code)) for name, code in codes.items()}
    areas = element_areas(spacing)
    found = {}
    for name, other in (("reference", "prediction"), ("prediction", "reference")):
        there = _is_border(codes[other].reshape(-1)[places[name]])
        distances = nearest_mm(
            places[name], others=places[other], shared=there, shape=codes[name].shape, spacing=spacing
        )
        order = np.argsort(distances)
        weights = areas[codes[name].reshape(-1)[places[name]]]
        found[name] = Surface(distances=distances[order], areas=weights[order])
    return Surfaces(reference=found["reference"], prediction=found["prediction"])


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """Smallest box that holds a mask (z, y, x); None when it is empty. Each axis is searched inside the box found so far."""
    box = [slice(0, n) for n in mask.shape]
    for axis in range(3):
        inside = mask[tuple(box)]
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero(inside.any(axis=others))
        if not len(hits):
            return None
        box[axis] = slice(int(hits[0]), int(hits[-1]) + 1)
    return box[0], box[1], box[2]


def joint_box(mask: NDArray[np.bool_], *, other: NDArray[np.bool_]) -> Box | None:
    """Smallest box that holds both masks; None when both are empty."""
    boxes = [box for box in (bounding_box(mask), bounding_box(other)) if box is not None]
    return union(boxes)


def union(boxes: Sequence[Box]) -> Box | None:
    """Smallest box that holds all boxes; None when there are none."""
    if not boxes:
        return None
    z, y, x = (slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
    return z, y, x


def with_margin(box: Box, *, shape: tuple[int, ...]) -> Box:
    """The box and one voxel around it, as far as there are any."""
    z, y, x = (slice(max(0, one.start - 1), min(count, one.stop + 1)) for one, count in zip(box, shape, strict=True))
    return z, y, x


def neighbour_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Code of every 2 x 2 x 2 block of the mask with one voxel of background around it: 128 for its (0, 0, 0) corner to 1 for (1, 1, 1)."""
    padded: NDArray[np.uint8] = np.pad(mask, 1).view(np.uint8)
    row = (padded[:, :, :-1] << 1) | padded[:, :, 1:]
    square = (row[:, :-1] << 2) | row[:, 1:]
    return ((square[:-1] << 4) | square[1:]).astype(np.uint8, copy=False)


@cache
def element_areas(spacing: Spacing) -> NDArray[np.float64]:
    """Area in mm² of the surface element of each of the 256 codes."""
    z, y, x = spacing
    scale = np.array([y * x, z * x, z * y])
    return np.array([np.linalg.norm(normals * scale, axis=1).sum() for normals in _element_normals()])


def _is_border(code: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Neither 0 nor FULL: both become the two largest numbers when 1 is taken away."""
    return code - np.uint8(1) < FULL - 1


def nearest_mm(
    places: NDArray[np.intp],
    *,
    others: NDArray[np.intp],
    shared: NDArray[np.bool_],
    shape: tuple[int, ...],
    spacing: Spacing,
) -> NDArray[np.float64]:
    """mm from each place to the nearest of the others, both flat indices of a grid of this shape; infinite without others.

    `shared` says which places are themselves among the others.
    """
    if not len(others):
        return np.full(len(places), np.inf)
    distances = np.zeros(len(places))
    if not shared.all():
        distances[~shared] = _searched(places[~shared], others=others, shape=shape, spacing=spacing)
    return distances


def _searched(
    places: NDArray[np.intp], *, others: NDArray[np.intp], shape: tuple[int, ...], spacing: Spacing
) -> NDArray[np.float64]:
    """Distances of places that are not among the others. The steps are counted in voxels before they become mm, so that equal
    steps are equally long to the last bit, as in a distance transform: tolerances are often whole voxels."""
    here, there = (np.stack(np.unravel_index(flat, shape), axis=1) for flat in (places, others))
    tree = KDTree(there * spacing, compact_nodes=False, balanced_tree=False)
    nearest = np.asarray(tree.query(here * spacing, distance_upper_bound=NEAR_VOXELS * max(spacing))[1])
    far = np.flatnonzero(nearest == len(there))
    if len(far) * VOXELS_A_SEARCH < math.prod(shape):
        nearest[far] = tree.query(here[far] * spacing)[1]
        steps = (here - there[nearest]) * spacing
    else:
        steps = here - _nearest_places(others, shape=shape, spacing=spacing)[:, *here.T].T
        steps = steps * spacing
    return np.sqrt((steps * steps).sum(axis=1))


def _nearest_places(others: NDArray[np.intp], *, shape: tuple[int, ...], spacing: Spacing) -> NDArray[np.int32]:
    """Index (3, z, y, x) of the nearest of these places for every voxel."""
    elsewhere = np.ones(shape, dtype=bool)
    elsewhere.reshape(-1)[others] = False
    return np.asarray(
        ndimage.distance_transform_edt(elsewhere, sampling=spacing, return_distances=False, return_indices=True)
    )


# The table of the 256 blocks. The rule was worked out from the definition's published areas, and a test holds it to them:
# on a face whose diagonals differ the rarer kind of corner is cut off, and each polygon is split into triangles so that
# their area on the unit cube is largest.


@cache
def _element_normals() -> tuple[NDArray[np.float64], ...]:
    """For each code the triangles' area vectors (triangles, 3) on the unit cube; their norms are areas."""
    return tuple(_code_normals(code) for code in range(256))


def _code_normals(code: int) -> NDArray[np.float64]:
    corners: list[Corner] = list(itertools.product((0, 1), repeat=3))
    inside = {corner for place, corner in enumerate(corners) if code >> (7 - place) & 1}
    rarer = len(inside) <= 4
    segments = [segment for face in _faces() for segment in _face_segments(face, inside=inside, cut_off=rarer)]
    best = [max(_splits(np.array(loop)), key=_total) for loop in _loops(segments)]
    return np.concatenate(best) if best else np.empty((0, 3))


def _faces() -> list[list[Corner]]:
    """The cube's six faces as their corners in turn."""
    faces = []
    for axis, side in itertools.product(range(3), (0, 1)):
        turn = [(0, 0), (0, 1), (1, 1), (1, 0)]
        faces.append([(*pair[:axis], side, *pair[axis:]) for pair in turn])
    return faces


def _face_segments(face: list[Corner], *, inside: set[Corner], cut_off: bool) -> list[tuple[Point, Point]]:
    middles = [tuple((a + b) / 2 for a, b in zip(face[i], face[(i + 1) % 4], strict=True)) for i in range(4)]
    crossed = [i for i in range(4) if (face[i] in inside) != (face[(i + 1) % 4] in inside)]
    if len(crossed) == 4:
        first = 0 if (face[0] in inside) == cut_off else 1
        return [(middles[corner - 1], middles[corner]) for corner in (first, first + 2)]
    return [(middles[crossed[0]], middles[crossed[1]])] if crossed else []


def _loops(segments: list[tuple[Point, Point]]) -> list[list[Point]]:
    """Closed polygons from segments of which exactly two meet in every point."""
    left = list(segments)
    loops = []
    while left:
        start, point = left.pop()
        loop = [start]
        while point != start:
            loop.append(point)
            following = next(segment for segment in left if point in segment)
            left.remove(following)
            point = following[0] if following[1] == point else following[1]
        loops.append(loop)
    return loops


def _splits(polygon: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Every way to split a polygon into triangles, as the triangles' area vectors."""
    if len(polygon) < 3:
        return [np.empty((0, 3))]
    ways = []
    for apex in range(1, len(polygon) - 1):
        triangle = np.cross(polygon[apex] - polygon[0], polygon[-1] - polygon[0])[None] / 2
        for near, far in itertools.product(_splits(polygon[: apex + 1]), _splits(polygon[apex:])):
            ways.append(np.concatenate([near, triangle, far]))
    return ways


def _total(normals: NDArray[np.float64]) -> float:
    """Area; rounded, so that equal ways to split compare as equal and the first one is taken."""
    return round(float(np.linalg.norm(normals, axis=1).sum()), 9)
