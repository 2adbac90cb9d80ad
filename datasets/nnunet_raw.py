"""Any dataset in nnU-Net's raw layout: `DatasetXXX_Name/{imagesTr,labelsTr,imagesTs}` with `CASE_0000.ext` and `dataset.json`.

Regions become overlapping structures: a label value belongs to every region that lists it. Voxels of the `ignore` label count as
unknown. `imagesTs` is held out, unlabelled unless `labelsTs` holds its label. nnU-Net 1's `dataset.json` (`modality`, labels by
number) is read too. Licence and source are the dataset's own: see its `dataset.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import (
    channel_files,
    demand_cases,
    entry,
    inside,
    numbered,
    one_each,
    pairs_of,
    read_json,
    scans,
    structures_by_value,
)
from segsweep.data.readers import SUFFIXES
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

FILE = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What `dataset.json` says. `files`, empty as a rule, lists the cases in place of imagesTr/; it is untrusted."""

    channels: tuple[str, ...]
    structures: tuple[str, ...]
    values: Mapping[int, tuple[str, ...]]
    ignore: int | None
    ending: str
    num_training: int | None
    files: Mapping[str, Any]


def labels(raw: Path) -> LabelSet:
    """Every label and region but background and `ignore`, in the order of `dataset.json`."""
    structures = _manifest(raw).structures
    return LabelSet(structures=structures, pairs=pairs_of(structures))


def channels(raw: Path) -> tuple[str, ...]:
    """`channel_names` by number."""
    return _manifest(raw).channels


def cases(raw: Path) -> list[CaseSource]:
    """Training and test cases. Raises InputError for a dataset.json that does not fit the files."""
    manifest = _manifest(raw)
    listed = [_listed(raw, case_id=case_id, manifest=manifest) for case_id in manifest.files]
    found = listed or _found(raw, manifest=manifest)
    demand_cases(found, raw=raw, layout=f"imagesTr/CASE_0000{manifest.ending} or cases listed in {FILE}")
    if manifest.num_training not in (None, len(found)):
        raise InputError(
            f"{FILE}: numTraining is {manifest.num_training}, and {len(found)} training cases are there; "
            "expected as many; copy the missing ones or correct the number"
        )
    labels_of_tests = one_each(scans(raw, "labelsTs/*"))
    for case_id, images in _images(raw, folder="imagesTs", manifest=manifest).items():
        found.append(_source(case_id, images=images, label=labels_of_tests.get(case_id), manifest=manifest, test=True))
    return found


def _found(raw: Path, *, manifest: _Manifest) -> list[CaseSource]:
    """A case for every image in imagesTr/ or label in labelsTr/; the other file may be missing, which reading it says."""
    labels = one_each(path for path in scans(raw, "labelsTr/*") if path.name.lower().endswith(manifest.ending))
    images = _images(raw, folder="imagesTr", manifest=manifest)
    expected = [raw / "imagesTr" / f"{case_id}_0000{manifest.ending}" for case_id in labels.keys() - images.keys()]
    lost = channel_files(expected, num_channels=len(manifest.channels))
    return [
        _source(
            case_id,
            images=files,
            label=labels.get(case_id, raw / "labelsTr" / f"{case_id}{manifest.ending}"),
            manifest=manifest,
        )
        for case_id, files in sorted({**images, **lost}.items())
    ]


def _images(raw: Path, *, folder: str, manifest: _Manifest) -> dict[str, tuple[Path, ...]]:
    paths = [path for path in scans(raw, f"{folder}/*") if path.name.lower().endswith(manifest.ending)]
    return channel_files(paths, num_channels=len(manifest.channels))


def _source(
    case_id: str, *, images: tuple[Path, ...], label: Path | None, manifest: _Manifest, test: bool = False
) -> CaseSource:
    files = () if label is None else (LabelFile(path=label, values=manifest.values, ignore=manifest.ignore),)
    return CaseSource(
        case_id=case_id,
        images=images,
        labels=files,
        annotated=manifest.structures if files else (),
        split="test" if test else "train",
    )


def _listed(raw: Path, *, case_id: str, manifest: _Manifest) -> CaseSource:
    """A case of the `dataset` entry, whose paths are used only inside `raw`."""
    row = entry(dict(manifest.files), key=case_id, kind=dict, file=FILE)
    images = [inside(raw, name) for name in entry(row, key="images", kind=list, file=FILE)]
    label = inside(raw, entry(row, key="label", kind=str, file=FILE))
    if len(images) != len(manifest.channels):
        raise InputError(
            f"{FILE}: {case_id} lists {len(images)} images; expected one for each of {len(manifest.channels)} channels; "
            "correct the list"
        )
    return _source(case_id, images=tuple(images), label=label, manifest=manifest)


def _manifest(raw: Path) -> _Manifest:
    content = read_json(raw / FILE, what="nnU-Net's channel_names, labels and file_ending")
    first = "modality" in content and "channel_names" not in content
    stated = _labels_of_version_one(content) if first else {**entry(content, key="labels", kind=dict, file=FILE)}
    if stated.pop("background", 0) not in (0, [0]):
        raise InputError(f"{FILE}: 'background' is not 0; expected the label value 0; correct the file")
    ignore = list(structures_by_value({"ignore": stated.pop("ignore")}, file=FILE)) if "ignore" in stated else []
    values = structures_by_value(stated, file=FILE)
    if len(ignore) > 1 or set(ignore) & set(values):
        raise InputError(f"{FILE}: 'ignore' is {ignore}; expected one value that no structure has; correct the file")
    ending = ".nii.gz" if first else entry(content, key="file_ending", kind=str, file=FILE)
    if ending not in SUFFIXES:
        raise InputError(
            f"{FILE}: 'file_ending' is {ending!r}; expected one of {', '.join(SUFFIXES)}; convert the files"
        )
    training = content.get("numTraining")
    return _Manifest(
        channels=tuple(numbered(content, key="modality" if first else "channel_names", file=FILE).values()),
        structures=tuple(stated),
        values=values,
        ignore=ignore[0] if ignore else None,
        ending=ending,
        num_training=training if isinstance(training, int) else None,
        files=entry({"dataset": {}, **content}, key="dataset", kind=dict, file=FILE),
    )


def _labels_of_version_one(content: dict[str, Any]) -> dict[str, Any]:
    """By name, without that of value 0, which is the background whatever it is called."""
    return {name: value for value, name in numbered(content, key="labels", file=FILE).items() if value}
