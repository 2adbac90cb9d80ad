"""Verbs that make stores and look at them: demo, convert, check."""
# ruff: noqa: PLC0415

import shlex
from pathlib import Path
from typing import Annotated

import typer

from segsweep.cli.app import StorePath, app, here
from segsweep.terminal import bars, complain, counted, say
from segsweep.workspace import current_workspace


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", callback=here, help="Where everything goes.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the phantom.")] = 0,
) -> None:
    """Walk the whole way on a phantom, in about 5 minutes on 2 cores.

    It makes scans, converts, tunes, registers, builds an ensemble, predicts and
    evaluates. Run it again to go on where it was interrupted.

    Example:
      segsweep demo /tmp/demo
    """
    from segsweep.demo import walk

    walk(folder, seed=seed)


@app.command()
def convert(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A recipe of `segsweep list datasets`.")],
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="Folder with the scans, laid out as the recipe says.")],
    store: Annotated[
        str | None, typer.Option(help="The store, a folder or s3://BUCKET/FOLDER. Default: WORKSPACE/stores/DATASET.")
    ] = None,
    planner: Annotated[str, typer.Option(help="plain, resenc_m, resenc_l or resenc_xl: nnU-Net's networks.")] = "plain",
    folds: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON file: held-out case ids of each fold.")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Verify every byte of the cases that are kept.")] = False,
) -> None:
    """Convert raw scans into a store.

    Then plans the training (spacing in mm, patch in voxels) and looks for bad
    cases. Run it again to go on, or to add cases: finished ones are kept,
    damaged ones (those that --deep alone can find, with --deep) written again.
    Exit code 2 when cases failed; the last lines name them. --folds may be
    nnU-Net's splits_final.json; without it, 5 folds are drawn.

    Examples:
      segsweep list openkbp                        the layout that it expects
      segsweep convert openkbp data/openkbp --store stores/openkbp
    """
    from segsweep.data.conversion import ConversionOptions
    from segsweep.data.conversion import convert as run
    from segsweep.data.dataset import describe
    from segsweep.sweeps.cluster import connect, disconnect

    described = describe(dataset, raw=raw)  # refuses a wrong layout before Ray starts
    place = current_workspace()
    target = store or f"{place.uri or place.root}/stores/{dataset}"
    options = ConversionOptions(depth="deep" if deep else "quick", planner=planner, folds=folds)
    joined = connect()
    with bars() as shown:
        done = run(described, raw=raw, store=target, options=options, progress=shown.count)
    if joined:
        disconnect()  # the report needs no workers, and their memory
    plan = done.store.plan
    say(
        f"{target}: {counted(len(done.written), noun='case')} written, {len(done.kept)} kept, {len(done.failures)} failed"
    )
    if done.gone:
        names = ", ".join(done.gone[:3]) + (", ..." if len(done.gone) > 3 else "")
        say(
            f"{counted(len(done.gone), noun='case')} left out, which the store held and {raw} does not: {names}; "
            "a store is what one folder holds: put them back there and convert again"
        )
    share = f"{done.num_bytes / done.raw_bytes:.1f} of the raw voxels"
    say(f"{counted(len(done.store.cases), noun='case')}, {done.num_bytes / 1e6:.0f} MB ({share}), {done.seconds:.0f} s")
    spacing = " x ".join(f"{mm:.3g}" for mm in plan.spacing)
    say(f"plan: spacing {spacing} mm, patch {plan.patch_size} voxels (z, y, x), batch {plan.batch_size}")
    _quality(target)
    quoted = shlex.quote(str(target))
    if done.store.candidates:
        say(f"next: segsweep train unet {quoted} preset=small\n      segsweep tune default {quoted} preset=small")
    else:
        say("no training case has labels: nothing can be learnt from this store alone")
    if done.failures:
        complain(*done.failures.values())
        raise typer.Exit(2)


@app.command()
def check(
    store: StorePath,
    deep: Annotated[bool, typer.Option("--deep", help="First verify every byte of the store.")] = False,
) -> None:
    """Look for bad cases in a store; exit code 1 when there are errors.

    Writes quality.html, one page for people, and quality.json into the store.
    With --deep, damage on disk is looked for first: each error names case, array
    and shard. `segsweep convert ... --deep` writes damaged cases again, alone.

    Examples:
      segsweep check stores/openkbp
      segsweep check stores/openkbp --deep
    """
    if (deep and _damaged(store)) or _quality(store):
        raise typer.Exit(1)


def _damaged(store: str) -> bool:
    """Name all damage on disk; whether there are errors."""
    from segsweep.data.integrity import deep_check

    with bars() as shown:
        found = deep_check(store, progress=shown.pieces("bytes"))
    for damage in found:
        say(f"{damage.severity}: {damage.message}")
    errors = sum(damage.severity == "error" for damage in found)
    say(f"deep: {counted(errors, noun='error')}, {counted(len(found) - errors, noun='note')}")
    return errors > 0


def _quality(store: str) -> bool:
    """Write the quality report; whether it holds errors."""
    from segsweep.data.quality import check as run
    from segsweep.data.quality_report import write
    from segsweep.data.store import open_store

    opened = open_store(store)
    with bars() as shown:
        report = run(opened, progress=shown.pieces("quality"))
    page = write(report, store=opened, folder=opened.uri)
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    say(f"quality: {counted(errors, noun='error')}, {counted(warnings, noun='warning')}; {page}")
    return errors > 0
