"""`segsweep server` as a group meets it: a real PostgreSQL and bucket behind it, nobody in without a password, no secret out."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from segsweep import cli
from segsweep.errors import ModelError, ResourceError
from segsweep.learning import checkpoint
from segsweep.models import registry
from segsweep.models.outbox import Outbox
from segsweep.models.server import serve_group
from segsweep.models.tracking import Tracker
from segsweep.workspace import Workspace

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION", "SEGSWEEP_STUDIES")
TRIAL = {"segsweep.sweep": "toy", "segsweep.trial": "0"}
PEOPLE = {"ada": "the password of ada", "ben": "the password of ben"}
OUTSIDE = b"a line from outside"
# What a caller may put before a file's name to leave the folder of artifacts.
WAYS_OUT = (
    "../", "../../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..%252f", "%2e./", ".%2e%2f", "..%5c", "..\\",
    "%5c..%5c", "..;/", "..%00/", "..%c0%af", "%c0%ae%c0%ae/", "....//", "./..//", "/", "%2f", "file:///", "file:", "x/../../",
    "x/%2e%2e/%2e%2e/",
)  # fmt: skip


@dataclass(kw_only=True)
class Group:
    """A server that runs, what it printed, and the command lines of all processes while it started."""

    process: subprocess.Popen
    port: int
    root: Path
    output: Path
    seen: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> tuple[str, str]:
        return "admin", (self.root / "server" / "admin.password").read_text().strip()

    def ask(
        self, path: str, *, method: str = "GET", body: Any = None, user: tuple[str, str] | None = None, host: str = ""
    ) -> tuple[int, bytes]:
        """Status and content of what the server answers; the path is sent as it is."""
        headers = {"Content-Type": "application/json", **({"Host": host} if host else {})}
        if user:
            headers["Authorization"] = f"Basic {b64encode(':'.join(user).encode()).decode()}"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host=bool(host))
        content = b"" if body is None else json.dumps(body).encode()
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            connection.putheader(name, value)
        connection.endheaders(content)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def until_it_answers(self) -> None:
        while True:
            self.seen |= set(command_lines())
            assert self.process.poll() is None, self.output.read_text()
            try:
                assert self.ask("/health")[0] == 200
            except OSError:
                time.sleep(0.2)
            else:
                return

    def below(self) -> list[int]:
        """Its processes, and those that they started."""
        found = [self.process.pid]
        for pid in found:
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, path.read_text().split())
        return found


def command_lines() -> list[str]:
    """Those of all processes, as everybody on a machine sees them."""
    done = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def start(root: Path, *words: str, port: int | None = None, **environment: str) -> Group:
    """`segsweep server` as a process of its own; one worker of MLflow is enough here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "SEGSWEEP_"))}
    found = free_port() if port is None else port
    code = "import sys; from segsweep.cli import main; sys.exit(main())"
    with (root / "output").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "server", "--port", str(found), *words],
            env={**kept, "MLFLOW_WORKERS": "1", "SEGSWEEP_WORKSPACE": str(root), **environment},
            cwd=root,
            stdout=output,
            stderr=output,
        )
    return Group(process=process, port=found, root=root, output=root / "output")


def end(group: Group) -> int:
    """SIGTERM, and the exit code."""
    group.process.send_signal(signal.SIGTERM)
    return group.process.wait(30)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Where the server keeps files, and the secret with which it alone opens it."""

    uri: str
    secret: str
    requests: list[str]


@pytest.fixture(scope="module")
def bucket(storage_server: Any) -> Bucket:
    """A bucket with a file beside the artifacts."""
    from pyarrow.fs import S3FileSystem  # noqa: PLC0415  as in the fixture of all tests

    name, address = f"group-{secrets.token_hex(4)}", os.environ["AWS_ENDPOINT_URL"]
    files = S3FileSystem(endpoint_override=address, allow_bucket_creation=True, request_timeout=60)
    files.create_dir(name)
    with files.open_output_stream(f"{name}/outside.txt") as stream:
        stream.write(OUTSIDE)
    secret = f"canary-{secrets.token_hex(8)}"
    return Bucket(uri=f"s3://{name}/mlflow", secret=secret, requests=storage_server.requests)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory, postgres: Any, bucket: Bucket) -> Iterator[Group]:
    """The server on a PostgreSQL with a password and on a bucket, with two people."""
    root = tmp_path_factory.mktemp("server")
    postgres.create("mlflow")
    (root / "outside.txt").write_bytes(OUTSIDE)
    found = start(
        root, "--artifacts", bucket.uri,
        MLFLOW_BACKEND_STORE_URI=postgres.network("mlflow"), AWS_SECRET_ACCESS_KEY=bucket.secret,
    )  # fmt: skip
    try:
        found.until_it_answers()
        for name, password in PEOPLE.items():
            body = {"username": name, "password": password}
            assert found.ask("/api/2.0/mlflow/users/create", method="POST", body=body, user=found.admin)[0] == 200
        yield found
    finally:
        if found.process.poll() is None:
            end(found)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address of anyone's servers, and no way into the bucket for who is not the server."""
    for name in (*VARIABLES, "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def log_in(group: Group, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what a person sets."""

    def enter(name: str, *, password: str | None = None, at: Group = group) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", at.address)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PEOPLE[name] if password is None else password)

    return enter


def test_nobody_gets_in_without_a_password(group: Group, log_in: Callable[..., None], tmp_path: Path) -> None:
    asked = [
        ("GET", "/"),
        ("GET", "/signup"),
        ("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0"),
        ("POST", "/api/2.0/mlflow/experiments/search"),
        ("POST", "/api/2.0/mlflow/runs/search"),
        ("POST", "/api/2.0/mlflow/runs/create"),
        ("POST", "/api/2.0/mlflow/users/create"),
        ("POST", "/ajax-api/2.0/mlflow/runs/create"),
        ("POST", "/graphql"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts/1/anything"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/anything"),
        ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/1/anything"),
        ("GET", "/get-artifact?run_id=1&path=anything"),
        ("GET", "/api/2.0/mlflow/registered-models/search"),
    ]
    for user in (None, ("admin", "password1234"), ("ada", PEOPLE["ben"])):
        answers = {path: group.ask(path, method=method, body={}, user=user)[0] for method, path in asked}
        assert set(answers.values()) == {401}, (user, answers)
    log_in("ada", password="a wrong one")
    with pytest.raises(ModelError, match=r"does not let this user .*set MLFLOW_TRACKING_USERNAME and") as raised:
        Tracker(Workspace(root=tmp_path), experiment="phantom")
    assert "a wrong one" not in str(raised.value) and "\n" not in str(raised.value)


def test_people_share_experiments_and_models_without_the_buckets_credentials(
    group: Group, bucket: Bucket, log_in: Callable[..., None], tmp_path: Path, make_checkpoint: Any, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    log_in("ada")
    tracker = Tracker(Workspace(root=tmp_path / "ada"), experiment="phantom")
    run_id = tracker.start("first", params={"epochs": 3})
    found = registry.register(make_checkpoint("one"), name="phantom-unet", tracker=tracker, run_id=run_id)
    assert [words for words in bucket.requests if words.startswith("PUT") and "checkpoint/" in words]
    log_in("ben")
    theirs = Workspace(root=tmp_path / "ben")
    folder = registry.fetch(found.uri, workspace=theirs)
    assert folder.is_relative_to(theirs.root)
    assert checkpoint.verify(folder) == found.digest == checkpoint.verify(tmp_path / "one")
    outbox = Outbox(Tracker(theirs, experiment="phantom"), name="toy", say=print)
    outbox.begin(TRIAL, name="trial-0000")
    for step in range(3):
        outbox.metrics(TRIAL, {"loss": 1.0 / (step + 1)}, step=step)
    outbox.picture(TRIAL, b"PNG", path="overlays/a.png")
    outbox.finish(TRIAL)
    outbox.flush()
    outbox.close()
    seen = tracker.find(tags=TRIAL)
    assert seen
    history = tracker.client.get_metric_history(seen, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, 1.0 / 3)]
    assert Path(tracker.client.download_artifacts(seen, "overlays/a.png", str(tmp_path))).read_bytes() == b"PNG"
    monkeypatch.setenv("SEGSWEEP_WORKSPACE", str(theirs.root))
    capsys.readouterr()
    assert cli.main(["list", "models"]) == 0
    assert "models:/phantom-unet/1" in capsys.readouterr().out
    delete = {"method": "POST", "body": {"experiment_id": tracker.experiment_id}}
    assert group.ask("/api/2.0/mlflow/experiments/delete", **delete, user=("ben", PEOPLE["ben"]))[0] == 403


def test_no_path_leads_out_of_the_artifacts(group: Group) -> None:
    assert_kept_in(group, depth=1)


def assert_kept_in(group: Group, *, depth: int) -> None:
    """Ask in every way for a file that lies `depth` folders above the artifacts, and for one of the machine."""
    for way in WAYS_OUT:
        for path in (way * depth + "outside.txt", way + str(group.root / "outside.txt"), way * 12 + "etc/passwd"):
            for place in (f"artifacts/{path}", f"artifacts?path={path.rpartition('/')[0] or path}"):
                status, content = group.ask(f"/api/2.0/mlflow-artifacts/{place}", user=group.admin)
                assert OUTSIDE not in content and b"root:" not in content, place
                assert status >= 400 or b"outside.txt" not in content, place


def test_hosts_by_other_names_are_refused(group: Group) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    for host in ("evil.example", "127.0.0.1.evil.example", "10.evil.example", f"evil.example:{group.port}"):
        assert group.ask(path, user=group.admin, host=host)[0] == 403, host
    for host in ("localhost", "localhost:8080", f"127.0.0.1:{group.port}", "[::1]:5000"):
        assert group.ask(path, user=group.admin, host=host)[0] == 200, host


def test_no_secret_is_shown_or_stored(group: Group, postgres: Any, bucket: Bucket) -> None:
    name, password = group.admin
    assert len(password) >= 24
    assert (group.root / "server" / "admin.password").stat().st_mode & 0o777 == 0o600
    canaries = {"admin's": password, "database's": postgres.password, "bucket's": bucket.secret, **PEOPLE}
    lines = group.seen | set(command_lines())
    assert any(f"--port {group.port}" in line and "uvicorn" in line for line in lines)
    output = group.output.read_text()
    assert f"password in {group.root / 'server' / 'admin.password'}" in output
    assert "database   postgresql://127.0.0.1" in output
    assert f"/signup, as {name}" in output
    kept = {path: path.read_bytes() for path in group.root.rglob("*") if path.is_file()}
    assert kept.pop(group.root / "server" / "admin.password")
    for whose, canary in canaries.items():
        assert not [line for line in lines if canary in line], whose
        assert canary not in output, whose
        assert not [path for path, content in kept.items() if canary.encode() in content], whose


def test_it_ends_with_all_that_it_started(group: Group) -> None:
    below = group.below()
    assert len(below) >= 3
    assert end(group) == 0
    for pid in below:
        while Path(f"/proc/{pid}").exists():  # what was killed may take a moment to be gone
            time.sleep(0.02)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", group.port)) != 0


@pytest.mark.parametrize(
    ("words", "values", "sentence"),
    [
        ({"host": "0.0.0.0"}, {}, r"--host 0\.0\.0\.0 listens on all addresses .* --allowed-hosts mlflow\.example"),
        ({"artifacts": "s3://key:secret@bucket"}, {}, r"'s3://bucket' is no place for artifacts; expected a folder"),
        ({}, {"MLFLOW_BACKEND_STORE_URI": "mysql://me:secret@host/runs"}, r"'mysql://host/runs': expected postgresql"),
        ({}, {"MLFLOW_BACKEND_STORE_URI": "postgresql://me:secret@127.0.0.1:1/x"}, "refused.*MLFLOW_BACKEND_STORE_URI"),
        ({}, {"MLFLOW_BACKEND_STORE_URI": "sqlite:////proc/none/x.db"}, "unable to open database file"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    words: dict[str, Any], values: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    options = {"host": "127.0.0.1", "allowed_hosts": (), "artifacts": None, "port": free_port(), **words}
    with pytest.raises(ResourceError, match=sentence) as raised, serve_group(Workspace(root=tmp_path), **options):
        pass
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.glob("server/*password*"))


def test_a_password_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "server" / "admin.password"
    file.parent.mkdir()
    file.write_text("chosen by its owner\n")
    file.chmod(0o640)
    with (
        pytest.raises(ResourceError, match=r"admin\.password: other users .* chmod 600 it"),
        serve_group(Workspace(root=tmp_path), host="127.0.0.1", port=free_port(), allowed_hosts=(), artifacts=None),
    ):
        pass


@pytest.mark.slow
def test_a_killed_server_loses_nothing(
    postgres: Any, tmp_path: Path, log_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the socket, where no password exists, with files in a folder; the admin is known when it starts again."""
    monkeypatch.setattr("segsweep.models.outbox.FIRST_WAIT", 0.1)
    (tmp_path / "outside.txt").write_bytes(OUTSIDE)
    address = postgres.create("mlflow-killed")
    first = start(tmp_path, MLFLOW_BACKEND_STORE_URI=address)
    first.until_it_answers()
    name, password = first.admin
    log_in(name, password=password, at=first)
    outbox = Outbox(Tracker(Workspace(root=tmp_path / "mine"), experiment="toy"), name="toy", say=print)
    outbox.begin(TRIAL, name="trial-0000")
    for step in range(200):
        outbox.metrics(TRIAL, {"loss": float(step)}, step=step)
    while not outbox.tracker.find(tags=TRIAL):
        time.sleep(0.01)
    for pid in first.below():
        os.kill(pid, signal.SIGKILL)
    first.process.wait()
    with pytest.raises(ModelError, match="entries for MLflow wait"):
        outbox.flush()
    second = start(tmp_path, port=first.port, MLFLOW_BACKEND_STORE_URI=address)
    try:
        second.until_it_answers()
        outbox.flush()
        outbox.close()
        tracker = Tracker(Workspace(root=tmp_path / "theirs"), experiment="toy")
        run_id = tracker.find(tags=TRIAL)
        assert run_id
        history = tracker.client.get_metric_history(run_id, "loss")
        assert sorted((point.step, point.value) for point in history) == [(step, float(step)) for step in range(200)]
        tracker.file(run_id, "kept", path="note.txt")
        assert [path.read_text() for path in (tmp_path / "server" / "artifacts").rglob("note.txt")] == ["kept"]
        assert "password as it was" in second.output.read_text()
        assert_kept_in(second, depth=2)
    finally:
        assert end(second) == 0
