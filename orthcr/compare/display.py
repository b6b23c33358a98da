"""The progress of a plan: on a terminal a block of lines that is redrawn, elsewhere a line for each job that ends."""

import re
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path

EPOCH = re.compile(rb"epoch \[(\d+)/(\d+)\]|(Evaluate on)")
SHOWN = 12  # lines of running jobs, at most


class Display:
    """The display of one plan.

    Args:
        jobs: of the plan, in the order in which they begin.
        title: of the block.
        out: stream of the block; None: the standard error.
    """

    def __init__(self, jobs: list, title: str = "", out=None):
        self.jobs, self.title, self.out = list(jobs), title, out or sys.stderr
        self.live = self.out.isatty()
        self.total = sum(len(job.runs) for job in jobs)
        self.done = self.failed = self.lines = 0
        self.began, self.drawn = time.time(), 0.0
        self.spent = defaultdict(lambda: [0.0, 0.0])  # {kind of job: [expected seconds, real seconds]}, so far
        self.seen = {}  # {job: time when it was first seen at work}

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.clear()

    # ---------------------------------------------------------------- events

    def ended(self, job, failed: bool) -> None:
        """Count a job that has ended."""
        self.jobs.remove(job)
        self.done += len(job.runs)
        self.failed += failed
        if job in self.seen:  # a job that was finished before, or ends at once, says nothing about durations
            took = time.time() - self.seen.pop(job)
            for sums in (self.spent[job.kind], self.spent["all"]):
                sums[0] += job.seconds
                sums[1] += took

    def line(self, text: str) -> None:
        """Print a line above the block; without a terminal, the counts stand before it."""
        self.clear()
        print(text if self.live else f"[{self.counts()}] {text}", flush=True)

    # ---------------------------------------------------------------- the block

    def refresh(self) -> None:
        """Redraw the block, at most twice a second."""
        running = self.running()
        if self.live and time.time() - self.drawn > 0.5:
            lines = [f"{self.title} {self.counts()}".strip(), *running[:SHOWN]]
            if len(running) > SHOWN:
                lines.append(f"  and {len(running) - SHOWN} more")
            width = shutil.get_terminal_size().columns - 1
            self.clear()
            self.out.write("".join(line[:width] + "\n" for line in lines))
            self.out.flush()
            self.lines, self.drawn = len(lines), time.time()

    def clear(self) -> None:
        """Remove the block from the terminal."""
        if self.lines:
            self.out.write(f"\x1b[{self.lines}A\x1b[J")
            self.out.flush()
            self.lines = 0
            self.drawn = 0.0

    def counts(self) -> str:
        """Return the finished, failed and remaining runs in words."""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done} of {self.total} runs{failed}{self.remaining()}"

    def remaining(self) -> str:
        """Return the time left in words, estimated from jobs of the same kind; "" before the first has ended."""
        if not self.jobs or not self.spent["all"][1]:
            return ""
        rates = {kind: real / expected for kind, (expected, real) in self.spent.items() if expected}
        left = sum(job.seconds * rates.get(job.kind, rates["all"]) for job in self.jobs)
        side_by_side = self.spent["all"][1] / max(1e-6, time.time() - self.began)
        minutes = left / max(1.0, side_by_side) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1.5 else f", about {60 * minutes:.0f} s left"

    def running(self) -> list[str]:
        """Return a line for each job at work.

        A job is at work if it has a log of this plan. This holds on this machine and in a cluster.
        """
        lines = []
        for job in self.jobs:
            current_run = next((run for run in job.runs if not (run.folder / "results.json").exists()), None)
            log = current_run and newest_log(current_run.folder, self.began)
            if log:
                self.seen.setdefault(job, time.time())
                lines.append(f"  {current_run.name}   {stage(log)}")
        return lines


def newest_log(folder: Path, since: float) -> Path | None:
    """Return the newest log in a folder, None if it is older than `since`; what is no file is passed over."""
    logs = [(path.stat().st_mtime, path) for path in folder.glob("log.txt*") if path.is_file()]
    return max(logs)[1] if logs and max(logs)[0] >= since else None


def stage(log: Path) -> str:
    """Return the stage of a run by its log: the last epoch, or the test."""
    with open(log, "rb") as f:
        f.seek(max(0, log.stat().st_size - 8192))
        matches = EPOCH.findall(f.read())
    if not matches:
        return "starts"
    epoch, epochs, test = (word.decode() for word in matches[-1])
    return "is tested" if test else f"epoch {epoch}/{epochs}"
