"""Engines, which do the jobs of a plan side by side: processes of this machine, or a Ray cluster.

An engine is a generator. It takes the work and the jobs. It yields (job, outcome) as each job ends, in any order, and
None about once a second. The outcome is the result of the work or an exception. A job that is killed or raises is
started once more; if it fails again, the exception is its outcome, and the other jobs go on. Closing the generator
ends all jobs.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import active_children, get_context, resource_tracker
from queue import SimpleQueue
from typing import Any

import torch

from dassl.utils import end_with_parent, free_memory
from trainers.shared.privacy import report_nothing

TRIES = 2
RAY = (2, 52)  # the first version in which nobody without the token can run code in a cluster
GIB = {"tiny": 1.0, "RN50": 6.0, "ViT-B/32": 6.0, "ViT-B/16": 8.0}  # of a run, by backbone; guessed, not measured
LARGE = 24.0  # any other backbone
Outcome = tuple[Any, Any] | None


# ------------------------------------------------------------------ this machine


def local(work: Callable, jobs: Sequence, slots: Sequence[str]) -> Iterator[Outcome]:
    """Yield the outcomes of jobs in processes of this machine.

    Each slot has a thread, and each thread a process pool of one. So a crash of a process costs one job.

    Args:
        work: a function of a module, called with one job in another process.
        jobs: in the order in which they begin.
        slots: the GPU that each process sees, "" for none or all.
    """
    context = process_context()
    free_slots, pools, gate, over = SimpleQueue(), [], threading.Lock(), threading.Event()
    thread = threading.local()
    for slot in slots:
        free_slots.put(slot)

    def enter() -> None:
        # the processes inherit the mask: this process alone answers Ctrl-C
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        thread.slot, thread.pool = free_slots.get(), None

    def attempt(job) -> Any:
        with gate:  # else a process could start while all are being ended
            if over.is_set():
                raise InterruptedError("the plan was ended")
            if thread.pool is None:
                thread.pool = ProcessPoolExecutor(1, context, prepare, (thread.slot, dict(os.environ)))
                pools.append(thread.pool)
            future = thread.pool.submit(work, job)
        try:
            return future.result()
        except BrokenExecutor:
            thread.pool = None
            raise ChildProcessError("its process was killed or crashed, perhaps for lack of memory") from None

    def persist(job) -> Any:
        for _ in range(TRIES):
            try:
                return attempt(job)
            except Exception as error:
                last = error
        return last

    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # before the threads: its start in one of them would unblock SIGINT
    threads = ThreadPoolExecutor(max(1, len(slots)), initializer=enter)
    pending, ended = {}, False
    try:  # Ctrl-C may come while jobs are submitted
        for job in jobs:
            pending[threads.submit(persist, job)] = job
        while pending:
            done, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
            yield None
        ended = True
    finally:
        with gate:
            over.set()
            if not ended:
                for child in active_children():
                    child.terminate()
        threads.shutdown(cancel_futures=True)
        for pool in pools:
            pool.shutdown()


def process_context():
    """Return the way to start processes.

    On Linux they are forks of a server process that has imported PyTorch once, and nothing that could use a GPU. This
    saves 4 CPU seconds for each process, and memory. Elsewhere each process imports PyTorch anew.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    return context


def prepare(gpu: str, environment: dict[str, str]) -> None:
    """Prepare a new process: it uses one thread and one GPU, and it ends when its parent ends.

    Args:
        gpu: the GPU that it sees; "": all of them.
        environment: variables of the process that asks for it; those of the server may be older.
    """
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def memory_of(backbone: str) -> float:
    """Return the expected memory of a run in GiB."""
    return GIB.get(backbone, LARGE)


def slots(gib: float, workers: int | None = None, per_gpu: int | None = None) -> list[str]:
    """Return the slots that this machine has room for: the GPU of each process, or "".

    Args:
        gib: memory of a run, on the GPU or, without one, in RAM.
        workers: largest number of slots, spread evenly over the GPUs. None: one for each CPU core; without a GPU, as
            many as memory allows.
        per_gpu: runs that share a GPU; None: as its free memory allows.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = torch.cuda.device_count()
    if not count:
        workers = workers or max(1, min(cores, int(free_memory() / gib)))
        return [""] * workers
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else list(map(str, range(count)))
    room = [per_gpu or max(1, int(torch.cuda.mem_get_info(k)[0] / 2**30 / gib)) for k in range(count)]
    evenly = [gpu for turn in range(max(room)) for gpu, n in zip(names, room, strict=True) if turn < n]
    return evenly[: workers or cores]


# ------------------------------------------------------------------ a cluster


def on_ray(work: Callable, jobs: Sequence, address: str = "", per_gpu: int = 1) -> Iterator[Outcome]:
    """Yield the outcomes of jobs on a Ray cluster.

    Each job is a Ray task of one CPU core. Ray starts it again on another node when its node is lost. Repository, data
    and output must have the same path on every node.

    Args:
        work: called with one job on a node.
        jobs: in the order in which they are submitted.
        address: of the cluster, as `ray.init` takes it; "": this machine alone.
        per_gpu: jobs that share a GPU, in a cluster that has any.
    """
    report_nothing()
    options = {}
    if not address:  # Ray always listens on all interfaces: require a token of everybody who connects
        os.environ["RAY_AUTH_MODE"] = "token"
        options["include_dashboard"] = False
    try:
        import ray
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install '.[cluster]'") from None
    if tuple(map(int, ray.__version__.split(".")[:2])) < RAY:
        needed = f"--engine ray needs Ray {RAY[0]}.{RAY[1]} or newer, which asks for a token"
        raise ValueError(f"{needed} (got {ray.__version__}): pip install --upgrade ray")
    try:  # Ray adds the folder of benchmark.py to the path of its workers, and limits each task to one thread a core
        ray.init(address or None, log_to_driver=False, logging_level="WARNING", **options)
    except ConnectionError as error:
        raise OSError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        gpus = 1 / per_gpu if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1, retry_exceptions=True)(work)
        pending = {task.remote(job): job for job in jobs}
        while pending:
            for ref in ray.wait(list(pending), timeout=1)[0]:
                try:
                    outcome = ray.get(ref)
                except Exception as error:
                    outcome = error
                yield pending.pop(ref), outcome
            yield None
    finally:
        ray.shutdown()
