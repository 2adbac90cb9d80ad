"""A run before it starts: its recipe, parameters, task and data looked up and checked together, and the memory that it needs."""

import dataclasses
from dataclasses import dataclass

from segsweep.data.fingerprint import patch_and_batch
from segsweep.data.geometry import Size
from segsweep.data.joint import JointStore, open_stores
from segsweep.data.store import Store
from segsweep.errors import RecipeError, ResourceError, StoreError
from segsweep.learning.memory import describe, training_bytes
from segsweep.learning.method import Method, load_method
from segsweep.learning.params import TrainingParams
from segsweep.learning.task import Scans, Task
from segsweep.run import Run


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run whose recipe, parameters, task and data were checked together."""

    run: Run
    store: Store
    method: Method
    params: TrainingParams
    task: Task


def prepare(run: Run, *, opened: Store | None = None) -> Prepared:
    """Look everything up; what neither run, preset nor recipe says about patch, batch and head is the plan's (or the `planner`'s).

    A preset's patch is no larger than the median scan needs. `opened` is the run's store where the caller has it: a long index takes
    seconds to read. Raises RecipeError, StoreError or ResourceError in one sentence.
    """
    store, method = opened or open_stores(run.store), load_method(run.trainable)
    params = _filled(method, store=store, run=run)
    if not any(store.cases[case_id].annotated for case_id in store.training(run.fold)):
        raise StoreError(
            f"{store.uri}: fold {run.fold} has no annotated training cases; expected some of split 'train' with labels"
        )
    task = Task(
        channels=store.channels,
        table=store.table,
        head=params.head or store.plan.head,
        patch_size=params.patch_size or store.plan.patch_size,
        spacing=store.plan.spacing,
        normalisation=store.plan.normalisation,
        own=_own_scans(store),
    )
    task = method.task(params, task=task)
    _demand_channels(method, task=task, params=params)
    return Prepared(run=run, store=store, method=method, params=params, task=task)


def _own_scans(store: Store) -> tuple[Scans, ...]:
    """Those of each joined store, where they are not all alike."""
    if not isinstance(store, JointStore) or store.alike:
        return ()
    return tuple(
        Scans(channels=part.channels, normalisation=store.normalisation[name]) for name, part in store.parts.items()
    )


def _demand_channels(method: Method, *, task: Task, params: TrainingParams) -> None:
    if len(task.widths) == 1:
        return
    found = " and ".join(map(str, task.widths))
    if not method.any_channels:
        raise RecipeError(
            f"the joined stores have {found} channels, and {method.name} takes one number of them; "
            "join stores of the same kind of scans, or train uniseg"
        )
    if params.sampling != "quota":
        raise RecipeError(
            f"sampling={params.sampling} mixes datasets in a batch, and the joined stores have {found} channels; choose sampling=quota"
        )


def _filled(method: Method, *, store: Store, run: Run) -> TrainingParams:
    """The run's parameters, with what is open taken from the plan."""
    preset = {key: value for key, value in method.preset(run.params.get("preset")).items() if key not in run.params}
    own = (
        {"patch_size": _covering(store.plan.median_shape, largest=preset["patch_size"], by=method.divisor)}
        if "patch_size" in preset
        else {}
    )
    params = method.params({**run.params, **own})
    plan = {"patch_size": store.plan.patch_size, "batch_size": store.plan.batch_size, "head": store.plan.head}
    planner, planned = getattr(params, "planner", ""), set[str]()
    if planner:
        plan["patch_size"], plan["batch_size"] = patch_and_batch(store, planner=planner)
        planned = {"patch_size", "batch_size"} - run.params.keys()
    taken = {name: value for name, value in plan.items() if getattr(params, name) is None or name in planned}
    return dataclasses.replace(params, **taken)


def _covering(shape: Size, *, largest: Size, by: Size) -> list[int]:
    """The smallest multiples of `by` voxels (z, y, x) that cover a scan, or the largest patch allowed."""
    return [min(most, -(-n // step) * step) for n, most, step in zip(shape, largest, by, strict=True)]


def needed_memory(prepared: Prepared, *, gpu: bool = False) -> int:
    """Estimated bytes of a worker's training step, on a `gpu` or a CPU. Raises RecipeError when the patch fits no network."""
    params, task, store = prepared.params, prepared.task, prepared.store
    model = prepared.method.build(params, task=task)
    mixed = any(stage.unlabelled for stage in prepared.method.stages(params)) and not all(
        store.cases[case_id].annotated for case_id in store.training(prepared.run.fold)
    )
    try:
        return training_bytes(
            model,
            patch_size=task.patch_size,
            channels=len(task.channels),
            batch_size=(params.batch_size or 1) * (2 if mixed else 1),
            recompute=params.recompute,
            precision=params.precision,
            gpu=gpu,
        )
    except RuntimeError:
        raise RecipeError(
            f"patch_size={task.patch_size} cannot be halved as often as {prepared.run.trainable} does; "
            "choose multiples of 16 or 32 voxels (z, y, x), or fewer levels"
        ) from None


def demand_memory(prepared: Prepared, *, available: int, gpu: bool = False) -> None:
    """Raise ResourceError when a worker's training step cannot fit into `available` bytes, of a `gpu` or of the main memory.

    Raises RecipeError when the patch fits no network.
    """
    needed, batch_size = needed_memory(prepared, gpu=gpu), prepared.params.batch_size or 1
    if needed > available:
        raise ResourceError(
            f"patch_size={prepared.task.patch_size} with batch_size={batch_size} needs about {describe(needed)} a worker, "
            f"{describe(available)} are available; choose a smaller patch or batch, or fewer features"
        )
