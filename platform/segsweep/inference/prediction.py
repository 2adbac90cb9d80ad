"""Segments scans with a model or an ensemble; every label map lies on its scan's own grid, in the file's own axis order."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from segsweep.data import storage
from segsweep.data.structures import LabelTable
from segsweep.errors import InputError, ModelError, ResourceError, SegsweepError
from segsweep.inference import formats
from segsweep.inference.budget import Resources
from segsweep.inference.joined import demand_dataset
from segsweep.inference.performance import Stopwatch, Usage, record
from segsweep.inference.predictor import Predictor
from segsweep.inference.probability_maps import SUFFIX, ProbabilityMaps
from segsweep.inference.scans import LoadedScan, Segmentable
from segsweep.inference.sliding import flip_sets
from segsweep.learning.prefetch import prefetch

LABELS = "labels.json"
# Of a case that failed: what lies there would be taken for this model's.
STALE = "; its result of an earlier run is still there: delete it unless it is wanted"


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Case ids with a label map now, and why the others have none."""

    written: tuple[str, ...]
    failures: Mapping[str, str] = field(default_factory=dict)


def predict(
    scans: Sequence[Segmentable],
    *,
    predictor: Predictor,
    out: Path,
    mirror: str | None = None,
    dataset: str = "",
    kind: str = formats.DEFAULT,
    resources: Resources | None = None,
    probabilities: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Segment every scan. Afterwards `out` holds each one's files, `labels.json` (structure name -> its values) and `performance.csv`.

    With `probabilities` it also holds each one's `CASE.probabilities.zarr` (see `probability_maps`).
    The next scan is read while the current one is segmented. `kind` names the format of the files: "nii.gz" is one label map
    `CASE.nii.gz`, "masks" a folder `CASE` with a mask a structure.

    Of a model that joins several datasets, `dataset` names the one whose structures are segmented, under its own names; a case of a
    joint store needs none, since it belongs to one.
    A scan that cannot be read or segmented is reported in `failures`, and the others go on; an older label map is replaced, or that of
    a scan that failed is named.
    Raises InputError when `out` holds label maps of another meaning, or one of the scans where a result is to lie. `progress` is told
    (scans done, all scans).
    """
    chosen = formats.find_format(kind)
    predictor = predictor.only(dataset) if dataset else predictor
    table = predictor.table_task.table
    if mirror is not None:
        flip_sets(mirror, mirrored_outputs=None)  # refuses a word that is no choice of axes before any scan is read
    formats.demand_possible(kind, scans=scans, table=table)
    formats.demand_apart((chosen.path(out, case_id=scan.case_id) for scan in scans), scans=scans)
    _demand_same_labels(out, table=table)
    out.mkdir(parents=True, exist_ok=True)
    resources = resources or Resources()
    predictor.prepare()
    written: list[str] = []
    failures: dict[str, str] = {}
    for done, read in enumerate(prefetch(_read, scans, depth=1), start=1):
        case_id, stopwatch = read.case_id, Stopwatch()
        own, maps = replace(resources, stopwatch=stopwatch), ProbabilityMaps() if probabilities else None
        try:
            with Usage() as usage:
                with stopwatch.stage("export"):  # all that is neither resampling nor the network, which stop its clock
                    found = _segmentation(read, predictor=predictor, mirror=mirror, resources=own, maps=maps)
                with stopwatch.stage("write"):
                    if not (out / LABELS).is_file():  # first of all, so that no label map is ever without its meaning
                        storage.write_bytes(out / LABELS, f"{json.dumps(_labels(table), indent=1)}\n".encode())
                    if maps is not None:
                        maps.write(out / f"{case_id}{SUFFIX}", structures=table.labels.structures)
                    chosen.write(found, out)
            record(out, case_id=case_id, seconds={"read": read.seconds, **stopwatch.seconds}, usage=usage)
            written.append(case_id)
        except (SegsweepError, OSError) as error:
            failures[case_id] = str(error)
        except (MemoryError, torch.OutOfMemoryError):
            failures[case_id] = f"{case_id}: the memory does not suffice to segment it; crop the scan"
        if case_id in failures and chosen.path(out, case_id=case_id).exists():
            failures[case_id] += STALE
        if progress is not None:
            progress(done, len(scans))
    return Predicted(written=tuple(written), failures=failures)


def segment_scan(
    scan: Segmentable, *, predictor: Predictor, mirror: str | None = None, resources: Resources | None = None
) -> formats.Segmentation:
    """What the predictor finds in a scan, on the scan's own grid and in its own axis order.

    Raises InputError when it is not known which of the datasets that the predictor joins is asked for.
    """
    return _segmentation(_read(scan), predictor=predictor, mirror=mirror, resources=resources or Resources())


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A scan that was read in so many seconds, or the reason why it was not, which belongs to its own turn."""

    case_id: str
    scan: LoadedScan | Exception
    seconds: float


def _read(scan: Segmentable) -> _Read:
    begun = time.perf_counter()
    try:
        found: LoadedScan | Exception = scan.load()
    except Exception as error:  # raised again in the scan's turn
        found = error
    return _Read(case_id=scan.case_id, scan=found, seconds=time.perf_counter() - begun)


def _segmentation(
    read: _Read, *, predictor: Predictor, mirror: str | None, resources: Resources, maps: ProbabilityMaps | None = None
) -> formats.Segmentation:
    """What is found in a scan. What a model or the machine cannot do is said with the case's name."""
    if isinstance(read.scan, Exception):
        raise read.scan
    loaded = read.scan
    if not loaded.structures:
        demand_dataset(predictor.table_task)
    try:
        label = predictor.segment(
            loaded.image,
            geometry=loaded.geometry,
            mirror=mirror,
            structures=loaded.structures,
            resources=resources,
            maps=maps,
        )
    except (ModelError, ResourceError) as error:
        raise type(error)(f"{read.case_id}: {error}") from None
    return formats.Segmentation(
        case_id=read.case_id,
        label=loaded.source.reorientation.invert(label),
        geometry=loaded.source,
        table=predictor.table_task.table,
        reference=loaded.reference,
    )


def _labels(table: LabelTable) -> dict[str, list[int]]:
    return {name: list(table.values(name)) for name in table.labels.structures}


def _demand_same_labels(out: Path, *, table: LabelTable) -> None:
    path = out / LABELS
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); expected JSON; choose an empty folder") from None
    if found != _labels(table):
        raise InputError(
            f"{path} gives the label values another meaning than the model's; expected {_labels(table)}; choose an empty folder"
        )
