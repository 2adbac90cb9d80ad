"""What an index must say of a case before files are named and memory is taken by it: that its checksum fits tells nothing of its maker."""

import math
from collections.abc import Mapping
from typing import Any

from segsweep.data.case import CASE_ID
from segsweep.data.intake import MAX_BYTES, MAX_VOXELS_AN_AXIS, SPACING_MM


def demand_case(values: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError for a case whose name could be another file's, or whose voxels or grids no conversion lets in."""
    case_id = values["case_id"]
    if not CASE_ID.fullmatch(case_id):
        raise ValueError(f"a case is called {case_id!r}, which is no name for its files")
    for name in ("annotated", "atoms"):
        if type(values[name]) is not int or values[name] < 0:
            raise ValueError(f"{name} of {case_id} is {values[name]!r}, which is no number of a list")
    if not all(type(count) is int and count >= 0 for count in values["voxels"]):
        raise ValueError(f"the voxels of {case_id} are counted as {values['voxels']}")
    for grid in (values["geometry"], values["source_geometry"]):
        if not _is_scans(grid):
            raise ValueError(f"a grid of {case_id} is {grid}, which no scan has")


def _is_scans(grid: Mapping[str, Any]) -> bool:
    low, high = SPACING_MM
    shape, spacing, origin, direction = (grid[name] for name in ("shape", "spacing", "origin", "direction"))
    return (
        (len(shape), len(spacing), len(origin), len(direction)) == (3, 3, 3, 9)
        and all(type(size) is int and 1 <= size <= MAX_VOXELS_AN_AXIS for size in shape)
        and math.prod(shape) <= MAX_BYTES
        and all(low <= mm <= high for mm in spacing)
        and all(map(math.isfinite, (*origin, *direction)))
    )
