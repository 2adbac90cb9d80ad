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
    """One training: a trainable on a store. `fold` is the held-out fold (0 to 4) or "all" (train on every training case).

    `workers` is the number of DDP processes; each draws `batch_size` patches, so it is part of what is trained.
    """

    trainable: str
    store: str
    fold: Fold = 0
    seed: int = 0
    workers: int = 1
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fold != "all" and not (isinstance(self.fold, int) and 0 <= self.fold < 5):
            raise RecipeError(f"fold={self.fold!r} cannot be used: expected 0 to 4 or 'all'")
        if self.workers < 1:
            raise RecipeError(f"workers={self.workers} cannot be used: expected at least 1")

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary; `Run(**values)` takes it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this run: equal runs have equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
