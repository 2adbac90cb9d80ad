"""The raw files of one case as arrays on one grid: its images, and one mask for every structure that its labels hold."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data import dicom, flips, readers, segments
from segsweep.data.case import (
    CaseSource,
    ChannelFile,
    Image,
    LabelFile,
    Labels,
    MaskFile,
    SegmentFile,
    Series,
    lies_below,
)
from segsweep.data.geometry import Geometry
from segsweep.data.placement import same_voxels
from segsweep.data.readers import Scan
from segsweep.data.structures import IGNORE, LabelSet
from segsweep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RawCase:
    """One case as read. Arrays are (z, y, x) in the files' own axis order, on `geometry`.

    `masks` has structure indices as keys, and IGNORE for the voxels of which a label file says that nobody knows.
    """

    images: Sequence[NDArray]
    geometry: Geometry
    masks: Mapping[int, NDArray[np.bool_]]
    digests: tuple[str, ...]


def read_case(source: CaseSource, *, labels: LabelSet) -> RawCase:
    """Read and check all files of a case. Raises InputError that names the case, the file and what is wrong."""
    with _of_case(source):
        return _read_case(source, labels=labels)


def source_digests(source: CaseSource) -> tuple[str, ...]:
    """The `digests` that reading the case would give, without decoding any file. Raises InputError for a missing one."""
    with _of_case(source):
        labels = (_digest(file, content=readers.file_digest(file.path)) for file in source.labels)
        return (*(_image_digest(image) for image in source.images), *labels)


@contextmanager
def _of_case(source: CaseSource) -> Iterator[None]:
    """Files are looked at only where they lie below the case's root; every InputError names the case."""
    try:
        for path in _files(source):
            if source.root and not lies_below(path, root=source.root):
                raise InputError(
                    f"{path.name} is a link that leads out of {source.root.name}/; expected the data itself; copy it there"
                )
        yield
    except InputError as error:
        if str(error).startswith((f"case {source.case_id}:", f"{source.case_id}:")):
            raise
        raise InputError(f"case {source.case_id}: {error}") from None


def _files(source: CaseSource) -> Iterator[Path]:
    for image in source.images:
        yield from image.files if isinstance(image, Series) else (_path(image),)
    yield from (file.path for file in source.labels)


def _read_case(source: CaseSource, *, labels: LabelSet) -> RawCase:
    read = [_read_image(image) for image in source.images]
    geometry = read[0][0].geometry
    images = [
        _on_grid(source, scan=scan, path=_path(image), expected=geometry)
        for image, channels in zip(source.images, read, strict=True)
        for scan in channels
    ]
    masks: dict[int, NDArray[np.bool_]] = {}
    digests = [channels[0].digest for channels in read]
    for file in source.labels:
        if isinstance(file, SegmentFile):
            content = readers.file_digest(file.path)
            named = segments.read_segments(file.path, scan=read[0][0], names=file.names)
        else:
            label = readers.read_labels(file.path)
            if isinstance(file, LabelFile) and file.flip is not None:
                label = flips.placed(label, scan=read[0][0], flip=file.flip, name=file.path.name)
            voxels = _on_grid(source, scan=label, path=file.path, expected=geometry)
            content, named = label.digest, _named_masks(file, voxels=voxels, source=source)
        digests.append(_digest(file, content=content))
        for name, mask in named:
            index = IGNORE if name is None else labels.structures.index(name)
            masks[index] = masks[index] | mask if index in masks else mask
    return RawCase(images=images, geometry=geometry, masks=masks, digests=tuple(digests))


def _read_image(image: Image) -> tuple[Scan, ...]:
    """Its channels, on one grid."""
    match image:
        case Path():
            return (readers.read_scan(image),)
        case Series():
            return (dicom.read_series(image),)
        case ChannelFile():
            return readers.read_channels(image.path, num_channels=image.num_channels)


def _image_digest(image: Image) -> str:
    return dicom.series_digest(image) if isinstance(image, Series) else readers.file_digest(_path(image))


def _path(image: Image) -> Path:
    match image:
        case Path():
            return image
        case Series():
            return image.files[0].parent
        case ChannelFile():
            return image.path


def _digest(file: Labels, *, content: str) -> str:
    """Sum over a label file's own digest and what the dataset takes it to mean: read in another way, it is another label."""
    match file:
        case LabelFile():
            meaning: object = (sorted(file.values.items()), file.ignore, *([] if file.flip is None else [file.flip]))
        case MaskFile():
            meaning = file.structure
        case SegmentFile():
            meaning = sorted(file.names.items())
    return hashlib.sha256(f"{content} {meaning!r}".encode()).hexdigest()


def _named_masks(
    file: LabelFile | MaskFile, *, voxels: NDArray, source: CaseSource
) -> Iterator[tuple[str | None, NDArray[np.bool_]]]:
    """(structure, mask) pairs of one label map; a structure may come more than once, and None stands for ignored voxels."""
    match file:
        case LabelFile():
            _demand_known_values(source, file=file, voxels=voxels)
            for value, names in file.values.items():
                mask = voxels == value
                for name in names:
                    yield name, mask
            if file.ignore is not None:
                yield None, voxels == file.ignore
        case MaskFile():
            yield file.structure, voxels > 0


def _on_grid(source: CaseSource, *, scan: Scan, path: Path, expected: Geometry) -> NDArray:
    """The voxels in the order of the expected grid. Stored in another order of axes, or in a header rounded by another program, a grid is
    the same."""
    if scan.geometry.same_grid(expected):
        return scan.voxels
    turned, wanted = scan.geometry.canonical(), expected.canonical()
    if same_voxels(turned, wanted):
        return expected.reorientation.invert(scan.geometry.reorientation.apply(scan.voxels))
    if turned.shape != wanted.shape:
        found = f"{turned.shape} voxels (z, y, x), the image {wanted.shape}"
    else:
        found = f"corners up to {turned.corner_distance(wanted):.2f} mm away from the image's"
    raise InputError(
        f"case {source.case_id}: {path.name} lies on another grid than the image: it has {found}; resample or re-export it"
    )


def _demand_known_values(source: CaseSource, *, file: LabelFile, voxels: NDArray) -> None:
    found = set(np.unique(voxels).tolist()) - {0, file.ignore}
    unknown = sorted(found - set(file.values))
    if unknown:
        known = ", ".join(f"{value} {'+'.join(names)}" for value, names in sorted(file.values.items()))
        raise InputError(
            f"case {source.case_id}: {file.path.name} holds label value {unknown[0]}; expected 0 or one of: {known}; "
            "correct the file or declare the value in the dataset"
        )
