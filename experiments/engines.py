"""Engines do the jobs of a plan side by side: processes of this machine, or a Ray cluster.

An engine is a generator. It takes the work and the jobs, yields (job, what the work returned or the exception that
ended it) as each ends, in any order, and None about once a second. What is killed or raises is begun once more; then
the exception is its outcome, and the others go on. Closing the generator ends all that is under way.
"""

import os
import signal
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
RAY = (2, 52)  # the first version that lets nobody run code in a cluster who has not its token
GIB = {"tiny": 1.0, "RN50": 6.0, "ViT-B/32": 6.0, "ViT-B/16": 8.0}  # of a run, by backbone; guesses, not measured
LARGE = 24.0  # any other backbone
Outcome = tuple[Any, Any] | None


# ------------------------------------------------------------------ this machine


def local(work: Callable, jobs: Sequence, slots: Sequence[str]) -> Iterator[Outcome]:
    """A thread for each slot; each has a process pool of one, so that what kills a process takes one job with it.

    Args:
        work: a function of a module, called with one job in another process.
        slots: for each process the GPU that it sees, "" for none or all.
    """
    free, pools, gate, over = SimpleQueue(), [], threading.Lock(), threading.Event()
    own = threading.local()
    for slot in slots:
        free.put(slot)

    def enter() -> None:
        # its processes inherit this: Ctrl-C is ours to answer
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        own.slot, own.pool = free.get(), None

    def attempt(job) -> Any:
        with gate:  # no process is started behind the back of what ends them all
            if over.is_set():
                raise InterruptedError("the plan was ended")
            if own.pool is None:
                own.pool = ProcessPoolExecutor(1, get_context("spawn"), prepare, (own.slot,))
                pools.append(own.pool)
            future = own.pool.submit(work, job)
        try:
            return future.result()
        except BrokenExecutor:
            own.pool = None
            raise ChildProcessError("its process was killed or crashed, perhaps for want of memory") from None

    def persist(job) -> Any:
        for _ in range(TRIES):
            try:
                return attempt(job)
            except Exception as error:
                last = error
        return last

    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # later, in a thread, its start would let SIGINT through again
    threads = ThreadPoolExecutor(max(1, len(slots)), initializer=enter)
    pending, ended = {}, False
    try:  # from before the first job on: Ctrl-C may come while they are handed over
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
            for child in () if ended else active_children():
                child.terminate()
        threads.shutdown(cancel_futures=True)
        for pool in pools:
            pool.shutdown()


def prepare(gpu: str) -> None:
    """Of each process, before its first job: one thread, one GPU, and it ends with its parent, whatever ends that."""
    end_with_parent()
    torch.set_num_threads(1)
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def memory_of(backbone: str) -> float:
    """GiB that a run is taken to need."""
    return GIB.get(backbone, LARGE)


def slots(gib: float, workers: int | None = None, per_gpu: int | None = None) -> list[str]:
    """Those that this machine has room for.

    Args:
        gib: memory of a run, on the GPU or without one.
        workers: at most so many, evenly over the GPUs; None: one for each CPU core, without a GPU as memory allows.
        per_gpu: runs that share one; None: as its free memory allows.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = torch.cuda.device_count()
    if not count:
        return [""] * (workers or max(1, min(cores, int(free_memory() / gib))))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",")[:count] if given else list(map(str, range(count)))
    room = [per_gpu or max(1, int(torch.cuda.mem_get_info(k)[0] / 2**30 / gib)) for k in range(count)]
    evenly = [gpu for turn in range(max(room)) for gpu, n in zip(names, room, strict=True) if turn < n]
    return evenly[: workers or cores]


# ------------------------------------------------------------------ a cluster


def on_ray(work: Callable, jobs: Sequence, address: str = "", per_gpu: int = 1) -> Iterator[Outcome]:
    """Each job is a Ray task of one CPU core; Ray places it, and begins it again elsewhere when its node is lost.

    Repository, data and output lie where every node finds them, under the same path.

    Args:
        address: of the cluster, as `ray.init` takes it; "": this machine alone.
        per_gpu: jobs that share a GPU, in a cluster that has any.
    """
    report_nothing()
    options = {}
    if not address:  # Ray listens on all interfaces, and cannot be told otherwise: whoever connects needs a token
        os.environ["RAY_AUTH_MODE"] = "token"
        options["include_dashboard"] = False
    try:
        import ray
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install '.[cluster]'") from None
    if tuple(map(int, ray.__version__.split(".")[:2])) < RAY:
        needed = f"--engine ray needs Ray {RAY[0]}.{RAY[1]} or newer, which asks for a token"
        raise ValueError(f"{needed} (got {ray.__version__}): pip install --upgrade ray")
    try:  # Ray puts the folder of benchmark.py into the path of its workers, and gives each task one thread a core
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
