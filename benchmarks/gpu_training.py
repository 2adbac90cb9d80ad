"""Training on a CUDA GPU, by the learning room alone, without Ray: iterations a second, wait for data, peak memory.

    python benchmarks/gpu_training.py            (perhaps 10 minutes on one GPU)

nnU-Net's plain network on patches of 28x256x256 and 32x320x256 (spacing 3 x 0.54 x 0.54 mm) and 96x128x160 (1 mm), in float32 and
bfloat16, compiled and not, in both memory layouts. Scans are noise in main memory. The wait for data is by how much an iteration of
the loop takes longer than one on a batch that lies on the GPU, both in turns; at most 5 % of the loop's. `--device cpu` tries the
script out on small patches.
Without a CUDA GPU it says so and ends with code 2.
"""

import argparse
import gc
import resource
import statistics
import sys
from dataclasses import dataclass

import torch
from steps import Measured, make_setting, network_params

from segsweep.data.geometry import Size, Spacing

WAIT_BAR = 0.05
GIGABYTE = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Voxels and mm (z, y, x), which make the network."""

    size: Size
    spacing: Spacing


PATCHES = (
    Patch(size=(28, 256, 256), spacing=(3.0, 0.542, 0.542)),
    Patch(size=(32, 320, 256), spacing=(3.0, 0.542, 0.542)),
    Patch(size=(96, 128, 160), spacing=(1.0, 1.0, 1.0)),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one way of training took: an iteration in seconds, the share of it that waited for data, peak bytes."""

    seconds: float
    wait: float
    peak: int


def main() -> int:
    """Print one row for each patch and way; 0 when no row waits longer than the bar, 1 when one does, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--patch", type=int, nargs=3, metavar=("Z", "Y", "X"), help="this one alone, at 1 mm")
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--structures", type=int, default=13)
    parser.add_argument("--iterations", type=int, default=50, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", choices=("both", "off"), default="both")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA GPU was found; expected one: run this on a machine with a GPU, or try --device cpu --patch 32 32 32"
        )
        return 2
    one = [Patch(size=tuple(options.patch), spacing=(1.0, 1.0, 1.0))] if options.patch else []
    print(f"{_device_name(options.device)}, torch {torch.__version__}, nnU-Net's plain network, batches of 2")
    print(f"{'patch':14}{'precision':10}{'compile':9}{'layout':15}{'it/s':>8}{'wait':>8}{'peak GB':>9}")
    worst = 0.0
    for patch in one or PATCHES:
        for precision in ("float32", "bfloat16"):
            for compiled in (False, True) if options.compile == "both" else (False,):
                for layout in (torch.contiguous_format, torch.channels_last_3d):
                    row = measure(patch, precision=precision, compiled=compiled, layout=layout, options=options)
                    worst = max(worst, row.wait)
                    print(
                        f"{'x'.join(map(str, patch.size)):14}{precision:10}{'on' if compiled else 'off':9}"
                        f"{'channels last' if layout is torch.channels_last_3d else 'contiguous':15}"
                        f"{1 / row.seconds:8.3f}{row.wait:8.1%}{row.peak / GIGABYTE:9.2f}",
                        flush=True,
                    )
    met = worst <= WAIT_BAR
    print(f"longest wait for data {worst:.1%}; bar {WAIT_BAR:.0%}: {'met' if met else 'MISSED'}")
    return 0 if met or options.device == "cpu" else 1


def measure(
    patch: Patch, *, precision: str, compiled: bool, layout: torch.memory_format, options: argparse.Namespace
) -> Row:
    """One row. On a GPU the peak is that of the loop's own epochs; on a CPU that of the process so far."""
    params = network_params(
        patch_size=list(patch.size), batch_size=2, features=options.features, iterations=options.iterations,
        precision=precision, compile=compiled,
    )  # fmt: skip
    setting = make_setting(params, structures=options.structures, spacing=patch.spacing, device=options.device)
    setting.model.to(memory_format=layout)  # type: ignore[call-overload]
    measured = Measured(setting)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(options.rounds):
        measured.round()
    waits = [1 - bare / loop for loop, bare in zip(measured.loop.clock, measured.bare.clock, strict=True)]
    row = Row(
        seconds=statistics.median(measured.loop.clock),
        wait=max(0.0, statistics.median(waits)),
        peak=_peak(options.device),
    )
    del measured, setting
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()
    if compiled:
        torch.compiler.reset()
    return row


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
