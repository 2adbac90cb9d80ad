"""One case, from its files to a committed folder of the store: the work of one conversion task."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsweep.data import reading
from segsweep.data.arrays import GridData, GridReader, geometry_from_json, geometry_json, write_grid
from segsweep.data.case import CaseSource
from segsweep.data.geometry import Spacing
from segsweep.data.resampling import resample_image, resample_label
from segsweep.data.store import NATIVE, check_sizes, committed, folder_digest, grid_key, write_json
from segsweep.data.structures import LabelSet, encode, labels_json
from segsweep.errors import StoreError

# Values below are padding outside the scanner's field of view, not tissue (HU).
AIR_HU = -1024
# Foreground intensities kept per case for the plan; their distribution needs no more.
MOST_INTENSITIES = 20_000


def build_case(source: CaseSource, *, labels: LabelSet, folder: Path) -> dict[str, Any]:
    """Read, check and write one case; returns its record. Afterwards `folder` is complete, or as it was before.

    Raises InputError that names the case and what is wrong.
    """
    raw = reading.read_case(source, labels=labels)
    turn = raw.geometry.reorientation
    canonical = raw.geometry.canonical()
    atoms = encode({index: turn.apply(mask) for index, mask in raw.masks.items()}, shape=canonical.shape)
    data = GridData(
        image=np.ascontiguousarray(turn.apply(np.stack(raw.images))),
        label=np.ascontiguousarray(atoms.label),
        geometry=canonical,
    )
    counts = np.bincount(atoms.label.ravel(), minlength=len(atoms.atoms))
    record: dict[str, Any] = {
        "case_id": source.case_id,
        "annotated": list(source.annotated),
        "split": source.split,
        "group": source.group,
        "geometry": geometry_json(data.geometry),
        "source_geometry": geometry_json(raw.geometry),
        "atoms": [list(atom) for atom in atoms.atoms],
        "voxels": counts.tolist(),
        "source_digests": list(raw.digests),
        "labels": labels_json(labels),
    }
    seed = zlib.crc32(source.case_id.encode())
    with committed(folder) as partial:
        with committed(partial / "grids" / NATIVE) as grid:
            write_grid(grid, data=data, num_atoms=len(atoms.atoms), channels=_names(len(raw.images)), seed=seed)
        np.save(partial / "intensities.npy", _foreground_intensities(data, seed=seed), allow_pickle=False)
        write_json(partial / "case.json", record)
    return read_case(folder)


def read_case(folder: Path) -> dict[str, Any]:
    """The record of a committed case, with its digest. Raises StoreError when the folder is not intact."""
    check_sizes(folder, name=folder.name)
    check_sizes(folder / "grids" / NATIVE, name=f"{folder.name}/{NATIVE}")
    record = json.loads((folder / "case.json").read_text())
    return {**record, "digest": folder_digest(folder / "grids" / NATIVE) + folder_digest(folder)}


def is_current(folder: Path, *, source: CaseSource, labels: LabelSet) -> bool:
    """Whether the committed case still says what its source files and the dataset say."""
    try:
        record = read_case(folder)
    except StoreError:
        return False
    same_source = record["source_digests"] == list(reading.source_digests(source)) and record["labels"] == json.loads(
        json.dumps(labels_json(labels))
    )
    described = (record["annotated"], record["split"], record["group"])
    return same_source and described == (list(source.annotated), source.split, source.group)


def derive_grid(folder: Path, *, spacing: Spacing) -> bool:
    """Write the case's grid at a spacing unless it is there; returns whether anything was written."""
    record = json.loads((folder / "case.json").read_text())
    native = geometry_from_json(record["geometry"])
    key = grid_key(native, spacing=spacing)
    target = folder / "grids" / key
    if target.is_dir():
        check_sizes(target, name=f"{folder.name}/{key}")
        return False
    num_atoms = len(record["atoms"])
    reader = GridReader(
        folder / "grids" / NATIVE, name=f"{folder.name}/{NATIVE}", lookup=np.arange(num_atoms, dtype=np.uint16)
    )
    grid = native.resampled(spacing)
    image = resample_image(np.maximum(reader.read_image(), AIR_HU), source=native, target=grid)
    label = resample_label(reader.read_label(), source=native, target=grid)
    # Interpolated HU are rounded to int16: at most 0.5 HU of error for half the bytes.
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    fits = image.min() >= low and image.max() <= high
    data = GridData(
        image=np.rint(image).astype(np.int16) if fits else image,
        label=label.astype(np.uint8 if num_atoms <= 256 else np.uint16),
        geometry=grid,
    )
    with committed(target) as partial:
        write_grid(
            partial,
            data=data,
            num_atoms=num_atoms,
            channels=_names(len(image)),
            seed=zlib.crc32(folder.name.encode()),
        )
    return True


def _foreground_intensities(data: GridData, *, seed: int) -> NDArray:
    """HU of voxels inside any structure (anywhere where there is none), (channels, at most 20,000), sampled without replacement."""
    inside = np.flatnonzero(data.label.ravel())
    if not len(inside):
        inside = np.arange(data.label.size)
    if len(inside) > MOST_INTENSITIES:
        inside = np.random.default_rng(seed).choice(inside, MOST_INTENSITIES, replace=False)
    return data.image.reshape(len(data.image), -1)[:, np.sort(inside)]


def _names(num_channels: int) -> tuple[str, ...]:
    return tuple(f"channel {index}" for index in range(num_channels))
