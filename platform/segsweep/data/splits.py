"""Folds: five, seeded, cases of one patient together, rare structures spread evenly; or those of a file."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segsweep.errors import InputError, unknown

# nnU-Net's number of folds and seed (v2, training loop).
NUM_FOLDS, SEED = 5, 12345

Folds = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A case to be held out once. An empty `group` stands for the case itself; `structures` are those that it holds."""

    group: str
    structures: Collection[str]


def draw_folds(cases: Mapping[str, Candidate]) -> Folds:
    """Case ids that each fold holds out. Equal inputs give equal folds.

    Patients are shuffled with a fixed seed. The rarest structure is dealt out first: each of its patients goes to the fold that
    holds the fewest of its cases, on a tie to the smallest; then the next rarest, then patients without any.
    """
    patients: dict[str, list[str]] = {}
    for case_id in sorted(cases):
        patients.setdefault(cases[case_id].group or case_id, []).append(case_id)
    names = sorted(patients)
    # In order, as a list would be, but a patient of a hundred thousand is taken out of it at once.
    waiting = dict.fromkeys(names[index] for index in np.random.default_rng(SEED).permutation(len(names)))
    present = {name: Counter(s for case_id in ids for s in cases[case_id].structures) for name, ids in patients.items()}
    frequency = Counter(structure for counts in present.values() for structure in counts)
    held_out: list[list[str]] = [[] for _ in range(NUM_FOLDS)]
    dealt: list[Counter[str]] = [Counter() for _ in range(NUM_FOLDS)]
    for structure in [*sorted(frequency, key=lambda name: (frequency[name], name)), None]:
        for name in [one for one in waiting if structure is None or structure in present[one]]:
            fold = min(range(NUM_FOLDS), key=lambda i: (dealt[i][structure] if structure else 0, len(held_out[i])))
            held_out[fold].extend(patients[name])
            dealt[fold].update(present[name])
            del waiting[name]
    return tuple(tuple(sorted(fold)) for fold in held_out)


def read_folds(path: Path) -> Folds:
    """Folds from a JSON file: a list with the held-out case ids of each fold, or nnU-Net's list of {"train", "val"}.

    Cases that no fold holds out are trained on in every fold. Raises InputError that names a file that holds no folds.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        held_out = [fold["val"] if isinstance(fold, dict) else fold for fold in content]
        folds = tuple(tuple(sorted(str(case_id) for case_id in fold)) for fold in held_out)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected JSON with the held-out case ids of each fold") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a JSON file; check the path") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read as folds ({type(error).__name__}: {error}); expected a list of lists of case ids"
        ) from None
    if not folds or not all(folds):
        raise InputError(f"{path}: holds an empty fold; expected at least one case id in each")
    return folds


def demand_fitting(folds: Folds, *, cases: Mapping[str, Candidate], name: str) -> None:
    """Raises InputError that names the file `name` and the case for an unknown id, a case that is held out twice, and a patient whose
    cases lie on both sides of a fold."""
    for case_id, count in Counter(case_id for fold in folds for case_id in fold).items():
        if case_id not in cases:
            raise InputError(f"{name}: {unknown(case_id, kind='annotated training cases', known=cases)}")
        if count > 1:
            raise InputError(f"{name}: {case_id} is held out {count} times; expected once at most")
    for number, fold in enumerate(folds):
        patients = {cases[case_id].group for case_id in fold} - {""}
        for case_id, case in cases.items():
            if case.group in patients and case_id not in fold:
                raise InputError(
                    f"{name}: fold {number} holds out other cases of {case_id}'s patient but trains on it; put them into one fold"
                )
