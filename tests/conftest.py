"""What many tests share: one local Ray, and one small phantom that was made and converted with the real code."""

import getpass
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from segsweep.data.mirror import Mirror
    from segsweep.run import Run
    from segsweep.workspace import Workspace

os.environ.setdefault("OMP_NUM_THREADS", "1")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# Set before Ray starts, whose workers inherit it. No test reaches a real object storage.
STORAGE_PORT = _free_port()
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{STORAGE_PORT}",
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    # An epoch of these tests takes less than the time after which Ray Train asks for its report.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}


# Tests so marked run only when asked for by a flag of the same name; pyproject.toml says what each costs.
ASKED_FOR = ("hosts", "slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name in ASKED_FOR:
        parser.addoption(f"--{name}", action="store_true", help=f"also run the tests marked {name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what was not asked for. Files whose tests wait for Ray come first, so that none of them is left alone at the end of a run
    in several processes.
    """
    for name in ASKED_FOR:
        if not config.getoption(f"--{name}"):
            for item in items:
                if item.get_closest_marker(name):
                    item.add_marker(pytest.mark.skip(reason=f"run with --{name}"))
    items.sort(key=lambda item: not ({"sweeps", "test_walk.py", "test_killed_drivers.py"} & set(item.path.parts)))


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray of two cores for the whole session."""
    import ray  # noqa: PLC0415  tests that need no Ray do not wait for it

    from segsweep.sweeps.cluster import connect  # noqa: PLC0415

    connect()
    yield
    ray.shutdown()


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals that end us do: a suite that was started in the background (`&`, nohup) inherits that they are ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, cluster: None) -> None:  # noqa: ARG001
    """`fit` and `segsweep train` train in this process, by Ray Train's local mode: 20 s of processor less. It tells no callbacks."""
    from ray import train  # noqa: PLC0415

    from segsweep.data.conversion import derive  # noqa: PLC0415
    from segsweep.sweeps import single, training  # noqa: PLC0415
    from segsweep.sweeps.cluster import plain_resources  # noqa: PLC0415
    from segsweep.sweeps.preparing import prepare  # noqa: PLC0415

    def fit_here(run: "Run", *, place: "Mirror", **_told: object) -> None:
        prepared = prepare(run)
        derive(prepared.store, spacing=prepared.task.spacing)
        training.fit(run, folder=place.uri, resources=plain_resources())

    scaling = train.ScalingConfig
    monkeypatch.setattr(train, "ScalingConfig", lambda **values: scaling(**{**values, "num_workers": 0}))
    monkeypatch.setattr(single, "_run", fit_here)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Workspace":
    """An empty workspace, and no address of anyone's servers."""
    from segsweep.workspace import Workspace  # noqa: PLC0415  tests that need none load nothing of ours

    for name in ("MLFLOW_TRACKING_URI", "SEGSWEEP_STUDIES", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "workspace"
    root.mkdir()
    return Workspace(root=root)


@dataclass
class ObjectStorage:
    """An S3 server of this process with one empty bucket at `uri`.

    `requests` are those since the test began, `METHOD /bucket/key`; one that contains a key of `faults` gets the next of its statuses.
    """

    port: int = STORAGE_PORT
    uri: str = ""
    requests: list[str] = field(default_factory=list)
    faults: dict[str, list[int]] = field(default_factory=dict)

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI application."""
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.requests.append(request)
        statuses = [found for part, found in self.faults.items() if part in request and found]
        if not statuses and "Credential=tester/" in environ.get("HTTP_AUTHORIZATION", ""):
            return self.moto(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(f"{statuses[0].pop(0) if statuses else 403} -", [("Content-Type", "application/xml")])
        return [b""]

    @cached_property
    def moto(self) -> Any:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415

        return DomainDispatcherApplication(create_backend_app)


@pytest.fixture(scope="session")
def storage_server() -> Iterator[ObjectStorage]:
    """Answers at AWS_ENDPOINT_URL."""
    from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None: ...

    storage = ObjectStorage()
    server = make_server("127.0.0.1", STORAGE_PORT, storage.answer, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield storage
    server.shutdown()
    server.server_close()


@pytest.fixture
def object_storage(storage_server: ObjectStorage) -> ObjectStorage:
    """An object storage with an empty bucket of its own."""
    from pyarrow.fs import S3FileSystem  # noqa: PLC0415

    bucket = f"bucket-{secrets.token_hex(4)}"
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    # The server's first answer takes seconds, on a busy machine many.
    S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True, request_timeout=120).create_dir(bucket)
    storage_server.uri = f"s3://{bucket}"
    storage_server.requests.clear()
    storage_server.faults.clear()
    return storage_server


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object storage that is away is asked three times, without any pauses."""
    from segsweep.data import storage  # noqa: PLC0415

    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(storage, "_said", [])
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    # Connections are kept by address.
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"))


@dataclass(kw_only=True)
class Postgres:
    """A PostgreSQL of the distribution: on its socket for this user without a password, on the network with the one of `user`."""

    folder: Path
    programs: Path
    port: int
    # Of the user whose processes they are: PostgreSQL does not run as root.
    owner: str
    user: str = "ada"
    password: str = field(default_factory=lambda: f"canary/{secrets.token_hex(8)}")

    def create(self, name: str) -> str:
        """A new database; its address on the socket, which needs no password."""
        import psycopg  # noqa: PLC0415  tests that need no database do not wait for it

        with psycopg.connect(self.socket("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        with psycopg.connect(self.socket(name), autocommit=True) as connection:
            connection.execute(f"GRANT ALL ON SCHEMA public TO {self.user}".encode())
        return self.socket(name)

    def socket(self, name: str) -> str:
        """The address of a database on the socket."""
        return f"postgresql:///{name}?host={self.folder}&port={self.port}"

    def network(self, name: str, *, password: str | None = None) -> str:
        """The address of a database on the network, with the password in it."""
        return f"postgresql://{self.user}:{password or self.password}@127.0.0.1:{self.port}/{name}"

    def control(self, *words: str) -> None:
        """`pg_ctl` with these words: start, stop, restart."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", *words)

    def run(self, program: str, *words: str) -> None:
        """A program of PostgreSQL as the owner."""
        command, user = [str(self.programs / program), *words], self.owner if os.geteuid() == 0 else None
        subprocess.run(
            command, user=user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL with no database of ours."""
    psycopg = pytest.importorskip("psycopg", reason="needs the driver: pip install 'segsweep[cluster]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    initdb = found[-1] if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("no PostgreSQL is installed (initdb)")
    names = {known.pw_name for known in pwd.getpwall()}
    owner = getpass.getuser() if os.geteuid() else next(name for name in ("postgres", "nobody") if name in names)
    # A short path, which a socket needs, that another user may reach.
    folder = Path(tempfile.mkdtemp(prefix="segsweep-pg-"))
    shutil.chown(folder, owner)
    folder.chmod(0o755)
    server = Postgres(folder=folder, programs=Path(initdb).parent, port=_free_port(), owner=owner)
    words = ("--auth-local=peer", "--auth-host=scram-sha-256", "-U", getpass.getuser(), "--no-sync", "-E", "UTF8")
    try:
        server.run("initdb", "-D", str(folder / "data"), *words)
        with (folder / "data" / "postgresql.conf").open("a") as stream:
            stream.write(f"port = {server.port}\nunix_socket_directories = '{folder}'\nfsync = off\n")
            stream.write("listen_addresses = '127.0.0.1'\nmax_connections = 60\nshared_buffers = 16MB\n")
        server.control("start")
        with psycopg.connect(server.socket("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {server.user} LOGIN PASSWORD '{server.password}'".encode())
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.control("stop", "-m", "immediate")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def phantom_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw phantom scans: sixteen cases."""
    from segsweep import recipes  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("phantom") / "raw"
    recipes.load("datasets", name="phantom").make(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def phantom_store(phantom_raw: Path, cluster: None) -> Path:  # noqa: ARG001
    """The phantom as a store; tests that change it copy it first."""
    from segsweep.data.conversion import convert  # noqa: PLC0415

    folder = phantom_raw.parent / "store"
    convert("phantom", raw=phantom_raw, store=folder)
    return folder


@pytest.fixture
def tiny_store(tmp_path: Path) -> Callable[..., Path]:
    """Makes a store without Ray from label arrays (z, y, x): `tiny_store("a", labels=LabelSet, cases={id: array}, ignore=9)`.

    Value i of a label stands for the structure i - 1, all of which are annotated; images are noise, 25 above it inside structures.
    """
    from segsweep.data.building import build_case  # noqa: PLC0415
    from segsweep.data.case import CaseSource, LabelFile  # noqa: PLC0415
    from segsweep.data.geometry import Geometry  # noqa: PLC0415
    from segsweep.data.index import INDEX, make_index  # noqa: PLC0415
    from segsweep.data.manifest import seal  # noqa: PLC0415
    from segsweep.data.structures import LabelSet  # noqa: PLC0415
    from segsweep.inference.writers import write_image, write_label_map  # noqa: PLC0415

    def make(
        name: str,
        *,
        labels: LabelSet,
        cases: Mapping[str, Any],
        ignore: int | None = None,
        channels: tuple[str, ...] = ("CT",),
        dataset: str = "",
    ) -> Path:
        raw, store = tmp_path / f"raw-{name}", tmp_path / name
        records = []
        for number, (case_id, label) in enumerate(cases.items()):
            label = np.asarray(label, dtype=np.uint8)
            grid = Geometry(
                shape=label.shape, spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=tuple(np.eye(3).ravel())
            )
            image = np.random.default_rng(number).integers(-80, 60, label.shape) + 25 * (label > 0)
            images = tuple(raw / f"{case_id}_{index:04d}.nii.gz" for index in range(len(channels)))
            for path in images:
                write_image(image.astype(np.int16), geometry=grid, path=path)
            write_label_map(label, geometry=grid, path=raw / f"{case_id}.nii.gz")
            values = {index: (structure,) for index, structure in enumerate(labels.structures, start=1)}
            file = LabelFile(path=raw / f"{case_id}.nii.gz", values=values, ignore=ignore)
            source = CaseSource(case_id=case_id, images=images, labels=(file,), annotated=labels.structures)
            (store / "cases").mkdir(parents=True, exist_ok=True)
            records.append(build_case(source, labels=labels, folder=store / "cases" / case_id))
        index = make_index(records, dataset=dataset or name, channels=channels, labels=labels)
        (store / INDEX).write_bytes(seal({**index, "digest": f"digest of {name}"}))
        return store

    return make


@pytest.fixture(scope="session")
def write_patient() -> Callable[..., Path]:
    """write_patient(folder, patient=…) puts a CT of six slices of 12 x 10 voxels (3 x 2 x 1.5 mm) into folder/CT.

    `rois` maps names to boxes of voxels (z, y, x), drawn in the returned RTSTRUCT folder/rs.dcm; `series` and `frame` tell series
    and frames of reference of a patient apart.
    """
    return _write_patient


def _write_patient(
    folder: Path,
    *,
    rois: Mapping[str, tuple[slice, slice, slice]],
    patient: str = "P1",
    series: str = "1",
    frame: str = "1",
    modality: Literal["CT", "MR"] = "CT",
) -> Path:
    from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid  # noqa: PLC0415

    kind = CTImageStorage if modality == "CT" else MRImageStorage
    uids = {
        "PatientID": patient,
        "StudyInstanceUID": generate_uid(entropy_srcs=[patient]),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=[patient, "frame", frame]),
    }
    series_uid = generate_uid(entropy_srcs=[patient, series])
    sops = [generate_uid(entropy_srcs=[patient, series, str(number)]) for number in range(6)]
    voxels = np.random.default_rng(len(patient + series)).integers(0, 3000, size=(6, 12, 10), dtype=np.uint16)
    (folder / "CT").mkdir(parents=True, exist_ok=True)
    for number, sop in enumerate(sops):
        item = _dicom(kind, sop=sop, **uids, Modality=modality, SeriesInstanceUID=series_uid, InstanceNumber=number + 1)
        item.Rows, item.Columns, item.PixelSpacing, item.SliceThickness = 12, 10, [2.0, 1.5], 3.0
        item.ImagePositionPatient, item.ImageOrientationPatient = [5.0, -7.0, 100 + 3.0 * number], [1, 0, 0, 0, 1, 0]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.RescaleSlope, item.RescaleIntercept, item.PixelData = 1, -1024, voxels[number].tobytes()
        item.save_as(folder / "CT" / f"slice_{series}_{5 - number}.dcm", enforce_file_format=True)
    return _write_rtstruct(folder / "rs.dcm", rois=rois, uids=uids, series_uid=series_uid, sops=sops, kind=kind)


@pytest.fixture(scope="session")
def write_series() -> Callable[..., Path]:
    """write_series(folder, voxels=…) puts HU values (z, y, x) as a CT series into folder, its files in no order of position.

    `row` and `column` are ImageOrientationPatient, z runs along their cross product from (-31, 12.5, 104); `spacing` in mm is (z, y, x).
    `values` are further elements of all files.
    """
    return _write_series


def _write_series(
    folder: Path,
    *,
    voxels: np.ndarray,
    row: Sequence[float] = (1, 0, 0),
    column: Sequence[float] = (0, 1, 0),
    spacing: Sequence[float] = (3.0, 0.8, 0.7),
    patient: str = "P1",
    values: Mapping[str, object] | None = None,
) -> Path:
    from pydicom.uid import CTImageStorage, generate_uid  # noqa: PLC0415

    uids = {
        "PatientID": patient,
        "StudyInstanceUID": generate_uid(entropy_srcs=[patient, "study"]),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=[patient, "frame"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=[patient, str(folder)]),
    }
    normal = np.cross(row, column)
    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(voxels):
        sop = generate_uid(entropy_srcs=[patient, str(folder), str(k)])
        item = _dicom(CTImageStorage, sop=sop, **uids, Modality="CT", InstanceNumber=k + 1)
        item.Rows, item.Columns = plane.shape
        item.PixelSpacing, item.SliceThickness = list(spacing[1:]), 1.25
        position = np.array([-31.0, 12.5, 104.0]) + k * spacing[0] * normal
        item.ImagePositionPatient = [float(value) for value in position.round(6)]
        item.ImageOrientationPatient = [float(value) for value in (*row, *column)]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.PixelData = (plane + 1024).astype("<u2").tobytes()
        for keyword, value in (values or {}).items():
            setattr(item, keyword, value)
        item.save_as(folder / f"{(k * 3) % 7}{k:03d}.dcm", enforce_file_format=True)
    return folder


def _write_rtstruct(
    path: Path,
    *,
    rois: Mapping[str, tuple[slice, slice, slice]],
    uids: Mapping[str, str],
    series_uid: str,
    sops: Sequence[str],
    kind: str,
) -> Path:
    from pydicom.uid import RTStructureSetStorage, generate_uid  # noqa: PLC0415

    if not rois:
        return path
    images = [_item(ReferencedSOPClassUID=kind, ReferencedSOPInstanceUID=sop) for sop in sops]
    drawn_on = _item(SeriesInstanceUID=series_uid, ContourImageSequence=images)
    study = _item(ReferencedSOPInstanceUID=uids["StudyInstanceUID"], RTReferencedSeriesSequence=[drawn_on])
    frame = _item(FrameOfReferenceUID=uids["FrameOfReferenceUID"], RTReferencedStudySequence=[study])
    item = _dicom(RTStructureSetStorage, sop=generate_uid(), Modality="RTSTRUCT", SeriesInstanceUID=generate_uid())
    item.PatientID, item.StudyInstanceUID = uids["PatientID"], uids["StudyInstanceUID"]
    item.StructureSetLabel, item.ReferencedFrameOfReferenceSequence = "plan", [frame]
    item.StructureSetROISequence, item.ROIContourSequence = [], []
    for number, (name, (z, y, x)) in enumerate(rois.items(), start=1):
        item.StructureSetROISequence.append(
            _item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=uids["FrameOfReferenceUID"])
        )
        # Edges of voxels, not centres: the box holds exactly the voxels of the slices.
        low, high = (
            (5.0 + 1.5 * (x.start - 0.5), -7.0 + 2.0 * (y.start - 0.5)),
            (5.0 + 1.5 * (x.stop - 0.5), -7.0 + 2.0 * (y.stop - 0.5)),
        )
        corners = (low, (high[0], low[1]), high, (low[0], high[1]))
        contours = [
            _item(
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=4,
                ContourData=[value for corner in corners for value in (*corner, 100 + 3.0 * plane)],
                ContourImageSequence=[images[plane]],
            )
            for plane in range(z.start, z.stop)
        ]
        item.ROIContourSequence.append(_item(ReferencedROINumber=number, ContourSequence=contours))
    item.save_as(path, enforce_file_format=True)
    return path


def _dicom(kind: str, *, sop: str, **values: object) -> "Dataset":
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415
    from pydicom.uid import UID, ExplicitVRLittleEndian  # noqa: PLC0415

    item = _item(SOPClassUID=kind, SOPInstanceUID=sop, **values)
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item.file_meta.MediaStorageSOPClassUID, item.file_meta.MediaStorageSOPInstanceUID = UID(kind), UID(sop)
    return item


def _item(**values: object) -> "Dataset":
    from pydicom.dataset import Dataset  # noqa: PLC0415

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def make_tiny(raw: Path, *, num_cases: int = 2) -> Path:
    """Scans of about 12 x 20 x 18 voxels in the openKBP layout: noise with a box for each structure, of unlike spacing."""
    import numpy as np  # noqa: PLC0415

    from segsweep import recipes  # noqa: PLC0415
    from segsweep.data.geometry import Geometry  # noqa: PLC0415
    from segsweep.inference.writers import write_image, write_label_map  # noqa: PLC0415

    structures = recipes.load("datasets", name="openkbp").LABELS.structures
    for number in range(num_cases):
        label = np.zeros((12, 20, 18 + number % 2), np.uint8)
        for value in range(1, len(structures) + 1):
            label[value : value + 3, 4:12, 2 * value : 2 * value + 3] = value
        image = np.random.default_rng(number).normal(40.0 * label, 30).astype(np.int16)
        geometry = Geometry(
            shape=label.shape,
            spacing=(3.0, 2.0 + number % 2, 2.0 + number % 2),
            origin=(0.0, 0.0, 0.0),
            direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        )
        write_image(image, geometry=geometry, path=raw / "images" / f"okbp_{number:03d}.nii.gz")
        write_label_map(label, geometry=geometry, path=raw / "labels" / f"okbp_{number:03d}.nii.gz")
    cases = [{"id": f"okbp_{number:03d}", "upstream_split": "train"} for number in range(num_cases)]
    labels = {name: value for value, name in enumerate(structures, start=1)}
    (raw / "cases.json").write_text(json.dumps({"labels": labels, "cases": cases}))
    return raw


@pytest.fixture
def okbp_raw(tmp_path: Path) -> Path:
    """Two tiny scans in the openKBP layout, for tests that convert again and again or change what they convert."""
    return make_tiny(tmp_path / "raw")


@pytest.fixture(scope="session")
def okbp_store(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Path:  # noqa: ARG001
    """The same two scans as a store, beside its folder `raw`; tests that change it copy it first."""
    from segsweep.data.conversion import convert  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("tiny")
    convert("openkbp", raw=make_tiny(folder / "raw"), store=folder / "store")
    return folder / "store"
