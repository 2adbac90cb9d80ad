"""segsweep: sweep, compare, register and ensemble 3D CT segmentation methods on Ray.

The functions here are the verbs of the command line. Each is imported when it is first used, so `import segsweep` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segsweep.data.conversion import convert
    from segsweep.data.joint import open_stores as open_store
    from segsweep.data.quality import check
    from segsweep.errors import SegsweepError
    from segsweep.evaluation.evaluation import evaluate
    from segsweep.inference.prediction import predict
    from segsweep.inference.scans import find_scans
    from segsweep.models.ensemble import build as ensemble
    from segsweep.models.ensemble import load_predictor
    from segsweep.models.importing import import_nnunet
    from segsweep.models.postprocessing import postprocess
    from segsweep.models.promotion import promote
    from segsweep.models.tracking import Tracker
    from segsweep.run import Run
    from segsweep.sweeps.cluster import connect
    from segsweep.sweeps.single import train
    from segsweep.sweeps.trial import as_trainable
    from segsweep.sweeps.tuning import tune
    from segsweep.sweeps.tuning_options import SweepOptions
    from segsweep.workspace import current_workspace

__all__ = [
    "Run",
    "SegsweepError",
    "SweepOptions",
    "Tracker",
    "as_trainable",
    "check",
    "connect",
    "convert",
    "current_workspace",
    "ensemble",
    "evaluate",
    "find_scans",
    "import_nnunet",
    "load_predictor",
    "open_store",
    "postprocess",
    "predict",
    "promote",
    "train",
    "tune",
]

# Where each name comes from: module, and its name there.
_ORIGINS = {
    "Run": ("run", "Run"),
    "SegsweepError": ("errors", "SegsweepError"),
    "SweepOptions": ("sweeps.tuning_options", "SweepOptions"),
    "Tracker": ("models.tracking", "Tracker"),
    "as_trainable": ("sweeps.trial", "as_trainable"),
    "check": ("data.quality", "check"),
    "connect": ("sweeps.cluster", "connect"),
    "convert": ("data.conversion", "convert"),
    "current_workspace": ("workspace", "current_workspace"),
    "ensemble": ("models.ensemble", "build"),
    "evaluate": ("evaluation.evaluation", "evaluate"),
    "find_scans": ("inference.scans", "find_scans"),
    "import_nnunet": ("models.importing", "import_nnunet"),
    "load_predictor": ("models.ensemble", "load_predictor"),
    "open_store": ("data.joint", "open_stores"),
    "postprocess": ("models.postprocessing", "postprocess"),
    "predict": ("inference.prediction", "predict"),
    "promote": ("models.promotion", "promote"),
    "train": ("sweeps.single", "train"),
    "tune": ("sweeps.tuning", "tune"),
}


def __getattr__(name: str) -> Any:
    """A name of the facade, imported now (PEP 562)."""
    if name not in _ORIGINS:
        raise AttributeError(f"module 'segsweep' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module, original = _ORIGINS[name]
    value = getattr(import_module(f"segsweep.{module}"), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
