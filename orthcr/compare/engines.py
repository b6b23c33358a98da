"""Engines that execute the jobs of a plan in parallel: in processes of this machine, or on a Ray cluster.

An engine is a generator. Its arguments are a function `work` and the jobs. It yields (job, outcome) whenever a job has
ended, and None about once a second. The outcome is the result of `work(job)`, or an exception. A job that crashes or
raises is started once more. If it fails again, the exception is its outcome, and the other jobs go on. Closing the
generator ends all jobs.
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
RAY = (2, 52)  # the first version whose clusters run no code of anybody without the token
GIB = {"tiny": 1.0, "RN50": 6.0, "ViT-B/32": 6.0, "ViT-B/16": 8.0}  # of a run, by backbone; guessed, not measured
LARGE = 24.0  # any other backbone
Outcome = tuple[Any, Any] | None


# ------------------------------------------------------------------ this machine


def run_locally(work: Callable, jobs: Sequence, slots: Sequence[str]) -> Iterator[Outcome]:
    """Yield the outcomes of jobs in processes of this machine.

    Each slot has a thread, and each thread has a pool of one process. So the crash of a process ends one job only.

    Args:
        work: a function of a module, called with one job in another process.
        jobs: in the order in which they begin.
        slots: the GPU that each process uses, for CUDA_VISIBLE_DEVICES; "": this variable stays as it is.
    """
    context = process_context()
    free_slots, pools, gate, is_over = SimpleQueue(), [], threading.Lock(), threading.Event()
    thread = threading.local()
    for slot in slots:
        free_slots.put(slot)

    def start_thread() -> None:
        # the worker processes inherit this mask, so that Ctrl-C reaches the main process alone
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        thread.slot, thread.pool = free_slots.get(), None

    def try_job(job) -> Any:
        with gate:  # else a process could start after the others have been terminated
            if is_over.is_set():
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

    def run_job(job) -> Any:
        for _ in range(TRIES):
            try:
                return try_job(job)
            except Exception as error:
                last_error = error
        return last_error

    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # before the threads: its start in one of them would unblock SIGINT
    threads = ThreadPoolExecutor(max(1, len(slots)), initializer=start_thread)
    futures, is_complete = {}, False
    try:  # Ctrl-C may come while jobs are submitted
        for job in jobs:
            futures[threads.submit(run_job, job)] = job
        while futures:
            ended_futures, _ = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
            for future in ended_futures:
                yield futures.pop(future), future.result()
            yield None
        is_complete = True
    finally:
        with gate:
            is_over.set()
            if not is_complete:
                for child in active_children():
                    child.terminate()
        threads.shutdown(cancel_futures=True)
        for pool in pools:
            pool.shutdown()


def process_context():
    """Return the multiprocessing context.

    On Linux, processes are forks of a server process that has imported PyTorch and has not used a GPU. This saves 4 CPU
    seconds for each process, and memory. On other systems each process imports PyTorch itself.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    return context


def prepare(gpu: str, environment: dict[str, str]) -> None:
    """Initialize a new process: it uses one thread and one GPU, and it ends when its parent ends.

    Args:
        gpu: value of CUDA_VISIBLE_DEVICES; "": as in `environment`.
        environment: environment variables of the main process; those of the fork server may be older.
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


def find_slots(gib: float, workers: int | None = None, per_gpu: int | None = None) -> list[str]:
    """Return the GPU of each process that this machine has room for; "" for each without a GPU.

    Args:
        gib: memory of a run in GiB: GPU memory, or RAM without a GPU.
        workers: largest number of processes, spread evenly over the GPUs. None: one for each CPU core; without a GPU,
            as many as memory allows.
        per_gpu: number of runs that share a GPU; None: as its free memory allows.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = torch.cuda.device_count()
    if not count:
        workers = workers or max(1, min(cores, int(free_memory() / gib)))
        return [""] * workers
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else list(map(str, range(count)))
    room = [per_gpu or max(1, int(torch.cuda.mem_get_info(k)[0] / 2**30 / gib)) for k in range(count)]
    gpus_in_turn = [gpu for turn in range(max(room)) for gpu, n in zip(names, room, strict=True) if turn < n]
    return gpus_in_turn[: workers or cores]


# ------------------------------------------------------------------ a cluster


def run_on_ray(work: Callable, jobs: Sequence, address: str = "", per_gpu: int = 1) -> Iterator[Outcome]:
    """Yield the outcomes of jobs on a Ray cluster.

    Each job is a Ray task of one CPU core. If a node is lost, Ray starts its jobs again on another node. Repository,
    data and output must have the same paths on every node.

    Args:
        work: a function of a module, called with one job on a node.
        jobs: in the order in which they are submitted.
        address: address of the cluster, as `ray.init` takes it; "": this machine alone.
        per_gpu: number of jobs that share a GPU, if the cluster has GPUs.
    """
    report_nothing()
    options = {}
    if not address:  # Ray listens on all interfaces: require a token from everybody who connects
        os.environ["RAY_AUTH_MODE"] = "token"
        options["include_dashboard"] = False
    try:
        import ray
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install '.[cluster]'") from None
    if tuple(map(int, ray.__version__.split(".")[:2])) < RAY:
        requirement = f"--engine ray needs Ray {RAY[0]}.{RAY[1]} or newer, whose clusters require a token"
        raise ValueError(f"{requirement} (got {ray.__version__}): pip install --upgrade ray")
    try:  # Ray adds the folder of benchmark.py to the path of its workers, and limits each task to one thread a core
        ray.init(address or None, log_to_driver=False, logging_level="WARNING", **options)
    except ConnectionError as error:
        raise OSError(f"no Ray cluster answers at {address} ({error}): start it, or give another --address") from error
    try:
        gpus = 1 / per_gpu if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1, retry_exceptions=True)(work)
        tasks = {task.remote(job): job for job in jobs}
        while tasks:
            for ref in ray.wait(list(tasks), timeout=1)[0]:
                try:
                    outcome = ray.get(ref)
                except Exception as error:
                    outcome = error
                yield tasks.pop(ref), outcome
            yield None
    finally:
        ray.shutdown()
