"""One driver at a time for a sweep or a run, on whatever machine: a lock on its folder, and a lease where that lies in a bucket."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from segsweep.data.lock import held, leased
from segsweep.data.mirror import Mirror
from segsweep.data.storage import is_remote
from segsweep.errors import ResourceError

# In a folder in a bucket: who drives it. Hidden, so that it travels with nobody's copy.
LEASE = ".driver.json"


@contextmanager
def alone(place: Mirror, *, what: str, advice: str) -> Iterator[None]:
    """Hold a folder for this driver. Raises ResourceError, which ends in the advice, while another one works on `what` lies there."""
    folder = place.folder
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{what} {folder.name!r} runs in another process, which may have outlived its terminal"
    with ExitStack() as stack:
        stack.enter_context(held(folder, otherwise=ResourceError(f"{busy}; {advice}")))
        if is_remote(place.uri):
            busy = f"{what} {folder.name!r} runs in another process or on another machine, or did two minutes ago"
            stack.enter_context(leased(f"{place.uri}/{LEASE}", otherwise=ResourceError(f"{busy}; {advice}")))
        yield
