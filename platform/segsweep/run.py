"""A Run is what to train: a frozen value that travels as JSON to workers, checkpoints and the registry."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from segsweep.errors import RecipeError

Fold = int | Literal["all"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a trainable on a store, or on several as one (`stores/a,stores/b`).

    `fold` is the store's held-out fold (0 to 4 unless it was given others) or "all" (train on every training case).
    `workers` is the number of DDP processes; each draws `batch_size` patches, so it is part of what is trained. Raises RecipeError
    for a value that cannot be used.
    """

    trainable: str
    store: str
    fold: Fold = 0
    seed: int = 0
    workers: int = 1
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fold != "all" and not (_whole(self.fold) and self.fold >= 0):
            raise RecipeError(f"fold={self.fold!r} cannot be used: expected a whole number from 0, or 'all'")
        if not (_whole(self.seed) and self.seed >= 0):
            raise RecipeError(f"seed={self.seed!r} cannot be used: expected a whole number, at least 0")
        if not (_whole(self.workers) and self.workers >= 1):
            raise RecipeError(f"workers={self.workers!r} cannot be used: expected a whole number, at least 1")
        try:
            params = json.loads(json.dumps(dict(self.params)))
        except TypeError as error:
            raise RecipeError(
                f"params={self.params!r} cannot be used: expected values that JSON knows ({error})"
            ) from None
        # As JSON gives them back, so that a run equals the one that its file describes.
        object.__setattr__(self, "params", params)

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary; `Run(**values)` takes it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this run: equal runs have equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
