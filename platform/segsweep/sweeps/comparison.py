"""A published comparison: a paper's table as rows to train, each with the figures that the paper prints for it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from segsweep.data.geometry import Size
from segsweep.data.planning import Plan
from segsweep.errors import RecipeError, unknown
from segsweep.learning.method import load_method
from segsweep.learning.params import TrainingParams

# Edges (voxels) of scaled patches: at least this, and multiples of a step that lets every network halve them down to 4 to 8 voxels.
SHORTEST_EDGE, SMALLEST_STEP, STEPS = 16, 8, 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table. `published` are fractions by the names that a result has: `dice` (mean over structures), `dice/STRUCTURE`;
    other names (`nsd`) are only printed.

    `pretrained`: it starts from a model that the user gives; `initial`: from the model of that row. `members` are rows whose models
    are averaged: such a row is not trained.
    """

    name: str
    trainable: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    pretrained: bool = False
    initial: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows in the table's order. `source` names paper and table, `measured` what its figures are, `datasets` those it is about.

    `structures` are those that the paper's mean is over, where such a dataset holds more; none means all.

    Raises RecipeError when a row needs one that is not there.
    """

    rows: tuple[Row, ...]
    source: str
    measured: str
    datasets: tuple[str, ...]
    structures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        trained = {row.name: row for row in self.rows if not row.members}
        for row in self.rows:
            for name in (*row.members, *([row.initial] if row.initial else [])):
                if name not in trained:
                    raise RecipeError(f"row {row.name!r}: {unknown(name, kind='rows that are trained', known=trained)}")
        if len({row.name for row in self.rows}) < len(self.rows):
            raise RecipeError("two rows have one name; expected another name for each")
        self.waves(pretrained=True)

    def row(self, name: str) -> Row:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)

    def waves(self, *, pretrained: bool) -> tuple[tuple[Row, ...], ...]:
        """Rows to train, in the table's order, in groups: a row comes in a later group than the one it starts from.

        Without a `pretrained` model, rows that need one, and rows that start from those, are left out.
        """
        left = [row for row in self.rows if not row.members and (pretrained or not row.pretrained)]
        waves: list[tuple[Row, ...]] = []
        done: set[str] = set()
        while wave := tuple(row for row in left if not row.initial or row.initial in done):
            waves.append(wave)
            done |= {row.name for row in wave}
            left = [row for row in left if row.name not in done]
        if pretrained and left:
            raise RecipeError(f"row {left[0].name!r} starts from itself; expected rows that start from others")
        return tuple(waves)


def comparison_of(recipe: ModuleType) -> Comparison | None:
    """What a search-space file publishes; None for one that is a space to search. Raises RecipeError for rows that need others."""
    if not hasattr(recipe, "ROWS"):
        return None
    try:
        return Comparison(
            rows=tuple(recipe.ROWS),
            source=recipe.SOURCE,
            measured=recipe.MEASURED,
            datasets=tuple(recipe.DATASETS),
            structures=tuple(getattr(recipe, "STRUCTURES", ())),
        )
    except AttributeError as error:
        raise RecipeError(
            f"{recipe.__file__}: defines ROWS and no {error.name}; expected SOURCE, MEASURED and DATASETS"
        ) from None


def config_of(row: Row, *, plan: Plan, scale: float) -> dict[str, Any]:
    """A row's trainable and parameters. With a scale below 1, epochs and the voxels of a patch are so many times the paper's."""
    config = {"trainable": row.trainable, **row.params}
    if scale == 1.0:
        return config
    params = published_params(row)
    patch = scaled_patch(params.patch_size or plan.patch_size, scale=scale)
    return {**config, **scaled_epochs(params, scale=scale), "patch_size": list(patch)}


def published_params(row: Row) -> TrainingParams:
    """The row's parameters as the paper has them. Raises RecipeError when its trainable does not know one."""
    return load_method(row.trainable).params(row.params)


def scaled_epochs(params: TrainingParams, *, scale: float) -> dict[str, int]:
    """`epochs` and the parameters that count a part of them (`warmup_epochs`), each at least 1, and one more for what is left."""
    counts = {
        name: getattr(params, name)
        for name in (entry.name for entry in dataclasses.fields(params))
        if name.endswith("epochs") and getattr(params, name) > 0
    }
    fewer = {name: max(1, round(count * scale)) for name, count in counts.items()}
    parts = sum(count for name, count in fewer.items() if name != "epochs")
    return {**fewer, "epochs": max(fewer["epochs"], parts + 1 if parts else 1)}


def scaled_patch(patch_size: Size, *, scale: float) -> Size:
    """A patch (voxels z, y, x) of the same proportions with about `scale` times the voxels, which networks can halve."""
    z, y, x = (min(edge, _halvable(edge * math.cbrt(scale))) for edge in patch_size)
    return z, y, x


def _halvable(edge: float) -> int:
    """The next size from 16 voxels on that is 4 to 8 times a power of two (from 64 on; a multiple of 8 below)."""
    least = max(round(edge, 3), SHORTEST_EDGE)  # a cube root's last digits are no voxel
    step = max(SMALLEST_STEP, 2 ** math.ceil(math.log2(least / STEPS)))
    return math.ceil(least / step) * step
