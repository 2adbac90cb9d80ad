"""A training of seconds, for all tests of the room."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Parameters of a U-Net's shortest training: one epoch of one iteration."""
    return {
        "epochs": 1,
        "iterations": 1,
        "validation_iterations": 1,
        "patch_size": [16, 32, 32],
        "batch_size": 2,
        "features": 4,
        "levels": 3,
    }
