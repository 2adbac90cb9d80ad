"""The command line: verbs that read their arguments, call the function of the same name, and say what came of it.

Heavy rooms are imported inside the verbs, so that `segsweep --help` answers at once. Docstrings of verbs are the help pages: their
first sentence is the verb's line in the list, the other lines are shown as they stand (at most 78 wide).
"""

from segsweep.cli.app import about, app
from segsweep.cli.entry import main

# isort: off
# The help lists the verbs in the order in which they are imported: that of the work.
from segsweep.cli.stores import check, convert, demo
from segsweep.cli.training import train, tune
from segsweep.cli.choosing import ensemble, postprocess, promote
from segsweep.cli.scans import evaluate, predict
from segsweep.cli.browsing import import_nnunet, list_, server, ui
from segsweep.cli.cluster import cluster
# isort: on

__all__ = [
    "about", "app", "check", "cluster", "convert", "demo", "ensemble", "evaluate", "import_nnunet", "list_", "main", "postprocess",
    "predict", "promote", "server", "train", "tune", "ui",
]  # fmt: skip
