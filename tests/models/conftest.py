"""One workspace with a real SQLite MLflow for all tests of the room: making its database takes seconds."""

import pytest

from segsweep.models.tracking import Tracker
from segsweep.workspace import Workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory):
    """An empty workspace that the environment names, as for a user."""
    root = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("SEGSWEEP_WORKSPACE", str(root))
        yield Workspace(root=root)


@pytest.fixture(scope="session")
def tracker(workspace: Workspace) -> Tracker:
    """A tracker on the workspace's own database."""
    return Tracker(workspace, experiment="phantom")
