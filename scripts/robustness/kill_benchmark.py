"""Kills of benchmark.py at random moments: started again, it ends in the tables of an undisturbed run.

    python -m scripts.robustness.kill_benchmark [--count 20] [--seed N]

Each kill is SIGKILL or SIGTERM to benchmark.py alone, or SIGINT to all its processes, as Ctrl-C. It is started again at
once, or after a look whether all its processes are gone. Whenever it comes to its end its tables are compared, and it
begins from nothing again. Exit status 1 if they ever differ or a process is left behind.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
QUICK = "OPTIM.MAX_EPOCH 3 TRAIN.CHECKPOINT_FREQ 1".split()
OF_ORTHCR = "TRAINER.ORTHCR.LAYERS [-1] TRAINER.ORTHCR.BLOCK_SIZE 16".split()
WHOLE = (
    "--protocol base2new few_shot --datasets patterns --shots 1 --seeds 1 2 --trainers ZeroshotCLIP CoOp OrthCR".split()
)


class Failure(AssertionError):
    pass


def start(words: list[str], out: Path) -> subprocess.Popen:
    """Start benchmark.py in a process group of its own, with its data and output below `out`."""
    folders = ["--root", str(out / "data"), "--output-dir", str(out / "runs"), "--workers", "2"]
    command = [sys.executable, str(ROOT / "benchmark.py"), *folders, *words, *QUICK]
    if "OrthCR" in words:
        command += OF_ORTHCR
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = open(out / "terminal.txt", "a")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `make test &` would have it ignored
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)


def tables(out: Path) -> dict[str, str]:
    return {name: (out / "runs" / name).read_text() for name in ("report.md", "report.csv")}


def living_processes(group: int) -> list[str]:
    """Return the stat lines of the processes of a group that are alive; zombies are not."""
    stat_lines = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        state, _, owner = text.rpartition(")")[2].split()[:3]
        if int(owner) == group and state not in "ZX":
            stat_lines.append(text)
    return stat_lines


def wait_until_gone(group: int, seconds: float = 60.0) -> None:
    deadline = time.time() + seconds
    while living_processes(group):
        if time.time() > deadline:
            raise Failure(f"processes are left behind: {living_processes(group)}")
        time.sleep(0.05)


def run_undisturbed(words: list[str], out: Path) -> tuple[dict[str, str], float]:
    """Return the tables of an undisturbed run, and its seconds."""
    out.mkdir()
    start_time = time.time()
    status = start(words, out).wait()
    if status:
        raise Failure(f"the undisturbed run ends with {status}: {(out / 'terminal.txt').read_text()[-2000:]}")
    return tables(out), time.time() - start_time


def prove(words: list[str], folder: Path, signals: list[int], rng: random.Random, expected=None) -> None:
    """Kill and restart benchmark.py, and compare its tables with those of an undisturbed run.

    Args:
        words: arguments of benchmark.py.
        folder: for the data and the output.
        signals: to send, the last one first.
        rng: for the moments.
        expected: the tables of an undisturbed run and its seconds; None: that run is made.

    Raises:
        Failure: the tables differ, or a process is left behind.
    """
    expected_tables, seconds = expected or run_undisturbed(words, folder / "whole")
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    out, kills, finished = folder / "killed", list(signals), 0
    while True:
        out.mkdir(exist_ok=True)
        process = start(words, out)
        try:
            status = process.wait(rng.uniform(0.3, seconds) if kills else None)
        except subprocess.TimeoutExpired:
            number = kills.pop()
            n_done = len(list(out.rglob("results.json")))
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            status = process.wait()
            if rng.random() < 0.5:
                wait_until_gone(process.pid)
            name = signal.Signals(number).name
            print(f"{name} with {n_done} runs done: status {status}; {len(kills)} to go", flush=True)
            continue
        if status or tables(out) != expected_tables:
            raise Failure(f"status {status}, other tables than undisturbed: see {out}")
        finished += 1
        wait_until_gone(process.pid)
        print(f"finished ({finished}): the same tables", flush=True)
        if not kills:
            return
        shutil.rmtree(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="kills")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp())
    try:
        prove(WHOLE, folder, [rng.choice(SIGNALS) for _ in range(args.count)], rng)
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(f"{args.count} kills: the tables of an undisturbed run each time, and no process left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
