"""How far it goes: a sweep's driver with 2,000 trials on 200 GPUs, and a conversion of 100,000 cases, with nothing trained or resampled.

    python benchmarks/scale.py driver [--trials 2000] [--concurrent 200] [--epochs 100] [--sampler tpe]
    python benchmarks/scale.py suggestions [--trials 2000] [--sampler gp]
    python benchmarks/scale.py placement [--trials 200]
    python benchmarks/scale.py processes [--concurrent 4]
    python benchmarks/scale.py launches
    python benchmarks/scale.py cases [--cases 20000]

Each part prints its figures and writes them to `--json`. MLFLOW_TRACKING_URI and SEGSWEEP_STUDIES may name databases of a server, which
must be empty. CPU seconds count more than seconds where other work runs beside.
"""

import argparse
import tempfile
from pathlib import Path

import scale_cases
import scale_driver
import scale_ray
from scale_cost import Figures

MARKS = (200, 500, 1000, 2000)
PARTS = ("driver", "suggestions", "placement", "processes", "launches", "cases")


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--concurrent", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--points", type=int, default=500, help="of a running trial's curve, for suggestions")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--json", type=Path, default=Path("scale.json"))
    given = parser.parse_args()
    figures = Figures()
    marks = (*(mark for mark in MARKS if mark < given.trials), given.trials)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        match given.part:
            case "driver":
                sweep = scale_driver.Sweep(
                    trials=given.trials, concurrent=given.concurrent, epochs=given.epochs, sampler=given.sampler
                )
                scale_driver.measure(figures, sweep=sweep, marks=marks, folder=folder)
            case "suggestions":
                study = scale_driver.Study(
                    sampler=given.sampler, running=given.concurrent, points=given.points, folder=folder
                )
                scale_driver.suggestions(figures, study=study, marks=marks)
            case "placement":
                scale_ray.placement(figures, trials=given.trials)
            case "processes":
                scale_ray.processes(figures, at_once=given.concurrent)
            case "launches":
                scale_ray.launches(figures, folder=folder)
            case "cases":
                scale_cases.measure(figures, cases=given.cases, folder=folder)
    figures.write(given.json)


if __name__ == "__main__":
    main()
