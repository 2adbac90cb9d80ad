"""Conversion of 20 openKBP cases with 2 processes: `segsweep convert` beside nnU-Net's fingerprint, plan and preprocess.

    python benchmarks/conversion.py RAW --nnunet-python PEER/bin/python            (Linux; 2 to 3 minutes)

RAW is the openKBP folder. PEER is a virtual environment of its own with nnU-Net and all that it needs:
    pip install torch==2.13.0 nnunetv2==2.8.1 dynamic-network-architectures==0.4.4 batchgeneratorsv2==0.3.6

Both sides convert the same scans through their command lines, each with its start and its imports: ours starts Ray, writes the
native grids losslessly and the training grids beside them, and the quality report; nnU-Net writes the training grids. `--rounds`
takes both sides in turn and keeps the median. Memory is the peak of the whole process tree, sampled: resident pages, shared ones
counted in every process (RSS, as such figures mostly are given) and only once (PSS).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

NUM_CASES, NUM_PROCESSES = 20, 2
SAMPLE_EVERY_S = 0.1
# Bars, as factors between the two sides.
FASTER, MEMORY, BYTES = 3.0, 1 / 3, 1 / 2
# Its spinal cord is wrong in the published set.
LEFT_OUT = "okbp_260"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One side in one round: seconds by the clock and of all processors, peak memory in bytes, bytes a case on disk."""

    seconds: float
    cpu_seconds: float
    rss: int
    pss: int
    bytes_a_case: int


@dataclass
class _Used:
    """What a process tree took so far: peaks in bytes, and processor seconds of every process that was seen."""

    rss: int = 0
    pss: int = 0
    cpu_seconds: dict[int, float] = field(default_factory=dict)

    def sample(self, root: int) -> None:
        """Look at the tree below a process."""
        tree = _tree(root)
        self.rss = max(self.rss, sum(_kilobytes(pid, "status", "VmRSS") for pid in tree) * 1024)
        self.pss = max(self.pss, sum(_kilobytes(pid, "smaps_rollup", "Pss") for pid in tree) * 1024)
        self.cpu_seconds |= {pid: seconds for pid, seconds in tree.items() if seconds}


def main() -> None:
    """Measure both sides and print the table with the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--nnunet-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = copy_cases(options.raw, folder=folder)
        for number in range(options.rounds):
            ours.append(convert(folder, number=number))
            theirs.append(preprocess(folder, python=options.nnunet_python, number=number))
            print(f"round {number + 1}: {ours[-1]}\n         {theirs[-1]}", flush=True)
    report(ours, theirs=theirs, num_cases=len(cases))


def copy_cases(raw: Path, *, folder: Path) -> list[str]:
    """The first cases of the training split, laid out for both sides; returns their ids."""
    content = json.loads((raw / "cases.json").read_text())
    entries = [case for case in content["cases"] if case["upstream_split"] == "train" and case["id"] != LEFT_OUT]
    entries = entries[:NUM_CASES]
    theirs = folder / "nnUNet_raw" / "Dataset501_OpenKBP"
    for part in (folder / "raw" / "images", folder / "raw" / "labels", theirs / "imagesTr", theirs / "labelsTr"):
        part.mkdir(parents=True)
    for case in entries:
        name = case["id"]
        for part in ("images", "labels"):
            shutil.copy(raw / part / f"{name}.nii.gz", folder / "raw" / part)
        shutil.copy(raw / "images" / f"{name}.nii.gz", theirs / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copy(raw / "labels" / f"{name}.nii.gz", theirs / "labelsTr")
    (folder / "raw" / "cases.json").write_text(json.dumps({**content, "cases": entries}))
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **content["labels"]},
        "numTraining": len(entries),
        "file_ending": ".nii.gz",
    }
    (theirs / "dataset.json").write_text(json.dumps(described))
    return [case["id"] for case in entries]


def convert(folder: Path, *, number: int) -> Measured:
    """Our side, from nothing to a store with plan and quality report."""
    store = folder / f"store{number}"
    code = "import sys; from segsweep.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "convert", "openkbp", str(folder / "raw"), "--store", str(store)]
    environment = {"OMP_NUM_THREADS": "1", "SEGSWEEP_WORKSPACE": str(folder / "workspace")}
    if (os.cpu_count() or 1) > NUM_PROCESSES:
        command = ["taskset", "-c", ",".join(map(str, range(NUM_PROCESSES))), *command]
    measured = run([command], environment=environment, written=store / "cases")
    shutil.rmtree(store)
    return measured


def preprocess(folder: Path, *, python: Path, number: int) -> Measured:
    """nnU-Net's side, from nothing to what its training reads."""
    out = folder / f"nnUNet_preprocessed{number}"
    tools, processes = python.parent, str(NUM_PROCESSES)
    commands = [
        [str(tools / "nnUNetv2_extract_fingerprint"), "-d", "501", "-np", processes, "--verify_dataset_integrity"],
        [str(tools / "nnUNetv2_plan_experiment"), "-d", "501"],
        [str(tools / "nnUNetv2_preprocess"), "-d", "501", "-c", "3d_fullres", "-np", processes],
    ]
    folders = {"nnUNet_raw": "nnUNet_raw", "nnUNet_preprocessed": out.name, "nnUNet_results": "nnUNet_results"}
    environment = {"OMP_NUM_THREADS": "1", **{key: str(folder / name) for key, name in folders.items()}}
    trained = out / "Dataset501_OpenKBP" / "nnUNetPlans_3d_fullres"
    measured = run(commands, environment=environment, written=trained)
    shutil.rmtree(out)
    return measured


def run(commands: list[list[str]], *, environment: dict[str, str], written: Path) -> Measured:
    """Run commands one after another. Raises CalledProcessError, with their output, when one fails."""
    used, started = _Used(), time.perf_counter()
    for command in commands:
        _run(command, environment=environment, used=used)
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    return Measured(
        seconds=seconds,
        cpu_seconds=sum(used.cpu_seconds.values()),
        rss=used.rss,
        pss=used.pss,
        bytes_a_case=size // NUM_CASES,
    )


def _run(command: list[str], *, environment: dict[str, str], used: _Used) -> None:
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output) as process,
    ):
        while process.poll() is None:
            used.sample(process.pid)
            time.sleep(SAMPLE_EVERY_S)
        if process.returncode:
            output.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, output=output.read())


def _tree(root: int) -> dict[int, float]:
    """A process and all its descendants: process id -> processor seconds so far."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        seconds[process] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    tree = [root]
    for process in tree:
        tree += [child for child, parent in parents.items() if parent == process]
    return {process: seconds.get(process, 0.0) for process in tree}


def _kilobytes(pid: int, file: str, field: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    except OSError:
        pass  # it ended meanwhile
    return 0


def report(ours: list[Measured], *, theirs: list[Measured], num_cases: int) -> None:
    """Print medians, ratios and bars. Ratios are medians over rounds, of the two sides of a round."""
    print(f"{num_cases} cases, {NUM_PROCESSES} processes, {len(ours)} rounds; medians\n")
    print(f"{'':28}{'segsweep':>12}{'nnU-Net':>12}{'ratio':>9}   bar")
    rows = (
        ("seconds", "seconds", 1.0, f"at most {1 / FASTER:.2f}"),
        ("processor seconds", "cpu_seconds", 1.0, ""),
        ("peak memory MB, RSS", "rss", 1e6, f"at most {MEMORY:.2f}"),
        ("peak memory MB, PSS", "pss", 1e6, f"at most {MEMORY:.2f}"),
        ("kB on disk a case", "bytes_a_case", 1e3, f"at most {BYTES:.2f}"),
    )
    for title, name, unit, bar in rows:
        pairs = [(getattr(mine, name), getattr(other, name)) for mine, other in zip(ours, theirs, strict=True)]
        mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{title:28}{mine / unit:12.1f}{other / unit:12.1f}{ratio:9.2f}   {bar}")


if __name__ == "__main__":
    main()
