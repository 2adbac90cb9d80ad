"""The Decathlon's tasks by the prefix of their files: structures by their own names, a cancer part of its organ."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813

from segsweep.data.dataset import describe
from segsweep.errors import InputError

# Prefix -> label names of the published dataset.json, and what values 1 and 2 count as (MultiTalent, dataset conversion).
TASKS = {
    "la": (["left atrium"], {"left_atrium": 1}),
    "liver": (["liver", "cancer"], {"liver": 3, "liver_cancer": 2}),
    "hippocampus": (["Anterior", "Posterior"], {"hippocampus_anterior": 1, "hippocampus_posterior": 2}),
    "lung": (["cancer"], {"lung_cancer": 1}),
    "pancreas": (["pancreas", "cancer"], {"pancreas": 3, "pancreas_cancer": 2}),
    "hepaticvessel": (["Vessel", "Tumour"], {"hepatic_vessel": 1, "hepatic_tumour": 2}),
    "spleen": (["spleen"], {"spleen": 1}),
    "colon": (["colon cancer primaries"], {"colon_cancer": 1}),
}


def state(raw: Path, *, names: list[str], files: list[str], modality: tuple[str, ...] = ("CT",)) -> None:
    content = {
        "modality": {str(number): name for number, name in enumerate(modality)},
        "labels": {str(value): name for value, name in enumerate(["background", *names])},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in files],
        "test": [],
    }
    (raw / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("task", TASKS)
def test_every_3d_task(
    task: str, tmp_path: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    names, expected = TASKS[task]
    write(f"imagesTr/{task}_003.nii.gz")
    write(f"labelsTr/{task}_003.nii.gz", *([1, 2, 2] if len(names) == 2 else [1]))
    state(tmp_path, names=names, files=[f"._{task}_003.nii.gz", f"{task}_003.nii.gz"])
    dataset = describe("msd", raw=tmp_path)
    assert dataset.channels == ("CT",)
    assert dataset.labels.structures == tuple(expected)
    assert voxels(dataset, f"{task}_003") == expected
    assert dataset.cases[0].annotated == dataset.labels.structures


@pytest.mark.parametrize(
    ("file", "names", "modality", "expected"),
    [
        ("BRATS_001.nii.gz", ["edema", "non-enhancing tumor", "enhancing tumour"], ("FLAIR", "T1w", "t1gd", "T2w"),
         {"edema": 1, "non-enhancing": 2, "enhancing": 3}),
        ("prostate_00.nii.gz", ["PZ", "TZ"], ("T2", "ADC"),
         {"prostate_peripheral_zone": 1, "prostate_transition_zone": 2}),
    ],
)  # fmt: skip
def test_tasks_of_several_channels(
    file: str,
    names: list[str],
    modality: tuple[str, ...],
    expected: dict[str, int],
    tmp_path: Path,
    write: Callable[..., Path],
    voxels: Callable[..., dict[str, int]],
) -> None:
    image = sitk.ReadImage(str(write(f"imagesTr/{file}")))
    sitk.WriteImage(
        sitk.JoinSeries([image + channel for channel in range(len(modality))]), str(tmp_path / "imagesTr" / file)
    )
    write(f"labelsTr/{file}", *[value for value in range(1, len(names) + 1) for _ in range(value)])
    state(tmp_path, names=names, files=[file], modality=modality)
    dataset = describe("msd", raw=tmp_path)
    assert dataset.channels == modality
    assert voxels(dataset, dataset.cases[0].case_id) == expected


@pytest.mark.parametrize(
    ("names", "files", "modality", "message"),
    [
        (["liver", "cancer"], ["liver_0.nii.gz", "lung_0.nii.gz"], ("CT",), r"2 tasks \(liver, lung\)"),
        (["liver", "cancer"], ["lever_0.nii.gz"], ("CT",), "no 'lever' among Decathlon tasks.*did you mean 'liver'"),
        (["liver"], ["liver_0.nii.gz"], ("CT",), r"label values \[1\]; expected \[1, 2\]"),
        (["liver"], [], ("CT",), "0 tasks"),
    ],
)
def test_what_is_no_3d_task(
    names: list[str], files: list[str], modality: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    state(tmp_path, names=names, files=files, modality=modality)
    with pytest.raises(InputError, match=message):
        describe("msd", raw=tmp_path)
