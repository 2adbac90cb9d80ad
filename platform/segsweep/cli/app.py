"""What all verbs share: the application that they belong to, and the arguments that several of them take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from segsweep import recipes
from segsweep.errors import InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Not Path, which would take a slash from s3://.
StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Folder or s3:// address of a converted dataset.")]
StorePaths = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="Folder or s3:// address of a converted dataset; several, joined by commas, are one."
    ),
]
Values = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys as above; lists as 96,96,96.")]


@app.callback()
def about() -> None:
    """Sweep, compare, register and ensemble 3D CT segmentation methods on Ray.

    New here? See the whole walk on a phantom, then do the same with your scans:
      segsweep demo
      segsweep convert openkbp data/openkbp --store stores/openkbp
      segsweep tune default stores/openkbp trials=20 preset=small
      segsweep ensemble stores/openkbp
      segsweep predict models:/openkbp-ensemble scans/ predictions/

    Environment:
      SEGSWEEP_WORKSPACE   folder for runs, models and sweeps   (./workspace)
                           or s3://BUCKET/FOLDER, for nodes without a shared disk
      SEGSWEEP_PROJECT     folder that holds your own recipes          (none)
      RAY_ADDRESS          Ray cluster to work on              (this machine)
      SEGSWEEP_CACHE       folder for copies of grids                  (none)
      SEGSWEEP_CACHE_GB    how large these copies may grow together      (50)
      SEGSWEEP_CASE_KEY    names DICOM cases            (~/.config/segsweep/)
      MLFLOW_TRACKING_URI  MLflow's server                 (a workspace file)
      SEGSWEEP_STUDIES     Optuna's database               (a workspace file)
      AWS_ENDPOINT_URL     object storage of s3:// addresses      (Amazon S3)
      TMPDIR               folder for what is soon deleted             (/tmp)
    """


def here(folder: Path) -> Path:
    """A folder on this machine. Raises InputError for an s3:// address: as a path it would be a new folder `s3:`."""
    if str(folder).startswith("s3:/"):
        address = str(folder).replace(":/", "://", 1)
        raise InputError(f"{address}: results are written on this machine alone; expected a folder; copy it afterwards")
    return folder


def parsed(values: dict[str, str]) -> dict[str, Any]:
    """Values of KEY=VALUE words as Python has them."""
    return {key: recipes.parse_value(value) for key, value in values.items()}
