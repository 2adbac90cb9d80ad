"""Verbs that look at scans: predict, evaluate."""
# ruff: noqa: PLC0415

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from segsweep import recipes
from segsweep.cli.app import app, here
from segsweep.terminal import bars, complain, console, counted, say
from segsweep.workspace import current_workspace


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered model's address, or a model folder.")],
    scans: Annotated[str, typer.Argument(metavar="SCANS", help="A scan, a folder of scans, or a store.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", callback=here, help="Folder for the label maps.")],
    split: Annotated[str, typer.Option(help="Of a store: train, validation or test.")] = "validation",
    mirror: Annotated[
        str | None,
        typer.Option(help="Average over flips of these axes (zyx, zy, x), or none.", show_default="as the method says"),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Of a model of joined datasets: whose structures.")] = "",
    kind: Annotated[str, typer.Option("--format", help="Of the results; the names are above.")] = "nii.gz",
    max_memory: Annotated[
        str | None,
        typer.Option(help="Main memory for all of it, such as 8GB.", show_default="80 % of what is available"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16.", show_default="as trained on a GPU, else float32"),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Keep CASE.probabilities.zarr too, in 8 bits, on the model's grid.")
    ] = False,
) -> None:
    """Segment scans with a model or an ensemble.

    MODEL is models:/NAME/VERSION, models:/NAME@ALIAS or models:/NAME (newest).
    Scans are NIfTI, NRRD or MetaImage, in HU: CASE.nii.gz, or one file a channel
    CASE_0000.nii.gz, CASE_0001.nii.gz, ... Label maps come back as CASE.nii.gz
    on each scan's own grid; labels.json says what their values mean, and
    performance.csv what each scan took. A scan that does not fit into
    --max-memory is refused before it is begun, and the others go on.
    A folder without such files is searched for DICOM series, in all folders
    below: one case each, named by its folder, or by a pseudonym where the
    folder's name tells who the patient is.

    Other results by --format:
      nrrd, mha        label maps too
      masks            a folder a case, CASE/STRUCTURE.nii.gz
      seg.nrrd         CASE.seg.nrrd, named segments for 3D Slicer
      segrap2023_oar   the challenge's own 4D CASE.mha: 45 organs, or with
      segrap2023_gtv   this one the 2 tumour volumes
      dicom-seg        of a DICOM series: CASE.seg.dcm, or with
      rtstruct         this one CASE.rtstruct.dcm; both name the patient

    Examples:
      segsweep predict models:/openkbp-unet@candidate scans/ predictions/
      segsweep predict models:/openkbp-ensemble stores/openkbp predictions/
      segsweep predict models:/openkbp-unet export/patients predictions/
    """
    from segsweep.inference.budget import resources
    from segsweep.inference.prediction import predict as run
    from segsweep.inference.scans import SeriesCase, find_scans
    from segsweep.models.ensemble import load_predictor

    allowed = resources(max_memory=max_memory, precision=precision)
    predictor = load_predictor(model, workspace=current_workspace())
    if dataset:
        predictor = predictor.only(dataset)
    cases = find_scans(scans, channels=predictor.table_task.channels, split=split)
    hidden = [case.case_id for case in cases if isinstance(case, SeriesCase) and case.hidden]
    if hidden:
        # Which folder is whose stays unsaid: what a terminal shows ends up in logs.
        say(
            f"{counted(len(hidden), noun='case')} named by pseudonyms, as the folders' names tell who the patient is; "
            "rename the folders for names of your own"
        )
    with bars() as shown:
        report = shown.pieces("scans")
        done = run(
            cases,
            predictor=predictor,
            out=out,
            mirror=mirror,
            kind=kind,
            resources=allowed,
            probabilities=probabilities,
            progress=report,
        )
    say(f"{out}: {counted(len(done.written), noun='scan')} segmented, {len(done.failures)} failed")
    if done.failures:
        complain(*done.failures.values())
        raise typer.Exit(2)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder that `predict` wrote.")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="A store, or a folder of label maps.")],
    profile: Annotated[str, typer.Option(help="Whose rules; the names are above.")] = "plain",
    out: Annotated[Path, typer.Option(callback=here, help="Folder for scores and report.")] = Path("evaluation"),
    labels: Annotated[Path | None, typer.Option(help="JSON file: structure name -> its values in label maps.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Of the NSD in mm, in place of the profile's.")] = None,
    lesions: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Structure to score by lesion too.")] = None,
    compare: Annotated[list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Predictions to set beside.")] = None,
    view: Annotated[str, typer.Option(help="Slice viewer: so many of the worst cases, or CASE,CASE.")] = "3",
) -> None:
    """Score predictions by an organiser's rules, with a report.

    Writes scores.csv (Dice, NSD, distances in mm), summary.json and report.html,
    and lesions.csv where lesions are counted (profiles of tumours, --lesions).
    REFERENCE and PREDICTIONS hold CASE.nii.gz, or one mask a structure:
    CASE/STRUCTURE.nii.gz. Without --labels or a labels.json, ids are the names.
    Exit code 2: a file could not be used; its case counts as missing.
    Profiles: plain, nnunet, segrap2023_oar, segrap2023_gtv, flare22,
    flare24_pancancer.

    Examples:
      segsweep evaluate predictions/ stores/openkbp
      segsweep evaluate out/ labels/ --labels labels.json --profile flare22
    """
    from segsweep.evaluation.evaluation import Options
    from segsweep.evaluation.evaluation import evaluate as run

    others = {name: Path(folder) for name, folder in recipes.parse_pairs(compare or []).items()}
    with bars() as shown:
        options = Options(
            labels=labels,
            tolerance=tolerance,
            lesions=tuple(lesions or ()),
            compare=others,
            view=view,
            progress=shown.pieces("cases"),
        )
        done = run(predictions, reference=reference, profile=profile, out=out, options=options)
    table = Table("structure", "Dice", "NSD", box=None)
    for row in done.rows():
        table.add_row(*map(escape, row))
    console.print(table)
    for remark in done.remarks():
        say(remark)
    say(f"report: {out / 'report.html'}")
    if done.failures:
        complain(*done.failures)
        raise typer.Exit(2)
