"""Miniature trees of public datasets: scans of 4 x 5 x 6 voxels written under the test's own folder, and what a label map means."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from segsweep.data.dataset import Dataset
from segsweep.data.geometry import Geometry
from segsweep.data.reading import read_case
from segsweep.data.structures import IGNORE
from segsweep.inference.writers import write_image, write_label_map

SHAPE = (4, 5, 6)
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(name) makes an image, write(name, 1, 2, 2) a label map whose first voxels have those values; x0 moves it (mm)."""

    def one(name: str, *values: int, unit: float = 1, x0: float = 0.0) -> Path:
        geometry = Geometry(shape=SHAPE, spacing=(3.0, 1.5, 1.5), origin=(x0, 0.0, 0.0), direction=LPS)
        voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
        if values:
            label = np.zeros(SHAPE, dtype=np.uint8)
            label.ravel()[: len(values)] = values
            write_label_map(label, geometry=geometry, path=tmp_path / name)
        else:
            kind = np.int16 if unit == 1 else np.float32
            write_image((voxels * unit).astype(kind), geometry=geometry, path=tmp_path / name)
        return tmp_path / name

    return one


@pytest.fixture
def write_series(tmp_path: Path) -> Callable[..., None]:
    """write_series(folder) makes a CT series on the grid of `write`, one file a slice."""

    def one(folder: str) -> None:
        (tmp_path / folder).mkdir(parents=True)
        series, frame = generate_uid(), generate_uid()
        for index in range(SHAPE[0]):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid()
            item = pydicom.Dataset()
            item.file_meta = meta
            item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            item.SeriesInstanceUID, item.FrameOfReferenceUID, item.Modality = series, frame, "CT"
            item.Rows, item.Columns, item.PixelSpacing = SHAPE[1], SHAPE[2], [1.5, 1.5]
            item.ImageOrientationPatient, item.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * index]
            item.BitsAllocated = item.BitsStored = 16
            item.HighBit, item.PixelRepresentation, item.SamplesPerPixel = 15, 1, 1
            item.PhotometricInterpretation, item.RescaleSlope, item.RescaleIntercept = "MONOCHROME2", 1, -1024
            item.PixelData = (np.arange(SHAPE[1] * SHAPE[2]) + index).astype("<i2").tobytes()
            item.save_as(tmp_path / folder / f"{index:06d}.dcm", enforce_file_format=True)

    return one


@pytest.fixture
def junk(tmp_path: Path) -> Callable[..., None]:
    """What a Mac leaves in the folders given: `._` twins of scans and `.DS_Store`."""

    def all_of(*folders: str) -> None:
        for folder in folders:
            (tmp_path / folder / ".DS_Store").write_bytes(b"\0")
            for path in sorted((tmp_path / folder).glob("*.nii*")):
                path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")

    return all_of


@pytest.fixture
def voxels() -> Callable[..., dict[str, int]]:
    """voxels(dataset, case_id) reads the case and counts the voxels of every structure that its labels hold."""

    def count(dataset: Dataset, case_id: str) -> dict[str, int]:
        source = next(case for case in dataset.cases if case.case_id == case_id)
        raw = read_case(source, labels=dataset.labels)
        names = {**dict(enumerate(dataset.labels.structures)), IGNORE: "ignored"}
        return {names[index]: int(mask.sum()) for index, mask in raw.masks.items()}

    return count
