import gzip
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segsweep.data import footprint
from segsweep.data.case import CaseSource, ChannelFile, LabelFile, MaskFile, Series
from segsweep.data.store import open_store

SHAPE = (11, 12, 13)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
def test_voxels_are_counted_from_the_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE, np.int16)), str(path))
    plain = CaseSource(case_id="a", images=(path,))
    each = footprint.A_CASE + footprint.A_CHANNEL
    assert footprint.to_convert(plain) == footprint.AT_REST + each * math.prod(SHAPE)
    two = replace(plain, images=(path, path))
    assert footprint.to_convert(two) - footprint.to_convert(plain) == footprint.A_CHANNEL * math.prod(SHAPE)
    together = replace(plain, images=(ChannelFile(path=path, num_channels=2),))
    assert footprint.to_convert(together) == footprint.to_convert(two)
    maps = (LabelFile(path=path, values={1: ("a",), 2: ("a", "b")}), MaskFile(path=path, structure="c"))
    labelled = replace(plain, labels=maps)
    assert footprint.to_convert(labelled) - footprint.to_convert(plain) == 3 * footprint.A_MASK * math.prod(SHAPE)


def test_a_series_counts_by_the_size_of_its_files(tmp_path: Path) -> None:
    files = tuple(tmp_path / name for name in "ab")
    for path in files:
        path.write_bytes(bytes(1000))
    source = CaseSource(case_id="a", images=(Series(files=files),))
    assert footprint.to_convert(source) > footprint.AT_REST + 1000 * footprint.A_CHANNEL


def test_unreadable_and_absurd_headers_are_left_to_the_reader(tmp_path: Path) -> None:
    header = bytearray(352)
    header[:4] = (348).to_bytes(4, "little")
    header[40:48] = np.array([3, 32767, 32767, 32767], "<i2").tobytes()
    contents = {
        "a.nii": header,
        "b.nii.gz": gzip.compress(header)[:30],
        "c.nrrd": b"sizes: 0 1 2\n",
        "d.mha": b"",
        "e.nii.gz": b"x",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "absent.nii.gz"):
        source = CaseSource(case_id="a", images=(tmp_path / name,))
        assert footprint.to_convert(source) == footprint.AT_REST, name


def test_resampling_counts_both_grids(okbp_store: Path) -> None:
    record = open_store(okbp_store).cases["okbp_000"]
    z, y, x = record.geometry.spacing
    finer = footprint.to_resample(record, spacing=(z / 2, y, x), num_channels=1)
    same = footprint.to_resample(record, spacing=(z, y, x), num_channels=1)
    voxels = math.prod(record.geometry.shape)
    assert finer - same == (footprint.A_CASE + footprint.A_CHANNEL) * voxels
