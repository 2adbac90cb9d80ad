"""nnU-Net's plain trainer with another number of epochs and of batches in each; `same_budget.py` runs it with nnU-Net's interpreter.

    PEER/bin/python benchmarks/same_budget_nnunet.py EPOCHS ITERATIONS VALIDATION_ITERATIONS OUT.json

Trains fold 0 of dataset 501 on the CPU; OUT.json then holds `ends`, the time at which each epoch was done (seconds since 1970).
"""

import json
import sys
import time
from pathlib import Path

import torch
from nnunetv2.run.run_training import get_trainer_from_args  # type: ignore[import-not-found]

CORES = 2


def main() -> None:
    """Train from nothing, and write when each epoch ended."""
    epochs, iterations, validation_iterations = map(int, sys.argv[1:4])
    torch.set_num_threads(CORES)
    trainer = get_trainer_from_args("501", "3d_fullres", 0, device=torch.device("cpu"))
    trainer.num_epochs = epochs
    trainer.num_iterations_per_epoch = iterations
    trainer.num_val_iterations_per_epoch = validation_iterations
    ends, finish = [], trainer.on_epoch_end

    def on_epoch_end() -> None:
        finish()
        ends.append(time.time())

    trainer.on_epoch_end = on_epoch_end
    trainer.run_training()
    Path(sys.argv[4]).write_text(json.dumps({"ends": ends}))


if __name__ == "__main__":
    main()
