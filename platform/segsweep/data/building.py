"""One case, from its files to a committed folder of the store: the work of one conversion task."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsweep.data import reading, storage
from segsweep.data.arrays import GridData, GridReader, geometry_from_json, geometry_json, write_grid
from segsweep.data.case import CaseSource
from segsweep.data.geometry import Geometry, Spacing
from segsweep.data.manifest import MANIFEST, Depth, Manifest, check_folder, committed, read_file, read_manifest
from segsweep.data.planning import AIR_HU
from segsweep.data.resampling import resample_image, resample_label
from segsweep.data.store import NATIVE, grid_key
from segsweep.data.structures import LabelSet, encode, join, labels_json
from segsweep.errors import StoreError

# Foreground intensities kept per case for the plan; their distribution needs no more.
MOST_INTENSITIES = 20_000


def build_case(source: CaseSource, *, labels: LabelSet, folder: Path) -> dict[str, Any]:
    """Read, check and write one case; returns its record. Afterwards `folder` is complete, or as it was before.

    Raises InputError that names the case and what is wrong.
    """
    data, record = _read(source, labels=labels)
    known, seed = _num_sampled(record), zlib.crc32(source.case_id.encode())
    with committed(folder) as partial:
        (partial / "grids").mkdir()
        write_grid(partial / "grids" / NATIVE, data=data, num_atoms=known, channels=_names(len(data.image)), seed=seed)
        np.save(
            partial / "intensities.npy", _foreground_intensities(data, num_atoms=known, seed=seed), allow_pickle=False
        )
        (partial / "case.json").write_text(json.dumps(record, indent=1))
    return read_case(folder)


def read_case(folder: str | Path, *, depth: Depth = "quick") -> dict[str, Any]:
    """The record of a committed case, with its digest. Raises StoreError when the folder is not intact."""
    name = PurePosixPath(folder).name
    manifest = check_folder(folder, name=name, depth=depth)
    return {**_record(folder, manifest=manifest, name=name), "digest": manifest.digest}


def current_case(
    folder: str | Path, *, source: CaseSource, labels: LabelSet, depth: Depth = "quick"
) -> dict[str, Any] | None:
    """The record of the committed case, if it is intact and still says what its source files and the dataset say."""
    try:
        record = read_case(folder, depth=depth)
    except StoreError:
        return None
    same_source = record["source_digests"] == list(reading.source_digests(source)) and record["labels"] == json.loads(
        json.dumps(labels_json(labels))
    )
    described = (record["annotated"], record["split"], record["group"])
    same = same_source and described == (list(source.annotated), source.split, source.group)
    return record if same else None


def derive_grid(folder: str | Path, *, spacing: Spacing, depth: Depth = "quick") -> int:
    """Write the case's grid at a spacing (mm) unless it is there, intact and of this conversion.

    Returns the size on disk (bytes) of the case with that grid. Raises StoreError that names the damage to the native grid.
    """
    name = PurePosixPath(folder).name
    case = check_folder(folder, name=name)
    record = _record(folder, manifest=case, name=name)
    native = geometry_from_json(record["geometry"])
    key = grid_key(native, spacing=spacing)
    if key == NATIVE:
        return case.num_bytes
    target, grid = f"{folder}/grids/{key}", native.resampled(spacing)

    def is_derived() -> bool:
        return _is_derived(target, source=case.digest, depth=depth)

    if not is_derived():
        with (
            storage.mirrored(folder, only=[*case.files, MANIFEST]) as local,
            # A bucket has no lock, and a grid that is uploaded again is away for a moment: others may be reading it.
            storage.replaced(target, last=MANIFEST, unless=is_derived) as derived,
        ):
            check_folder(local, name=name)
            _derive(local, record=record, grid=grid, target=derived, source=case.digest)
    return case.num_bytes + read_manifest(target, name=f"{name}/{key}").num_bytes


def _read(source: CaseSource, *, labels: LabelSet) -> tuple[GridData, dict[str, Any]]:
    """The native grid and the record of a case. The masks, which take as much memory again, are gone before it is written."""
    raw = reading.read_case(source, labels=labels)
    turn = raw.geometry.reorientation
    canonical = raw.geometry.canonical()
    atoms = encode({index: turn.apply(mask) for index, mask in raw.masks.items()}, shape=canonical.shape)
    data = GridData(
        image=np.ascontiguousarray(turn.apply(np.stack(raw.images))),
        label=np.ascontiguousarray(atoms.label),
        geometry=canonical,
    )
    counts = sum(np.bincount(plane.ravel(), minlength=len(atoms.atoms)) for plane in data.label)
    record = {
        "case_id": source.case_id,
        "annotated": list(source.annotated),
        "split": source.split,
        "group": source.group,
        "geometry": geometry_json(data.geometry),
        "source_geometry": geometry_json(raw.geometry),
        "atoms": [list(atom) for atom in atoms.atoms],
        "voxels": np.asarray(counts).tolist(),
        "source_digests": list(raw.digests),
        "labels": labels_json(labels),
    }
    return data, record


def _record(folder: str | Path, *, manifest: Manifest, name: str) -> dict[str, Any]:
    return json.loads(read_file(folder, relative="case.json", manifest=manifest, name=name))


def _num_sampled(record: Mapping[str, Any]) -> int:
    """How many atoms of the case may give foreground samples: all but the ignored one, which comes last."""
    return len(join([tuple(map(tuple, record["atoms"]))]))


def _is_derived(target: str, *, source: str, depth: Depth) -> bool:
    try:
        return check_folder(target, name=target, depth=depth).source == source
    except StoreError:
        return False


def _derive(folder: Path, *, record: Mapping[str, Any], grid: Geometry, target: Path, source: str) -> None:
    native, num_atoms = geometry_from_json(record["geometry"]), len(record["atoms"])
    reader = GridReader(
        folder / "grids" / NATIVE, name=f"{folder.name}/{NATIVE}", lookup=np.arange(num_atoms, dtype=np.uint16)
    )
    label = resample_label(reader.read_label(), source=native, target=grid)
    data = GridData(
        image=_resampled(reader.read_image(), source=native, target=grid),
        label=label.astype(np.uint8 if num_atoms <= 256 else np.uint16),
        geometry=grid,
    )
    with committed(target, source=source) as partial:
        write_grid(
            partial,
            data=data,
            num_atoms=_num_sampled(record),
            channels=_names(len(data.image)),
            seed=zlib.crc32(folder.name.encode()),
        )


def _resampled(voxels: NDArray, *, source: Geometry, target: Geometry) -> NDArray:
    """The image (c, z, y, x) on `target`; `voxels` are changed. int16 stays int16: at most 0.5 HU of error for half the bytes.

    Other units (SUV) keep their fractions.
    """
    image = resample_image(np.maximum(voxels, AIR_HU, out=voxels), source=source, target=target)
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    if voxels.dtype == np.int16 and image.min() >= low and image.max() <= high:
        return np.rint(image, out=image).astype(np.int16)
    return image


def _foreground_intensities(data: GridData, *, num_atoms: int, seed: int) -> NDArray:
    """HU of voxels inside any structure (anywhere where there is none), (channels, at most 20,000), sampled without replacement."""
    label = data.label.ravel()
    inside = np.flatnonzero((label > 0) & (label < num_atoms))
    if not len(inside):
        inside = np.arange(data.label.size)
    if len(inside) > MOST_INTENSITIES:
        inside = np.random.default_rng(seed).choice(inside, MOST_INTENSITIES, replace=False)
    return data.image.reshape(len(data.image), -1)[:, np.sort(inside)]


def _names(num_channels: int) -> tuple[str, ...]:
    return tuple(f"channel {index}" for index in range(num_channels))
