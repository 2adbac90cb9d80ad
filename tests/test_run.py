"""A run is a value: equal runs have equal names, it survives JSON, and it refuses what cannot be trained."""

import dataclasses
import json
from typing import Any

import pytest

from segsweep.errors import RecipeError
from segsweep.run import Run

RUN = Run(
    trainable="unet", store="stores/a", fold=2, seed=7, workers=2, params={"epochs": 3, "patch_size": (8, 16, 16)}
)


def test_a_run_survives_json() -> None:
    again = Run(**json.loads(json.dumps(RUN.to_json())))
    assert again == RUN
    assert again.digest == RUN.digest
    assert again.params["patch_size"] == [8, 16, 16]


def test_the_digest_names_the_content() -> None:
    assert len(RUN.digest) == 12 and int(RUN.digest, 16) >= 0
    turned = dataclasses.replace(RUN, params={"patch_size": [8, 16, 16], "epochs": 3})
    assert turned.digest == RUN.digest, "the order of parameters must not matter"


@pytest.mark.parametrize(
    "change",
    (
        {"trainable": "other"}, {"store": "stores/b"}, {"fold": "all"}, {"seed": 8}, {"workers": 1},
        {"params": {"epochs": 4, "patch_size": [8, 16, 16]}}, {"params": {}},
    ),
    ids=str,
)  # fmt: skip
def test_every_field_is_part_of_the_digest(change: dict[str, Any]) -> None:
    assert dataclasses.replace(RUN, **change).digest != RUN.digest


def test_a_digest_does_not_depend_on_the_process() -> None:
    assert Run(trainable="unet", store="s").digest == "b857ba367409"


@pytest.mark.parametrize(
    ("field", "value"),
    (
        ("fold", -1), ("fold", "every"), ("fold", 1.0), ("fold", True), ("workers", 0), ("workers", "two"),
        ("workers", 1.5), ("seed", -1), ("seed", "abc"), ("seed", None),
    ),
)  # fmt: skip
def test_values_that_cannot_be_used_are_named(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"^{field}={value!r} cannot be used: expected "):
        Run(**{"trainable": "unet", "store": "s", field: value})  # type: ignore[arg-type]


def test_params_must_be_json() -> None:
    with pytest.raises(RecipeError, match="expected values that JSON knows"):
        Run(trainable="unet", store="s", params={"epochs": object()})


def test_a_run_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUN.fold = 3  # type: ignore[misc]
