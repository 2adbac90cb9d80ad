"""The recipes of a toy sweep: a tiny U-Net whose first worker writes down in `trained.txt` when it begins, and when each epoch does."""

import textwrap
from pathlib import Path

# One step an epoch; a loss that is asked for its value begins one.
TRAINABLE = """
    import os
    import time
    from pathlib import Path

    from segsweep import recipes
    from segsweep.learning.losses import build_loss
    from segsweep.learning.setting import rank

    Params, build = recipes.load("trainables", name="unet").Params, recipes.load("trainables", name="unet").build


    def loss(params, task):
        usual = build_loss(params.loss, task=task, batch_dice=params.batch_dice)

        def write(what):
            if rank() == 0:
                with (Path(os.environ["SEGSWEEP_PROJECT"]) / "trained.txt").open("a") as stream:
                    stream.write(f"{params.foreground!r} {what} {time.time()}\\n")

        def noted(*values, **options):
            write("epoch")
            time.sleep(PAUSE)
            return usual(*values, **options)

        write("launch")
        return noted
"""
SPACE = """
    TRAINABLE = "noted"
    PARAMS = {
        "epochs": EPOCHS, "iterations": 1, "validation_iterations": 1, "patch_size": [16, 32, 32], "batch_size": 2, "features": 4,
        "levels": 3,
    }


    def space(trial, plan):
        return {"foreground": trial.suggest_float("foreground", 0.2, 0.8)}


    def first(plan):
        return [{"foreground": 0.5}]
"""


def write_project(folder: Path, *, epochs: int, pause: float = 0.0) -> Path:
    """A user's own project with the trainable `noted` and the space `tiny`. An epoch takes `pause` seconds longer than it must."""
    for kind, name, text in (("trainables", "noted", TRAINABLE), ("search_spaces", "tiny", SPACE)):
        (folder / kind).mkdir(parents=True)
        told = textwrap.dedent(text).replace("EPOCHS", str(epochs)).replace("PAUSE", str(pause))
        (folder / kind / f"{name}.py").write_text(f'"""Toy."""\n{told}')
    return folder
