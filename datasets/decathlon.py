"""Any task in the Medical Segmentation Decathlon's layout: `dataset.json` beside `imagesTr/`, `labelsTr/` and `imagesTs/`.

Structures, channels and cases are what `dataset.json` says (`labels`, `modality`, `training`, `test`); licence and source stand
there too (`licence`, `reference`). Test scans are unlabelled, and left out when their folder is not there. Where there are several
modalities, each image is one 4D NIfTI file with all of them, in their order. For the ten tasks themselves `msd` names the structures.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segsweep.data.case import CaseSource, ChannelFile, Image, LabelFile
from segsweep.data.layouts import demand_cases, entry, inside, numbered, pairs_of, read_json
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

FILE = "dataset.json"


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
    """The scans of `training` and `test`. Raises InputError for lists that cannot be used."""
    return listed_cases(raw, values=values(manifest(raw)))


def manifest(raw: Path) -> dict[str, Any]:
    """What `dataset.json` holds."""
    return read_json(raw / FILE, what="a Decathlon task's labels, modality and lists of training and test scans")


def values(content: dict[str, Any]) -> dict[int, tuple[str, ...]]:
    """Value of the label maps -> the one structure it stands for; 0 is background."""
    return {value: (name,) for value, name in numbered(content, key="labels", file=FILE).items() if value}


def listed_cases(raw: Path, *, values: Mapping[int, tuple[str, ...]]) -> list[CaseSource]:
    """The cases of `dataset.json`, with the meaning of their label values given. Names that could lead out of `raw` are refused."""
    content = manifest(raw)
    num_channels = len(channels(raw))
    structures = tuple(dict.fromkeys(name for names in values.values() for name in names))
    found = []
    for row in entry(content, key="training", kind=list, file=FILE):
        if not isinstance(row, dict):
            raise InputError(f"{FILE}: 'training' holds {str(row)[:60]!r}; expected image and label; correct the file")
        image, label = (inside(raw, entry(row, key=key, kind=str, file=FILE)) for key in ("image", "label"))
        if not image.name.startswith("._"):
            name, images = stem(image), (_image(image, num_channels=num_channels),)
            file = LabelFile(path=label, values=values)
            found.append(CaseSource(case_id=name, images=images, labels=(file,), annotated=structures))
    tests = [inside(raw, name) for name in entry({"test": [], **content}, key="test", kind=list, file=FILE)]
    for image in tests:
        if not image.name.startswith("._") and image.parent.is_dir():
            images = (_image(image, num_channels=num_channels),)
            found.append(CaseSource(case_id=stem(image), images=images, split="test"))
    demand_cases(found, raw=raw, layout=f"scans listed in {FILE}")
    return found


def _image(path: Path, *, num_channels: int) -> Image:
    return path if num_channels == 1 else ChannelFile(path=path, num_channels=num_channels)
