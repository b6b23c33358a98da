"""Training steps on request: `python -m benchmarks.steps TASK` makes one for each line on its standard input.

TASK is JSON: the case's fields, the file of CLIP's `weights`, and `opts`, KEY VALUE pairs. It writes a line when it is
ready, and after each step the JSON [seconds, wall seconds]. `Steps` starts such processes, so that trainers that need
other processes can take turns, too.
"""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import torch

from dassl.infrastructure import distributed

from .cases import Case
from .measure import Watch, build

ROOT = Path(__file__).resolve().parents[1]


class Steps:
    """A trainer in n processes of one thread, which make its steps together; a context manager.

    The processes have the variables of torchrun. They use no CPU while they wait.

    Args:
        case: the case.
        weights: file of CLIP.
        opts: KEY VALUE pairs.
        n: number of processes.
        env: more variables of the processes.

    Raises:
        ChildProcessError: a process has ended; the message has its last line.
    """

    def __init__(self, case: Case, weights: str, opts: list[str] = (), n: int = 1, env: dict[str, str] | None = None):
        task = json.dumps({**case._asdict(), "weights": weights, "opts": list(opts)})
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.steps", task]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self.processes, self.errors = [], []
        for rank in places(n):
            self.errors.append(tempfile.TemporaryFile("w+"))
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors[-1]}
            self.processes.append(subprocess.Popen(words, text=True, cwd=ROOT, env={**env, **rank}, **streams))
        self.waiting = True  # until they are ready

    def read_lines(self) -> list:
        """Return the next line of each process, decoded from JSON."""
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            errors = self.errors[lines.index("")]
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["without a word"])[-1]
            raise ChildProcessError(f"a process that made training steps has ended: {last}")
        return [json.loads(line) for line in lines]

    def ready(self) -> "Steps":
        if self.waiting:
            self.read_lines()
        self.waiting = False
        return self

    def __call__(self) -> dict[str, tuple[float, float]]:
        """Make a step, and return its times as `Watch.read` does.

        The seconds are the mean of the processes, the wall seconds those of the slowest.
        """
        self.ready()
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):  # `read_lines` raises an error with the reason
                print(file=process.stdin, flush=True)
        seconds, wall_seconds = zip(*self.read_lines(), strict=True)
        return {"step": (mean(seconds), max(wall_seconds))}

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, error, *_) -> None:
        for process in self.processes:
            if error:
                process.kill()
            process.communicate()
        for file in self.errors:
            file.close()


def places(n: int) -> list[dict[str, str]]:
    """Return the variables of each of n processes on this machine, as torchrun sets them; one process has none."""
    if n == 1:
        return [{}]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common_variables = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**common_variables, "RANK": rank, "LOCAL_RANK": rank} for rank in range(n)]
    loopback = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}
    return [{key: str(value) for key, value in rank.items()} | {"GLOO_SOCKET_IFNAME": min(loopback)} for rank in ranks]


def serve(task: dict) -> None:
    torch.set_num_threads(1)
    case = Case(*(task[field] for field in Case._fields))

    def answer(content):
        print(json.dumps(content), file=sys.__stdout__, flush=True)

    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, distributed.processes(), tempfile.TemporaryDirectory() as folder:
        trainer = build(case, task["weights"], Path(folder), task["opts"])
        trainer.set_model_mode("train")
        batch, part = next(iter(distributed.parts(trainer.train_loader_x)))
        trainer.batch_fraction, watch = part.fraction, Watch(trainer.device)
        answer("ready")
        for _ in sys.stdin:
            with watch.span("step"):
                trainer.forward_backward(batch)
            answer(watch.read()["step"])


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
