"""Which cases of a store a model never learned from: only on these do its scores say how good it is."""

from segsweep.data.store import Store
from segsweep.run import Fold


def out_of_fold(store: Store, *, fold: Fold) -> tuple[str, ...]:
    """Annotated cases, sorted, that a model of this fold was not trained on: the validation split's and those that the fold held out.

    A model of fold "all" has the validation split's alone. Raises StoreError when there is no such fold.
    """
    validation = (case_id for case_id in store.held_out("validation") if store.cases[case_id].annotated)
    return tuple(sorted({*validation, *store.validation(fold)}))
