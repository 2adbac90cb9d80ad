"""What a dataset recipe says of a raw folder: structures, channels and cases."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from segsweep import recipes
from segsweep.data.case import CaseSource, Image, Labels, Series
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

_File = TypeVar("_File", bound=Image | Labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A raw folder as its recipe reads it. `channels` names the images of a case in their order."""

    name: str
    labels: LabelSet
    channels: tuple[str, ...]
    cases: tuple[CaseSource, ...]


def describe(name: str, *, raw: Path) -> Dataset:
    """Read a raw folder's layout with a recipe; no voxel is touched. Its paths become absolute: workers run in folders of their own.

    A recipe states `LABELS` and `CHANNELS`, or finds them in the folder with `labels(raw)` and `channels(raw)`. Raises RecipeError
    for an unknown recipe, InputError for a folder that is not laid out as the recipe expects. A file of one case that is missing or
    damaged is found when that case is read.
    """
    recipe = recipes.load("datasets", name=name)
    if not raw.is_dir():
        raise InputError(f"{raw}: no such folder; expected the raw scans of dataset {name!r}")
    labels = recipe.LABELS if hasattr(recipe, "LABELS") else recipe.labels(raw)
    _demand_plain_names(labels, raw=raw)
    return Dataset(
        name=name,
        labels=labels,
        channels=tuple(recipe.CHANNELS if hasattr(recipe, "CHANNELS") else recipe.channels(raw)),
        cases=tuple(_absolute(source, root=raw.absolute()) for source in recipe.cases(raw)),
    )


def _demand_plain_names(labels: LabelSet, *, raw: Path) -> None:
    """A slash stands between a dataset and its structure where stores are joined."""
    for structure in labels.structures:
        if "/" in structure:
            raise InputError(
                f"{raw}: structure {structure!r} has a slash in its name; expected none (joined stores write DATASET/STRUCTURE); rename it"
            )


def _absolute(source: CaseSource, *, root: Path) -> CaseSource:
    images, labels = map(_absolute_file, source.images), map(_absolute_file, source.labels)
    return replace(source, images=tuple(images), labels=tuple(labels), root=root)


def _absolute_file(file: _File) -> _File:
    match file:
        case Path():
            return file.absolute()
        case Series():
            return replace(file, files=tuple(path.absolute() for path in file.files))
        case _:
            return replace(file, path=file.path.absolute())
