"""A model in evaluation mode, or several as one: from a scan's image to the atoms that it finds, on the scan's grid."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segsweep.data.geometry import Geometry
from segsweep.data.planning import AIR_HU, Normalisation
from segsweep.data.resampling import resample_image, resample_planes
from segsweep.data.structures import LabelTable
from segsweep.errors import InputError, ModelError
from segsweep.inference.budget import Part, Resources, find_room, needs
from segsweep.inference.cascade import around, part_of
from segsweep.inference.export import Output, Planes, combine, label_on_grid
from segsweep.inference.joined import Outputs, clean_up_of, outputs_of, scans_with, task_of
from segsweep.inference.postprocess import clean
from segsweep.inference.probability_maps import ProbabilityMaps
from segsweep.inference.sliding import TOGETHER, predict_planes
from segsweep.learning.checkpoint import FINDER, load_model
from segsweep.learning.inference import Inference
from segsweep.learning.memory import forward_bytes
from segsweep.learning.patches import Region, whole
from segsweep.learning.precision import Precision
from segsweep.learning.task import Task, normalise


@dataclass(frozen=True, kw_only=True)
class Member:
    """A model in evaluation mode with the task it was built for; `weight` counts in an ensemble's mean (any positive unit).

    Where `inference` has a margin, it looks only around what the `finder` segments (everywhere without one). `precision` is what it
    computes in on a GPU; on a processor that is float32.
    """

    model: nn.Module
    task: Task
    weight: float = 1.0
    inference: Inference = field(default_factory=Inference)
    finder: "Member | None" = None
    precision: Precision = "auto"

    @property
    def on_gpu(self) -> bool:
        """Whether the weights are on a GPU."""
        return any(parameter.is_cuda for parameter in self.model.parameters())

    @cached_property
    def network_bytes(self) -> int:
        """What a batch of patches takes of the main memory: nothing where the weights are on a GPU."""
        if self.on_gpu:
            return 0
        channels, patch = max(self.task.widths), self.task.patch_size
        return forward_bytes(self.model, patch_size=patch, channels=channels, batch_size=TOGETHER)

    def region(self, image: NDArray, *, geometry: Geometry, resources: Resources | None = None) -> Region:
        """Where in a canonical image (c, z, y, x) in HU the model looks: all of it, and stderr says so, when its finder finds nothing."""
        margin_mm = self.inference.margin_mm
        if self.finder is None or margin_mm is None:
            return whole(geometry.shape)
        found = Predictor(members=(self.finder,)).segment(image, geometry=geometry, resources=resources)
        return around(found, margin_mm=margin_mm, geometry=geometry)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """One member, or several whose probabilities are averaged on the first one's grid, in the first one's atoms.

    All look at the smallest region that holds each member's own; beyond it lies background. The first member's clean-up counts.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ModelError("a predictor without members was asked for; expected at least one")
        for member in self.members[1:]:
            if member.task.channels != self.table_task.channels:
                raise ModelError(
                    f"members expect the channels {member.task.channels} and {self.table_task.channels}; expected equal channels"
                )

    @property
    def table_task(self) -> Task:
        """The task whose atom table the labels are in: the first member's."""
        return self.members[0].task

    def prepare(self) -> None:
        """Reckon once what the networks need of the main memory, so that it is not in the first scan's time."""
        for member in self.members:
            finder = () if member.finder is None else (member.finder,)
            _ = [each.network_bytes for each in (member, *finder)]

    def only(self, dataset: str) -> "Predictor":
        """The predictor of one of the datasets that its members join, in that dataset's own names and values. Raises InputError."""
        return Predictor(members=tuple(_only(member, dataset=dataset) for member in self.members))

    def segment(
        self,
        image: NDArray,
        *,
        geometry: Geometry,
        mirror: str | None = None,
        structures: Collection[str] = (),
        resources: Resources | None = None,
        maps: ProbabilityMaps | None = None,
    ) -> NDArray:
        """Atom values (z, y, x) on `geometry`, for a canonical image (c, z, y, x) in HU.

        `mirror` names the axes over whose flips logits are averaged ("zyx", "zy", ..., "none"); without it each member's recipe does.
        Where `structures` names some that the model knows, a sigmoid head's others are left out, so that they hide none of these:
        structures that were never annotated together share no atom. Of a softmax head, atoms of other datasets than theirs are left
        out. `maps` are given the probabilities of all structures. Raises ResourceError before any work when the `resources` (their
        defaults without) do not suffice.
        """
        resources = resources or Resources()
        expected = scans_with(structures, task=self.table_task).channels
        if len(image) != len(expected):
            raise InputError(f"the image has {len(image)} channels; the model expects {expected}")
        regions = [member.region(image, geometry=geometry, resources=resources) for member in self.members]
        z, y, x = (
            slice(min(part.start for part in parts), max(part.stop for part in parts))
            for parts in zip(*regions, strict=True)
        )
        seen = part_of(geometry, region=(z, y, x))
        found = self._segment(
            image[:, z, y, x], geometry=seen, mirror=mirror, structures=structures, resources=resources, maps=maps
        )
        rules = self.members[0].inference.clean_up
        found = clean(found, rules=rules, table=self.table_task.table, spacing=geometry.spacing)
        if found.shape == geometry.shape:
            return found
        label = np.zeros(geometry.shape, dtype=found.dtype)
        label[z, y, x] = found
        return label

    def _segment(
        self,
        image: NDArray,
        *,
        geometry: Geometry,
        mirror: str | None,
        structures: Collection[str],
        resources: Resources,
        maps: ProbabilityMaps | None,
    ) -> NDArray:
        """Atom values on all of `geometry`."""
        parts = [Part(task=member.task, network_bytes=member.network_bytes) for member in self.members]
        wanted = needs(parts, image_bytes=image.nbytes, geometry=geometry, probabilities=maps is not None)
        keep = find_room(wanted, resources=resources)
        common = geometry.resampled(self.table_task.spacing)
        air = np.maximum(image, AIR_HU)
        outputs = [
            Output(
                planes=partial(
                    member_planes,
                    member,
                    image=air,
                    rules=scans_with(structures, task=member.task).normalisation,
                    geometry=geometry,
                    common=common,
                    mirror=mirror,
                    resources=resources,
                ),
                task=member.task,
                weight=member.weight,
            )
            for member in self.members
        ]
        scores = combine(outputs, keep=keep)
        if maps is not None:
            scores = replace(scores, planes=maps.passing(scores, geometry=common))
        grids = {"geometry_from": common, "geometry_to": geometry}
        table = self.table_task.table
        chosen = [name for name in structures if name in table.labels.structures]
        if not chosen:
            return label_on_grid(scores.planes, **grids, membership=scores.membership)
        if scores.membership is not None:
            kept = table.within(chosen)
            return kept[label_on_grid(scores.planes, **grids, membership=scores.membership[kept])]
        kept = table.within(_of_their_datasets(chosen, table=table))
        planes = scores.planes if len(kept) == len(table.atoms) else (plane[kept] for plane in scores.planes)
        return kept[label_on_grid(planes, **grids, membership=None)]


def load_member(folder: Path, *, weight: float = 1.0) -> Member:
    """The model of a checkpoint folder, on the GPU where there is one. Raises ModelError when it is absent or damaged."""
    loaded = load_model(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if loaded.inference.margin_mm is not None and loaded.finder is None:
        raise ModelError(
            f"{folder}: holds no {FINDER!r}, which shows this model where to look; register the run's model again"
        )
    finder = None if loaded.finder is None else load_member(loaded.finder)
    return Member(
        model=loaded.model.to(device),
        task=loaded.task,
        weight=weight,
        inference=loaded.inference,
        finder=finder,
        precision=loaded.precision,
    )


def member_planes(
    member: Member,
    *,
    image: NDArray,
    rules: tuple[Normalisation, ...],
    geometry: Geometry,
    common: Geometry,
    mirror: str | None,
    resources: Resources,
) -> Planes:
    """One member's logits, a slice (k, y, x) at a time, on the grid that the members share.

    The image (c, z, y, x) is nowhere below air.
    """
    task = member.task
    grid = geometry.resampled(task.spacing)
    # In the order of training: air, resampling in HU, then normalisation (patches are normalised as they are read).
    with resources.stopwatch.stage("resample"):
        normal = normalise(resample_image(image, source=geometry, target=grid), normalisation=rules)
    planes = predict_planes(
        member.model,
        torch.from_numpy(normal),
        patch_size=task.patch_size,
        overlap=member.inference.overlap,
        mirror=member.inference.mirror if mirror is None else mirror,
        mirrored_outputs=task.mirrored_outputs,
        precision=resources.precision or (member.precision if member.on_gpu else "float32"),
    )
    arrays = (plane.numpy() for plane in resources.stopwatch.during("network", planes))
    return resample_planes(arrays, source=grid, target=common)


def _only(member: Member, *, dataset: str) -> Member:
    task = task_of(member.task, dataset=dataset)
    rules = clean_up_of(member.inference.clean_up, dataset=dataset)
    return replace(
        member,
        model=Outputs(member.model, kept=outputs_of(member.task, dataset=dataset)),
        task=task,
        inference=replace(member.inference, clean_up=rules),
    )


def _of_their_datasets(structures: Collection[str], *, table: LabelTable) -> list[str]:
    """All structures that a joint table (`dataset/structure`) knows of the given ones' datasets; all of a single dataset's table."""
    datasets = {name.rpartition("/")[0] for name in structures}
    return [name for name in table.labels.structures if name.rpartition("/")[0] in datasets]
