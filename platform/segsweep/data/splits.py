"""Five folds: seeded, cases of one patient together."""

from collections.abc import Mapping

import numpy as np

# nnU-Net's number of folds and seed (METHODS.md 1.1).
NUM_FOLDS, SEED = 5, 12345


def folds(groups: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Case ids that each fold holds out, from case id -> patient (an empty patient stands for the case itself).

    Patients are shuffled with a fixed seed and each goes to the fold with the fewest cases, so equal inputs give equal folds.
    """
    members: dict[str, list[str]] = {}
    for case_id in sorted(groups):
        members.setdefault(groups[case_id] or case_id, []).append(case_id)
    patients = sorted(members)
    held_out: list[list[str]] = [[] for _ in range(NUM_FOLDS)]
    for index in np.random.default_rng(SEED).permutation(len(patients)):
        min(held_out, key=len).extend(members[patients[index]])
    return tuple(tuple(sorted(fold)) for fold in held_out)
