"""A checkpoint goes in once, comes out by version and alias, and never comes out damaged."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from segsweep.errors import ModelError
from segsweep.learning import checkpoint
from segsweep.models import catalogue, registry
from segsweep.models.browsing import QUIET
from segsweep.models.tracking import DIGEST_TAG, Tracker
from segsweep.workspace import Workspace

MakeCheckpoint = Callable[..., Path]
PASSWORD = "right one"
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


def test_scores_stand_in_the_description_with_their_intervals(tracker, run_id, make_checkpoint) -> None:
    scores = {"a": {"organ": 0.5}, "b": {"organ": 1.0}}
    registry.register(make_checkpoint("one"), name="scored", tracker=tracker, run_id=run_id, scores=scores)
    version = tracker.client.get_model_version("scored", "1")
    assert version.tags["segsweep.dice_interval"] == "0.500 to 1.000 (95 %, 2 cases)"
    described = version.description or ""
    assert "**Dice 0.750** on 2 cases held out (95 % interval 0.500 to 1.000), mean of 1 structure." in described
    assert "| organ | &emsp;0.750 | &emsp;0.500 to 1.000 | &emsp;2 |" in described
    assert "val/dice" not in described
    assert "`candidate` is the best" in (tracker.client.get_registered_model("scored").description or "")


def test_a_long_description_is_cut_to_what_every_database_holds(tracker, run_id, make_checkpoint) -> None:
    names = [f"a structure with a long name, number {number}" for number in range(120)]
    scores = {"c0": dict.fromkeys(names, 0.5)}
    folder = make_checkpoint("one", threshold=3.5)
    run = json.loads((folder / "run.json").read_text())
    found = {"rules": {"largest": names}, "from": {"uri": "models:/a/1"}}
    (folder / "run.json").write_text(json.dumps({**run, "clean_up": found}))
    checkpoint.write_manifest(folder)
    registry.register(folder, name="long", tracker=tracker, run_id=run_id, scores=scores)
    description = tracker.client.get_model_version("long", "1").description
    assert len(description) == 5000 and description.startswith("**Dice 0.500**")


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
        put(tracker, run_id, folder, "changed-folder")
    assert "changed-folder" not in {item.name for item in catalogue.models(workspace)}


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


def test_downloads_of_two_processes_at_once_leave_the_first_one_alone(
    tracker, workspace, run_id, make_checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = put(tracker, run_id, make_checkpoint("one", threshold=7.0), "raced")
    model = registry.fetch(found.uri, workspace=workspace).parents[1]
    other, others = workspace.root / "fetched" / found.digest, []

    def download(*, dst_path: str, **_places: str) -> str:
        shutil.copytree(model, other)
        others.append((other / registry.DATA / "manifest.json").stat().st_ino)
        return str(shutil.copytree(model, Path(dst_path) / "model"))

    def broken(*, dst_path: str, **_places: str) -> str:
        (Path(dst_path) / "part").write_bytes(b"half")
        raise OSError("the connection was lost")

    monkeypatch.setattr(registry.MlflowClient, "get_model_version_download_uri", lambda *_: "mlflow-artifacts:/m")
    monkeypatch.setattr(registry, "download_artifacts", broken)
    with pytest.raises(ModelError, match="connection was lost"):
        registry.fetch(found.uri, workspace=workspace)
    assert not list(other.parent.glob(".*")) and not other.exists()
    monkeypatch.setattr(registry, "download_artifacts", download)
    folder = registry.fetch(found.uri, workspace=workspace)
    assert (folder / "manifest.json").stat().st_ino in others, "a process that uses these files goes on using them"
    assert not list(other.parent.glob(".*"))
    assert checkpoint.verify(folder) == found.digest and folder.is_relative_to(other)


def test_model_on_a_server_with_passwords_is_downloaded_once(
    locked: str, tmp_path: Path, monkeypatch, make_checkpoint
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", locked)
    workspace = Workspace(root=tmp_path / "workspace")
    for key, value in zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), ("ada", "guessed"), strict=True):
        monkeypatch.setenv(key, value)
    with pytest.raises(ModelError, match=r"does not let this user .*set MLFLOW_TRACKING_USERNAME and") as raised:
        Tracker(workspace, experiment="phantom")
    assert "guessed" not in str(raised.value) and "\n" not in str(raised.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    tracker = Tracker(workspace, experiment="phantom")
    shown = tracker.start("shown")
    tracker.inputs(shown, [{"name": "a", "digest": "b", "context": "training", "source": "s3://c/d", "profile": {}}])
    tracker.picture(shown, "UE5H", path="overlays/a.png")
    inputs = tracker.client.get_run(shown).inputs
    assert inputs is not None
    (learned,) = inputs.dataset_inputs
    assert (learned.dataset.name, learned.dataset.source_type) == ("a", "s3")
    assert Path(tracker.client.download_artifacts(shown, "overlays/a.png", str(tmp_path))).read_bytes() == b"PNG"
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
    environment = {**os.environ, **QUIET}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(f"{address}/health"):
            assert process.poll() is None, "the MLflow server ended before it answered"
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


class Gate(BaseHTTPRequestHandler):
    """Lets one user through to MLflow, as a proxy with passwords does."""

    behind = ""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Basic {b64encode(f'ada:{PASSWORD}'.encode()).decode()}":
            self.reply(401, kind="text/plain", content=b"You are not authenticated.\nLog in.")
            return
        connection = HTTPConnection(self.behind)
        headers = {key: value for key, value in self.headers.items() if key not in ("Host", "Authorization")}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        self.reply(answer.status, kind=answer.getheader("Content-Type") or "", content=answer.read())
        connection.close()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815  the names that http.server calls

    def reply(self, status: int, *, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to standard error."""


@pytest.fixture
def locked(server: str) -> Iterator[str]:
    """Address of the server behind a user's name and password."""
    handler = type("Locked", (Gate,), {"behind": server.removeprefix("http://")})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as gate:
        threading.Thread(target=gate.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{gate.server_port}"
        gate.shutdown()


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
