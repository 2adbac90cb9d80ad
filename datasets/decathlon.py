"""Any task in the Medical Segmentation Decathlon's layout: `dataset.json` beside `imagesTr/`, `labelsTr/` and `imagesTs/`.

Structures, channels and cases are what `dataset.json` says (`labels`, `modality`, `training`, `validation`, `test`); licence and source
stand there too (`licence`, `reference`). Scans of `validation` and `test` have the labels that are listed with them, as a rule none, and
are left out when their folder is not there. Where there are several
modalities, each image is one 4D NIfTI file with all of them, in their order. For the ten tasks themselves `msd` names the structures.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segsweep.data.case import CaseSource, ChannelFile, Image, LabelFile, Split
from segsweep.data.layouts import demand_cases, entry, inside, numbered, pairs_of, read_json
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

FILE = "dataset.json"

# Real tasks have no list for validation; others in their layout do.
_LISTS: Mapping[str, Split] = {"training": "train", "validation": "validation", "test": "test"}


def labels(raw: Path) -> LabelSet:
    """The named values but 0, in their order."""
    names = tuple(names[0] for names in values(manifest(raw)).values())
    return LabelSet(structures=names, pairs=pairs_of(names))


def channels(raw: Path) -> tuple[str, ...]:
    """The modalities by number. Raises InputError where there is none."""
    names = tuple(numbered(manifest(raw), key="modality", file=FILE).values())
    if not names:
        raise InputError(f"{FILE}: 'modality' names no channel; expected at least one; correct the file")
    return names


def cases(raw: Path) -> list[CaseSource]:
    """The scans of all lists. Raises InputError for lists that cannot be used."""
    return listed_cases(raw, values=values(manifest(raw)))


def manifest(raw: Path) -> dict[str, Any]:
    """What `dataset.json` holds."""
    return read_json(raw / FILE, what="a Decathlon task's labels, modality and lists of scans")


def values(content: dict[str, Any]) -> dict[int, tuple[str, ...]]:
    """Value of the label maps -> the one structure it stands for; 0 is background."""
    return {value: (name,) for value, name in numbered(content, key="labels", file=FILE).items() if value}


def listed_cases(raw: Path, *, values: Mapping[int, tuple[str, ...]]) -> list[CaseSource]:
    """The cases of `dataset.json`, with the meaning of their label values given. Names that could lead out of `raw` are refused."""
    content = {"validation": [], "test": [], **manifest(raw)}
    num_channels = len(channels(raw))
    found = (
        _case(row, raw=raw, split=split, values=values, num_channels=num_channels)
        for key, split in _LISTS.items()
        for row in entry(content, key=key, kind=list, file=FILE)
    )
    cases = [case for case in found if case]
    demand_cases(cases, raw=raw, layout=f"scans listed in {FILE}")
    return cases


def _case(
    row: Any, *, raw: Path, split: Split, values: Mapping[int, tuple[str, ...]], num_channels: int
) -> CaseSource | None:
    """The case of a row; None for a hidden file, and for a held-out one whose folder was not copied."""
    listed = isinstance(row, dict)
    if split == "train" and not listed:
        raise InputError(f"{FILE}: 'training' holds {str(row)[:60]!r}; expected image and label; correct the file")
    image = inside(raw, entry(row, key="image", kind=str, file=FILE) if listed else row)
    labels: tuple[LabelFile, ...] = ()
    if split == "train" or (listed and "label" in row):
        label = inside(raw, entry(row, key="label", kind=str, file=FILE))
        labels = (LabelFile(path=label, values=values),)
    if image.name.startswith("._") or (split != "train" and not image.parent.is_dir()):
        return None
    structures = tuple(dict.fromkeys(name for names in values.values() for name in names))
    return CaseSource(
        case_id=stem(image),
        images=(_image(image, num_channels=num_channels),),
        labels=labels,
        annotated=structures if labels else (),
        split=split,
    )


def _image(path: Path, *, num_channels: int) -> Image:
    return path if num_channels == 1 else ChannelFile(path=path, num_channels=num_channels)
