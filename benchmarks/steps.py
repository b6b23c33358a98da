"""Training steps when they are asked for: `python -m benchmarks.steps TASK` makes one for each line that it reads.

TASK is JSON: the case's fields, the file of CLIP's `weights`, and `opts`, KEY VALUE pairs. It answers with a line when
it is ready, and after each step with one of JSON: [seconds, wall]. `Steps` is its other side: so trainers that need
processes of their own still take turns.
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

from dassl import distributed

from .cases import Case
from .measure import Watch, build

ROOT = Path(__file__).resolve().parents[1]


class Steps:
    """A trainer in n processes, which make its steps together, one thread each; a context.

    They are started with the variables that torchrun gives, and wait without using the CPU.

    Raises:
        ChildProcessError: one of them has ended; with the last line that it wrote.
    """

    def __init__(self, case: Case, weights: str, opts: list[str] = (), n: int = 1, env: dict[str, str] | None = None):
        task = json.dumps({**case._asdict(), "weights": weights, "opts": list(opts)})
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.steps", task]
        given = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self.processes, self.errors = [], []
        for rank in places(n):
            self.errors.append(tempfile.TemporaryFile("w+"))
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors[-1]}
            self.processes.append(subprocess.Popen(words, text=True, cwd=ROOT, env={**given, **rank}, **streams))
        self.waiting = True  # until they are ready

    def hear(self) -> list:
        """The next line of each, from JSON."""
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            errors = self.errors[lines.index("")]
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["without a word"])[-1]
            raise ChildProcessError(f"a process that made training steps has ended: {last}")
        return [json.loads(line) for line in lines]

    def ready(self) -> "Steps":
        if self.waiting:
            self.hear()
        self.waiting = False
        return self

    def __call__(self) -> dict[str, tuple[float, float]]:
        """Makes a step: what `Watch.read` gives, the seconds of one process (their mean) and the wall's of the last."""
        self.ready()
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):  # `hear` says why
                print(file=process.stdin, flush=True)
        seconds, walls = zip(*self.hear(), strict=True)
        return {"step": (mean(seconds), max(walls))}

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
    """Variables of n processes on this machine, as torchrun sets them; of one, none."""
    if n == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(n)]
    loopback = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}
    return [{key: str(value) for key, value in rank.items()} | {"GLOO_SOCKET_IFNAME": min(loopback)} for rank in ranks]


def serve(task: dict) -> None:
    torch.set_num_threads(1)
    case = Case(*(task[field] for field in Case._fields))

    def answer(what):
        print(json.dumps(what), file=sys.__stdout__, flush=True)

    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, distributed.processes(), tempfile.TemporaryDirectory() as folder:
        trainer = build(case, task["weights"], Path(folder), task["opts"])
        trainer.set_model_mode("train")
        batch, part = next(iter(distributed.parts(trainer.train_loader_x)))
        trainer.share, watch = part.share, Watch(trainer.device)
        answer("ready")
        for _ in sys.stdin:
            with watch.span("step"):
                trainer.forward_backward(batch)
            answer(watch.read()["step"])


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
