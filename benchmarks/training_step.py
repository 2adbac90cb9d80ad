"""A training iteration on CPU: the loop's (drawn, augmented, prefetched, stepped) beside bare forward, backward and step.

    python benchmarks/training_step.py [--nnunet PEERS/bin/python]            (about 2 minutes on 2 free cores)

The network is nnU-Net's plain one for the patch. Both sides run in one process, on the same model, in turns; the bare steps are on one
batch that lies there. An epoch of the loop waits for its first batch, which weighs less in longer ones: `--iterations`.
PEERS is an environment with nnU-Net (see benchmarks/requirements.txt). Its trainer's own train_step, with its loss and optimizer, then
takes its turns in a process of its own, on the same scans through its own loader with its worker processes, on the same processors; and,
which is less than its trainer does, on one batch that lies there. Rounds of many iterations are fairer to it: `--iterations 20`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from steps import Measured, Seconds, Setting, make_setting, network_params

from segsweep import recipes

BARE_BAR, PEER_BAR = 1.08, 0.9
MEGABYTE = 1024  # of what the system counts in
# Of nnunet_step.py: what its trainer does, and that without its data.
KINDS = {"loading": "nnU-Net", "stepping": "nnU-Net, no data"}


class Peer:
    """nnU-Net's trainer in an interpreter of its own; it steps when asked."""

    def __init__(self, python: str, *, setting: Setting, threads: int, scans: Path) -> None:
        unet = recipes.load("trainables", name="unet")
        levels = unet.plan_levels(setting.params, task=setting.task)
        for case in setting.training:
            whole = (slice(None), slice(None), slice(None))
            np.savez(scans / case.case_id, image=case.grid.read_image(whole), label=case.grid.read_label(whole))
        described = {
            "features": unet.features_of(setting.params, levels=levels), "strides": levels.strides,
            "kernels": levels.kernels, "convolutions": 2, "outputs": setting.task.outputs, "scans": str(scans),
            "patch": setting.task.patch_size, "batch": setting.params.batch_size, "threads": threads,
        }  # fmt: skip
        script = Path(__file__).with_name("nnunet_step.py")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "nnUNet_compile": "0"}
        self._process = subprocess.Popen(
            [python, str(script), json.dumps(described)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.seconds = {kind: Seconds() for kind in KINDS}
        self.peak_kilobytes = 0
        self._weights = sum(parameter.numel() for parameter in setting.model.parameters())

    def round(self, iterations: int) -> None:
        """Take so many steps of every kind."""
        for kind in KINDS:
            measured = self._ask(f"{iterations} {kind}")
            assert measured["weights"] == self._weights, "another network is timed"
            self.seconds[kind].clock.append(measured["clock"] / iterations)
            self.seconds[kind].processor.append(measured["processor"] / iterations)
            self.peak_kilobytes = measured["peak_kilobytes"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, line: str) -> dict:
        assert self._process.stdin and self._process.stdout
        print(line, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def main() -> None:
    """Measure and print ratios and bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=(32, 64, 64), help="voxels z, y, x")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--structures", type=int, default=13)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=3, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nnunet", metavar="PYTHON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    params = network_params(
        patch_size=list(options.patch), batch_size=options.batch, features=options.features,
        precision=options.precision, optimizer=options.optimizer, iterations=options.iterations,
    )  # fmt: skip
    setting = make_setting(params, structures=options.structures, spacing=(2.0, 1.0, 1.0), device="cpu")
    with tempfile.TemporaryDirectory() as scans:
        peer = None
        if options.nnunet:
            peer = Peer(options.nnunet, setting=setting, threads=options.threads, scans=Path(scans))
            peer.round(1)  # to be as warm as the others
            peer.seconds = {kind: Seconds() for kind in KINDS}
        measured = Measured(setting)
        for _ in range(options.rounds):
            measured.round()
            if peer:
                peer.round(options.iterations)
        report(measured, peer=peer)
        if peer:
            peer.close()


def report(measured: Measured, *, peer: Peer | None) -> None:
    """Print medians over rounds, and medians of the ratios within rounds."""
    params = measured.setting.params
    million = sum(parameter.numel() for parameter in measured.setting.model.parameters()) / 1e6
    size = "x".join(map(str, measured.setting.task.patch_size))
    print(
        f"{million:.1f} million weights, {params.batch_size} patches of {size}, {params.precision}, {params.optimizer}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    _row("loop", measured.loop)
    _row("bare", measured.bare)
    _ratio("loop / bare", measured.loop, other=measured.bare, bar=BARE_BAR)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if peer:
        for kind, name in KINDS.items():
            _row(name, peer.seconds[kind])
            _ratio(f"loop / {name}", measured.loop, other=peer.seconds[kind], bar=PEER_BAR)
    theirs = f"; nnU-Net's {peer.peak_kilobytes / MEGABYTE:.0f} MB, without its workers" if peer else ""
    print(f"peak memory of this process {peak / MEGABYTE:.0f} MB, with a second optimizer for the bare steps{theirs}")


def _row(name: str, seconds: Seconds) -> None:
    clock, processor = statistics.median(seconds.clock), statistics.median(seconds.processor)
    print(f"{name:24}{clock:8.3f} s an iteration, {processor:8.3f} s of processors")


def _ratio(name: str, seconds: Seconds, *, other: Seconds, bar: float) -> None:
    clock, processor = (
        statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in ((seconds.clock, other.clock), (seconds.processor, other.processor))
    )
    print(
        f"{name:24}{clock:8.3f} by the clock, {processor:.3f} by processor time; bar {bar}: {'met' if clock <= bar else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
