"""A trainable recipe as the engine sees it: what its file defines, and the usual thing for what it leaves out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from segsweep import recipes
from segsweep.data.geometry import Size
from segsweep.learning.inference import Inference
from segsweep.learning.losses import Loss, build_loss
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.stages import Stage
from segsweep.learning.task import Task


@dataclass(frozen=True, kw_only=True)
class Method:
    """The recipe of a name. Every part but `Params` and `build` may be missing from its file."""

    name: str
    recipe: ModuleType

    def params(self, values: Mapping[str, Any]) -> TrainingParams:
        """The recipe's `Params` from values as text or as Python has them. Raises RecipeError."""
        return recipes.build_params(self.recipe, values=values)

    def preset(self, name: str | None) -> Mapping[str, Any]:
        """The values of one of the recipe's `PRESETS`; none for an unknown name, which `params` refuses."""
        return getattr(self.recipe, "PRESETS", {}).get(name, {})

    def build(self, params: TrainingParams, *, task: Task) -> nn.Module:
        """`build(params, task)`: the network, with new weights."""
        return self.recipe.build(params, task)

    def task(self, params: TrainingParams, *, task: Task) -> Task:
        """`task(params, task)`: the store's task as the method wants it, with its own spacing or normalisation (usually as it is)."""
        return self._part("task", _as_it_is)(params, task)

    def stages(self, params: TrainingParams) -> tuple[Stage, ...]:
        """`stages(params)`: usually one stage of polynomial decay over all epochs, nnU-Net's schedule."""
        return self._part("stages", default_stages)(params)

    def loss(self, params: TrainingParams, *, task: Task) -> Loss:
        """`loss(params, task)`: usually the loss that the parameters name."""
        return self._part("loss", _named_loss)(params, task)

    def trained_part(self, case: TrainingCase, *, params: TrainingParams, task: Task) -> TrainingCase:
        """`trained_part(case, params, task)`: what of an annotated case is trained on (usually the whole scan)."""
        return self._part("trained_part", _whole)(case, params, task)

    def adapt(self, weights: Mapping[str, Tensor], *, model: nn.Module) -> Mapping[str, Tensor]:
        """`adapt(weights, model)`: weights that this method trained, as another network takes them (usually as they are)."""
        return self._part("adapt", _fitting)(weights, model)

    def inference(self, params: TrainingParams, *, task: Task) -> Inference:
        """`inference(params, task)`: how whole scans are segmented (usually all of a scan, patches overlapping by half)."""
        return self._part("inference", _plainly)(params, task)

    @property
    def any_channels(self) -> bool:
        """`ANY_CHANNELS`: whether images of one batch may have another number of channels than those of the next (usually not)."""
        return getattr(self.recipe, "ANY_CHANNELS", False)

    @property
    def divisor(self) -> Size:
        """`DIVISOR`: what the network needs patches to be multiples of, in voxels along (z, y, x) (usually 16)."""
        return getattr(self.recipe, "DIVISOR", (16, 16, 16))

    def _part(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return getattr(self.recipe, name, default)


def load_method(name: str) -> Method:
    """The trainable recipe of a name. Raises RecipeError with the nearest names when there is none."""
    return Method(name=name, recipe=recipes.load("trainables", name=name))


def default_stages(params: TrainingParams) -> tuple[Stage, ...]:
    """One stage of polynomial decay over all epochs: nnU-Net's schedule."""
    return (Stage(name="train", epochs=params.epochs, learning_rate=params.learning_rate),)


def _as_it_is(_params: TrainingParams, task: Task) -> Task:
    return task


def _named_loss(params: TrainingParams, task: Task) -> Loss:
    return build_loss(params.loss, task=task, batch_dice=params.batch_dice)


def _whole(case: TrainingCase, _params: TrainingParams, _task: Task) -> TrainingCase:
    return case


def _plainly(_params: TrainingParams, _task: Task) -> Inference:
    return Inference()


def _fitting(weights: Mapping[str, Tensor], _model: nn.Module) -> Mapping[str, Tensor]:
    return weights
