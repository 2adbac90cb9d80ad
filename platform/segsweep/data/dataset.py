"""What a dataset recipe says of a raw folder: structures, channels and cases."""

from dataclasses import dataclass, replace
from pathlib import Path

from segsweep import recipes
from segsweep.data.case import CaseSource
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A raw folder as its recipe reads it. `channels` names the images of a case in their order."""

    name: str
    labels: LabelSet
    channels: tuple[str, ...]
    cases: tuple[CaseSource, ...]


def describe(name: str, *, raw: Path) -> Dataset:
    """Read a raw folder's layout with a recipe; no voxel is touched.

    A recipe states `LABELS` and `CHANNELS`, or finds them in the folder with `labels(raw)` and `channels(raw)`. Raises RecipeError
    for an unknown recipe, InputError for a folder that is not laid out as the recipe expects. A file of one case that is missing or
    damaged is found when that case is read.
    """
    recipe = recipes.load("datasets", name=name)
    if not raw.is_dir():
        raise InputError(f"{raw}: no such folder; expected the raw scans of dataset {name!r}")
    return Dataset(
        name=name,
        labels=recipe.LABELS if hasattr(recipe, "LABELS") else recipe.labels(raw),
        channels=tuple(recipe.CHANNELS if hasattr(recipe, "CHANNELS") else recipe.channels(raw)),
        cases=tuple(replace(source, root=raw) for source in recipe.cases(raw)),
    )
