"""Scores of registered models on whole scans, kept in the workspace: no scan is segmented twice by the same model.

One sealed JSON file a model and store, which says of what they are scores: a file of other digests, or a damaged one, is not used.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from segsweep.data import storage
from segsweep.data.manifest import seal, unseal
from segsweep.data.mirror import shared
from segsweep.data.store import Store
from segsweep.errors import StoreError
from segsweep.evaluation.measure import DICE, NSD, Measure
from segsweep.evaluation.whole_scans import Scores, score_case
from segsweep.models.catalogue import Registered
from segsweep.models.ensemble import load_predictor
from segsweep.workspace import Workspace


def scan_scores(
    model: Registered,
    *,
    store: Store,
    case_ids: Sequence[str],
    workspace: Workspace,
    measure: Measure,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Dice or NSD of a model on cases of a store; those that are not kept yet are segmented, and kept one by one.

    Raises ModelError when the model is damaged. `progress` is told (scans done, scans to segment).
    """
    path = file_of(model, store=store, workspace=workspace)
    uri = shared(workspace).at(path).uri
    kept = _read(uri, model=model, store=store)
    known = kept.setdefault(measure.key, {})
    nsd_tolerance = measure.nsd_tolerance if measure.metric == NSD else 0.0
    missing = [case_id for case_id in case_ids if case_id not in known]
    if missing:
        predictor = load_predictor(model.uri, workspace=workspace)
        path.parent.mkdir(parents=True, exist_ok=True)
        for done, case_id in enumerate(missing, start=1):
            found = score_case(predictor, store=store, case_id=case_id, nsd_tolerance=nsd_tolerance)
            kept.setdefault(DICE, {})[case_id] = found.dice
            if found.nsd:
                known[case_id] = found.nsd
            storage.write_bytes(uri, seal({"model": model.digest, "data": store.digest, **kept}))
            if progress is not None:
                progress(done, len(missing))
    return {case_id: known[case_id] for case_id in case_ids}


def file_of(model: Registered, *, store: Store, workspace: Workspace) -> Path:
    """Where the scores of a model on a store are kept, whether there are any or not; in a bucket under the same name."""
    name = hashlib.sha256(json.dumps([model.digest, store.digest]).encode()).hexdigest()
    return workspace.scores / f"{name[:32]}.json"


def _read(uri: str, *, model: Registered, store: Store) -> dict[str, Scores]:
    """What is kept of exactly this model on exactly this store, by the measure's key."""
    try:
        body = unseal(storage.read_bytes(uri), name=uri.rpartition("/")[2]).body
    except (FileNotFoundError, StoreError):
        return {}
    if (body.get("model"), body.get("data")) != (model.digest, store.digest):
        return {}
    return {key: dict(scores) for key, scores in body.items() if key not in ("model", "data")}
