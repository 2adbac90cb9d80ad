"""Networks of the optional package MONAI, as recipes build them."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from segsweep.errors import RecipeError

PACKAGES = ("monai", "einops")


def network(name: str, *, recipe: str, **values: Any) -> nn.Module:
    """The class of that name in monai.networks.nets, built with `values`; what it returns becomes a list of logits.

    Weights keep MONAI's names. Raises RecipeError when the extra is not installed.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise RecipeError(
            f"{recipe} needs {' and '.join(missing)}, which this Python does not have; run: pip install 'segsweep[monai]'"
        )
    # Not before a network is asked for: MONAI imports every tracker and reader that it finds, which takes seconds.
    made = getattr(import_module("monai.networks.nets"), name)(**values)
    made.register_forward_hook(_listed)
    return made


def _listed(_network: nn.Module, _images: tuple[Tensor, ...], logits: Any) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else list(logits)
