"""The progress of a plan: on a terminal a block of lines that is redrawn, elsewhere one line for each finished job."""

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
        jobs: jobs of the plan, in the order in which they begin.
        title: title of the block.
        out: stream that the block is written to; None: the standard error.
    """

    def __init__(self, jobs: list, title: str = "", out=None):
        self.jobs, self.title, self.out = list(jobs), title, out or sys.stderr
        self.is_terminal = self.out.isatty()
        self.total = sum(len(job.runs) for job in jobs)
        self.n_done = self.n_failed = self.lines = 0
        self.start_time, self.redraw_time = time.time(), 0.0
        self.durations = defaultdict(lambda: [0.0, 0.0])  # {kind of job: [sum of expected seconds, of actual seconds]}
        self.job_start_times = {}  # {job: time when it was first seen at work}

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.clear()

    # ---------------------------------------------------------------- events

    def end_job(self, job, is_failure: bool) -> None:
        """Count a job that has ended."""
        self.jobs.remove(job)
        self.n_done += len(job.runs)
        self.n_failed += is_failure
        if job in self.job_start_times:  # not for a job that was finished before: its duration is unknown
            duration = time.time() - self.job_start_times.pop(job)
            for sums in (self.durations[job.kind], self.durations["all"]):
                sums[0] += job.seconds
                sums[1] += duration

    def print_line(self, text: str) -> None:
        """Print a line above the block; without a terminal, begin it with the counts."""
        self.clear()
        print(text if self.is_terminal else f"[{self.format_counts()}] {text}", flush=True)

    # ---------------------------------------------------------------- the block

    def refresh(self) -> None:
        """Redraw the block, at most twice a second."""
        running_jobs = self.running_lines()
        if self.is_terminal and time.time() - self.redraw_time > 0.5:
            lines = [f"{self.title} {self.format_counts()}".strip(), *running_jobs[:SHOWN]]
            if len(running_jobs) > SHOWN:
                lines.append(f"  and {len(running_jobs) - SHOWN} more")
            width = shutil.get_terminal_size().columns - 1
            self.clear()
            self.out.write("".join(line[:width] + "\n" for line in lines))
            self.out.flush()
            self.lines, self.redraw_time = len(lines), time.time()

    def clear(self) -> None:
        """Remove the block from the terminal."""
        if self.lines:
            self.out.write(f"\x1b[{self.lines}A\x1b[J")
            self.out.flush()
            self.lines = 0
            self.redraw_time = 0.0

    def format_counts(self) -> str:
        """Return the finished, failed and remaining runs in words."""
        failures = f", {self.n_failed} failed" if self.n_failed else ""
        return f"{self.n_done} of {self.total} runs{failures}{self.format_time_left()}"

    def format_time_left(self) -> str:
        """Return the time left in words, estimated from jobs of the same kind; "" before the first has ended."""
        if not self.jobs or not self.durations["all"][1]:
            return ""
        rates = {kind: actual / expected for kind, (expected, actual) in self.durations.items() if expected}
        seconds_left = sum(job.seconds * rates.get(job.kind, rates["all"]) for job in self.jobs)
        parallel_jobs = self.durations["all"][1] / max(1e-6, time.time() - self.start_time)
        minutes = seconds_left / max(1.0, parallel_jobs) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1.5 else f", about {60 * minutes:.0f} s left"

    def running_lines(self) -> list[str]:
        """Return a line for each job at work.

        A job is at work if its output directory has a log that is newer than the start of the plan. This also works in
        a cluster.
        """
        lines = []
        for job in self.jobs:
            current_run = next((run for run in job.runs if not (run.folder / "results.json").exists()), None)
            log = current_run and newest_log(current_run.folder, self.start_time)
            if log:
                self.job_start_times.setdefault(job, time.time())
                lines.append(f"  {current_run.name}   {stage(log)}")
        return lines


def newest_log(folder: Path, earliest: float) -> Path | None:
    """Return the newest log file in a folder; None if it is older than the time `earliest`."""
    logs = [(path.stat().st_mtime, path) for path in folder.glob("log.txt*") if path.is_file()]
    return max(logs)[1] if logs and max(logs)[0] >= earliest else None


def stage(log: Path) -> str:
    """Return the progress of a run from its log: the last epoch, or that it is tested."""
    with open(log, "rb") as f:
        f.seek(max(0, log.stat().st_size - 8192))
        matches = EPOCH.findall(f.read())
    if not matches:
        return "starts"
    epoch, epochs, test = (word.decode() for word in matches[-1])
    return "is tested" if test else f"epoch {epoch}/{epochs}"
