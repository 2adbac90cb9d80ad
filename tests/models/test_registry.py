"""A checkpoint goes in once, comes out by version and alias, and never comes out damaged."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from segsweep.errors import ModelError
from segsweep.learning import checkpoint
from segsweep.models import catalogue, registry
from segsweep.models.tracking import DIGEST_TAG, Tracker
from segsweep.workspace import Workspace

MakeCheckpoint = Callable[..., Path]
PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy"}


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.start("registering")


def put(tracker: Tracker, run_id: str, folder: Path, name: str) -> catalogue.Registered:
    return registry.register(folder, name=name, tracker=tracker, run_id=run_id, tags={"trainable": "threshold_net"})


def test_registering_twice_gives_the_same_version(tracker, workspace, run_id, make_checkpoint) -> None:
    first = put(tracker, run_id, make_checkpoint("one"), "twice")
    again = put(tracker, run_id, make_checkpoint("copy"), "twice")
    other = put(tracker, run_id, make_checkpoint("two", threshold=1.0), "twice")
    assert first == again
    assert (first.version, other.version) == (1, 2)
    assert first.uri == "models:/twice/1"
    assert [item.version for item in catalogue.models(workspace) if item.name == "twice"] == [1, 2]


def test_version_lies_under_its_run_with_a_description(tracker, run_id, make_checkpoint) -> None:
    found = put(tracker, run_id, make_checkpoint("one"), "described")
    version = tracker.client.get_model_version("described", str(found.version))
    assert version.run_id == run_id
    assert version.tags == {"trainable": "threshold_net", "segsweep.digest": found.digest}
    assert "trainable `threshold_net`, store `phantom.zarr`, fold `0`" in version.description
    assert "| val/dice | 0.875 |" in version.description
    outputs = tracker.client.get_run(run_id).outputs
    assert outputs is not None
    (output,) = outputs.model_outputs
    logged = tracker.client.get_logged_model(output.model_id)
    assert (logged.status.name, logged.source_run_id, logged.artifact_location) == ("READY", run_id, version.source)


def test_fetch_by_version_alias_latest_and_folder(tracker, workspace, run_id, make_checkpoint) -> None:
    folders = [make_checkpoint(f"c{number}", threshold=float(number)) for number in range(2)]
    old, new = (put(tracker, run_id, folder, "fetched") for folder in folders)
    catalogue.set_alias("fetched", alias="champion", version=1, workspace=workspace)
    found = {
        address: checkpoint.verify(registry.fetch(address, workspace=workspace))
        for address in ("models:/fetched/2", "models:/fetched@champion", "models:/fetched", str(folders[0]))
    }
    assert list(found.values()) == [new.digest, old.digest, new.digest, old.digest]
    catalogue.set_alias("fetched", alias="champion", version=2, workspace=workspace)
    assert catalogue.resolve("models:/fetched@champion", workspace=workspace) == new
    listed = [item for item in catalogue.models(workspace) if item.name == "fetched"]
    assert [item.aliases for item in listed] == [(), ("champion",)]
    assert listed[0].digest == old.digest


def test_registered_files_are_no_pickles(tracker, workspace, run_id, make_checkpoint) -> None:
    put(tracker, run_id, make_checkpoint("one"), "plain")
    model = registry.fetch("models:/plain/1", workspace=workspace).parents[1]
    files = [path for path in model.rglob("*") if path.is_file()]
    assert {"MLmodel", "weights.safetensors", "manifest.json", "requirements.txt"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in PICKLE_SUFFIXES or is_pickle(path)]


def test_pickle_check_sees_a_pickle(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "model").write_bytes(pickle.dumps({"weights": [1.0]}, protocol=protocol))
        assert is_pickle(tmp_path / "model")


def test_tampered_weights_are_refused_by_name(tracker, workspace, run_id, make_checkpoint) -> None:
    put(tracker, run_id, make_checkpoint("one"), "tampered")
    weights = registry.fetch("models:/tampered/1", workspace=workspace) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.safetensors.*damaged"):
        registry.fetch("models:/tampered/1", workspace=workspace)


def test_rewritten_manifest_is_refused(tracker, workspace, run_id, make_checkpoint) -> None:
    put(tracker, run_id, make_checkpoint("one"), "rewritten")
    folder = registry.fetch("models:/rewritten/1", workspace=workspace)
    shutil.copyfile(make_checkpoint("other", threshold=2.0) / "weights.safetensors", folder / "weights.safetensors")
    checkpoint.write_manifest(folder)
    with pytest.raises(ModelError, match=r"models:/rewritten/1: its manifest has digest .* from the registry"):
        registry.fetch("models:/rewritten/1", workspace=workspace)


def test_damaged_folder_is_not_registered(tracker, workspace, run_id, make_checkpoint) -> None:
    folder = make_checkpoint("one")
    (folder / "run.json").write_text("{}")
    with pytest.raises(ModelError, match=r"run\.json"):
        put(tracker, run_id, folder, "damaged")
    assert "damaged" not in {item.name for item in catalogue.models(workspace)}


def test_files_beside_the_manifest_stay_behind(tracker, workspace, run_id, make_checkpoint) -> None:
    folder = make_checkpoint("one")
    (folder / "notes.txt").write_text("patient names")
    put(tracker, run_id, folder, "strict")
    stored = {path.name for path in registry.fetch("models:/strict/1", workspace=workspace).iterdir()}
    assert stored == {"manifest.json", *json.loads((folder / "manifest.json").read_text())["files"]}


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("models:/livr/1", r"no 'livr' among registered models \(there are: .*\); did you mean 'liver'\?"),
        ("models:/liver/7", r"no '7' among versions of liver \(there are: 1\)"),
        ("models:/liver@champoin", r"no 'champoin' among aliases of liver .*did you mean 'champion'\?"),
        ("models:liver", r"'models:liver' is no model address; expected models:/NAME/3"),
        ("nowhere/at/all", r"nowhere/at/all: no manifest\.json found"),
    ],
)
def test_absent_models_are_named(address: str, sentence: str, tracker, workspace, run_id, make_checkpoint) -> None:
    put(tracker, run_id, make_checkpoint("one"), "liver")
    catalogue.set_alias("liver", alias="champion", version=1, workspace=workspace)
    with pytest.raises(ModelError, match=sentence):
        registry.fetch(address, workspace=workspace)


@pytest.mark.parametrize("digest", ["", "../..", "0" * 63])
def test_versions_of_others_are_refused_before_anything_is_downloaded(
    digest: str, tracker, workspace, tmp_path: Path
) -> None:
    name = f"foreign {len(digest)}"
    tracker.client.create_registered_model(name)
    tags = {DIGEST_TAG: digest} if digest else {}
    tracker.client.create_model_version(name, source=tmp_path.as_uri(), tags=tags)
    before = sorted(workspace.root.glob("fetched/*"))
    with pytest.raises(ModelError, match=rf"models:/{name}/1 was not registered by segsweep .* is '{digest}'\)"):
        registry.fetch(f"models:/{name}", workspace=workspace)
    assert sorted(workspace.root.glob("fetched/*")) == before


def test_names_and_aliases_that_mlflow_refuses(tracker, workspace, run_id, make_checkpoint) -> None:
    with pytest.raises(ModelError, match="model name 'a/b' cannot be used"):
        put(tracker, run_id, make_checkpoint("one"), "a/b")
    put(tracker, run_id, make_checkpoint("one"), "v2.1 large")
    with pytest.raises(ModelError, match=r"alias 'latest' of v2\.1 large cannot be set"):
        catalogue.set_alias("v2.1 large", alias="latest", version=1, workspace=workspace)


def test_artifacts_that_went_away_are_named(tracker, workspace, run_id, make_checkpoint) -> None:
    put(tracker, run_id, make_checkpoint("one"), "moved")
    shutil.rmtree(registry.fetch("models:/moved/1", workspace=workspace).parents[1])
    with pytest.raises(ModelError, match="models:/moved/1: its files cannot be read from"):
        registry.fetch("models:/moved/1", workspace=workspace)


def test_model_on_a_server_is_downloaded_once(server: str, tmp_path: Path, monkeypatch, make_checkpoint) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    workspace = Workspace(root=tmp_path / "workspace")
    tracker = Tracker(workspace, experiment="phantom")
    found = put(tracker, tracker.start("remote"), make_checkpoint("one"), "remote")
    folder = registry.fetch(found.uri, workspace=workspace)
    assert folder.is_relative_to(workspace.root)
    assert checkpoint.verify(folder) == found.digest
    changed = (folder / "run.json").stat().st_mtime_ns
    assert registry.fetch("models:/remote", workspace=workspace) == folder
    assert (folder / "run.json").stat().st_mtime_ns == changed
    (folder / "run.json").write_text("{}")
    assert checkpoint.verify(registry.fetch(found.uri, workspace=workspace)) == found.digest
    (folder / "manifest.json").write_text("{")
    assert checkpoint.verify(registry.fetch(found.uri, workspace=workspace)) == found.digest
    assert [path.name for path in (workspace.root / "fetched").iterdir()] == [found.digest]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a real MLflow server with a database and artifacts of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    store = f"sqlite:///{tmp_path / 'server.db'}"
    places = ["--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "server")]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *places]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(f"{address}/health"):
            assert process.poll() is None, "the MLflow server ended before it answered"
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (URLError, OSError):
        return False


def is_pickle(path: Path) -> bool:
    """Whether a file looks like a pickle: the protocol opcode, or (protocols 0 and 1) an opening opcode and STOP."""
    content = path.read_bytes()
    binary = content[:1] == b"\x80" and content[1:2] <= b"\x05"
    text = content[:1] in (b"(", b"]", b"}", b"c") and content.endswith(b".")
    return binary or text
