"""FLARE22's accelerated nnU-Net: a semi-supervised coarse model finds the organs, a fine one segments them (Huang et al., 2022).

Two runs of the plain U-Net. `part=coarse` (the default) learns from annotated scans and, where the store has them, from unlabelled
ones. `preset=fine initial=models:/NAME/1` starts from it, sees only the surroundings of the organs, and keeps it as its finder.

The defaults are the paper's; its released code (github.com/Solor-pikachu/Infer-MedSeg-With-Low-Resource) differs. Its loss is
`consistency=urpc consistency_divisor=3` (URPC, Luo et al., MICCAI 2021), its margin `margin_mm=20`, its fine window
`window=-325,267`, its fine rate `learning_rate=1e-4`, its rule of distance `anchors=["liver"] farthest_axes=z`; the tables' "halved by
200 epochs" is `schedule=step`. Both scale the finder's mean and deviation over the body alone, which here are those of the whole scan.
Written from the description; Apache-2.0.
"""
# pyright: reportMissingImports=false

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from segsweep.data.geometry import Size, Spacing
from segsweep.data.planning import Normalisation
from segsweep.errors import RecipeError
from segsweep.learning.consistency import Variant, semi_supervised
from segsweep.learning.crop import cropped, in_voxels
from segsweep.learning.inference import CleanUp, Inference
from segsweep.learning.intensity import Level
from segsweep.learning.losses import Loss, build_loss
from segsweep.learning.patches import TrainingCase
from segsweep.learning.stages import Stage
from segsweep.learning.supervision import Supervision
from segsweep.learning.task import Task
from segsweep.trainables.unet import QUICK
from segsweep.trainables.unet import Params as PlainParams
from segsweep.trainables.unet import build as build_plain

Part = Literal["coarse", "fine"]

SPACING: Mapping[Part, Spacing] = {"coarse": (3.0, 2.0, 2.0), "fine": (2.0, 1.5, 1.5)}
# "Halved by 200 epochs", "halved by 150 epochs": the paper's tables 2 and 3.
HALVED_AFTER: Mapping[Part, int] = {"coarse": 200, "fine": 150}
# P1 to P4.
HEADS = 4


@dataclass(frozen=True, kw_only=True)
class Params(PlainParams):
    """`part` is what is trained; a fine part needs the coarse run as `initial`. `spacing` (mm) is the part's own unless given.

    CT channels are cut to `window` (HU). Then the coarse part subtracts each scan's mean and divides by its deviation, the fine part
    takes the plan's: of the organs in all scans. Other channels stay as planned.

    Coarse: the heads of unlabelled scans are compared by `consistency`, with a weight that grows to `consistency_weight` (0: supervised
    alone); the sum over heads is divided by `consistency_divisor` or their number. Fine: scans are cut to the box around their
    organs and `margin_mm` on every side, and so is what is segmented; the last `plain_epochs` are without augmentation.

    Both keep the largest component of the structures in `keep_largest`, and none farther than `farthest_mm` from the midpoint of the
    `anchors`' largest components, along the `farthest_axes`. Where the dataset lacks an anchor that rule is skipped.
    """

    part: Part = "coarse"
    spacing: Spacing | None = None
    window: tuple[float, float] = (-325.0, 325.0)
    consistency: Variant = "paper"
    consistency_weight: float = 0.1
    consistency_divisor: int | None = None
    margin_mm: float = 40.0
    plain_epochs: int = 10
    schedule: Literal["poly", "step"] = "poly"
    keep_largest: tuple[str, ...] | Literal["all", "none"] = "all"
    anchors: tuple[str, ...] = ("aorta", "inferior_vena_cava")
    farthest_mm: float = 170.0
    farthest_axes: Literal["zyx", "z"] = "zyx"
    patch_size: Size | None = (96, 128, 160)
    batch_size: int | None = 2
    epochs: int = 500
    augmentation: Level = "flare22"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window={self.window} cannot be used: expected two HU values, the lower one first")
        if self.spacing is not None and not min(self.spacing) > 0:
            raise ValueError(f"spacing={self.spacing} cannot be used: expected mm above 0 (z, y, x)")
        for name in ("consistency_weight", "margin_mm", "farthest_mm", "plain_epochs"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected a number from 0")
        if self.consistency_divisor is not None and self.consistency_divisor < 1:
            raise ValueError(
                f"consistency_divisor={self.consistency_divisor} cannot be used: expected a whole number from 1"
            )


FINE: Mapping[str, Any] = {"part": "fine", "epochs": 150, "learning_rate": 1e-3}
SMALL: Mapping[str, Any] = {
    "features": 16,
    "most_features": 128,
    "levels": 4,
    "patch_size": [48, 48, 48],
    **QUICK,
    "epochs": 20,
    "plain_epochs": 3,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fine": FINE,
    "small": {**SMALL, "spacing": [6.0, 6.0, 6.0]},
    "small_fine": {**SMALL, "spacing": [3.0, 3.0, 3.0], "part": "fine", "learning_rate": 1e-3},
}


def build(params: Params, task: Task) -> nn.Module:
    """The plain U-Net, the same for both parts."""
    return build_plain(params, task)


def task(params: Params, task: Task) -> Task:
    """The part's spacing and normalisation. Raises RecipeError for a fine part without a coarse one, and for heads that do not compare."""
    if params.part == "fine" and not params.initial:
        raise RecipeError("part=fine needs the coarse model that it starts from; give initial=models:/NAME/1")
    if task.head == "sigmoid" and _compares(params):
        raise RecipeError(
            "head=sigmoid cannot be used with unlabelled scans, whose heads are compared by softmax; "
            "choose head=softmax, or consistency_weight=0"
        )
    task = replace(task, spacing=params.spacing or SPACING[params.part])
    return task.renormalised(lambda rule: _rule(rule, params=params))


def stages(params: Params) -> tuple[Stage, ...]:
    """Coarse: one stage, with unlabelled scans. Fine: two, of which the last goes on with the decay, without augmentation."""
    plain = min(params.plain_epochs, params.epochs) if params.part == "fine" else 0
    first = Stage(
        name=params.part,
        epochs=params.epochs - plain,
        learning_rate=params.learning_rate,
        schedule=params.schedule,
        period=HALVED_AFTER[params.part],
        horizon=params.epochs,
        unlabelled=_compares(params),
    )
    last = Stage(
        name="plain",
        epochs=plain,
        learning_rate=first.rate(first.epochs),
        schedule="poly" if params.schedule == "poly" else "constant",
        augment=False,
    )
    return tuple(stage for stage in (first, last) if stage.epochs)


def loss(params: Params, task: Task) -> Loss:
    """Cross-entropy and Dice of the top four heads; for the coarse part, with their consistency on what is unlabelled."""
    supervised = build_loss(params.loss, task=task, batch_dice=params.batch_dice, supervision=Supervision(heads=HEADS))
    if not _compares(params):
        return supervised
    return semi_supervised(
        supervised,
        weight=params.consistency_weight,
        variant=params.consistency,
        heads=HEADS,
        divisor=params.consistency_divisor,
    )


def trained_part(case: TrainingCase, params: Params, task: Task) -> TrainingCase:
    """Fine: the surroundings of the organs."""
    if params.part == "coarse":
        return case
    margin = in_voxels((params.margin_mm, params.margin_mm, params.margin_mm), spacing=task.spacing)
    return cropped(case, task=task, margin=margin)


def inference(params: Params, task: Task) -> Inference:
    """Coarse: all of a scan in patches side by side. Fine: around what the coarse model found, patches overlapping by half."""
    named = {"all": task.table.labels.structures, "none": ()}
    rules = CleanUp(
        largest=named[params.keep_largest] if isinstance(params.keep_largest, str) else params.keep_largest,
        anchors=params.anchors,
        farthest_mm=params.farthest_mm,
        axes=params.farthest_axes,
    )
    if params.part == "coarse":
        return Inference(overlap=0.0, clean_up=rules)
    return Inference(overlap=0.5, margin_mm=params.margin_mm, clean_up=rules)


def _compares(params: Params) -> bool:
    return params.part == "coarse" and params.consistency_weight > 0


def _rule(channel: Normalisation, *, params: Params) -> Normalisation:
    low, high = params.window
    if channel.scheme != "ct":
        return channel
    return (
        replace(channel, low=low, high=high)
        if params.part == "fine"
        else Normalisation(scheme="z-score", low=low, high=high)
    )
