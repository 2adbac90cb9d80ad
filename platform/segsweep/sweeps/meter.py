"""What a worker's own process takes of its machine, measured without any package: for MLflow's tab of system metrics."""

import resource
import sys
import time

import torch

# MLflow shows metrics of this beginning apart from all others.
SYSTEM = "system/"


class Meter:
    """Reads `system/cpu_percent` since the last reading (all threads, 100 is one core), `system/peak_memory_gb` (10^9 bytes) and, on a
    GPU, `system/gpu_memory_gb` that is reserved there.
    """

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """What was used since the last reading, or since the meter was made."""
        clock, cpu = time.perf_counter(), time.process_time()
        share = (cpu - self._cpu) / max(clock - self._clock, 1e-9)
        self._clock, self._cpu = clock, cpu
        used = {f"{SYSTEM}cpu_percent": 100.0 * share, f"{SYSTEM}peak_memory_gb": peak_memory() / 1e9}
        if torch.cuda.is_available():
            used[f"{SYSTEM}gpu_memory_gb"] = torch.cuda.memory_reserved() / 1e9
        return used


def peak_memory() -> int:
    """Bytes that this process held at most since it began. The system counts them in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
