"""Worker processes of data loaders. Their number is limited by shared memory, and their errors are one line.

A worker returns its batches in shared memory. A container may have little of it (Docker: 64 MiB).
"""

import errno
import multiprocessing.queues
import os
import shutil
import signal
import sys
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Subset, default_collate, get_worker_info

from dassl.utils import end_with_parent

SHARED_MEMORY = "/dev/shm"
QUEUE = 2**16  # size of the semaphores of a worker's queue, rounded up, in bytes
PREFETCH = 2  # batches that PyTorch's DataLoader has each worker prepare
ADVICE = "give DATALOADER.NUM_WORKERS 0, or the container more memory (docker run --shm-size 1g)"
_printed = set()


class WorkerFailed(OSError):
    """An error of a worker process, which has ended or could not return a batch."""


class WorkerLoader(DataLoader):
    """A DataLoader that raises `WorkerFailed` for every failure of a worker, so that the main process never hangs.

    The arguments are those of DataLoader.
    """

    def __init__(self, dataset, batch_size=1, collate_fn=None, worker_init_fn=None, **options):
        if not isinstance(
            collate_fn, SharedCollate
        ):  # the twin of a loader has one, see `dassl.infrastructure.distributed`
            collate_fn = SharedCollate(collate_fn or default_collate)
        start = worker_init_fn or start_worker
        super().__init__(dataset, batch_size, collate_fn=collate_fn, worker_init_fn=start, **options)

    def __iter__(self):
        try:
            batches = super().__iter__()  # not later, because it draws from the generators
        except OSError as error:  # an error of the queues between the processes
            if not self.num_workers or error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.EAGAIN):
                raise
            reason = f"the worker processes that read images cannot be started ({error.strerror})"
            raise WorkerFailed(f"{reason}: {ADVICE}") from error
        return self._reported(batches)

    def _reported(self, batches):
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError) as error:  # the pipe to the worker is broken
                raise WorkerFailed(f"a worker process that reads images has ended: {ADVICE}") from error
            except RuntimeError as error:
                line = describe_failure(error)
                if not line:
                    raise
                raise WorkerFailed(line) from error
            yield batch


class SharedCollate:
    """A collate function that, in a worker, also moves the tensors to shared memory.

    Here a lack of shared memory raises an error. Otherwise a background thread of the worker would move the tensors,
    print the error and lose the batch, and the main process would wait forever.
    """

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, items):
        batch = self.collate(items)
        if get_worker_info() is not None:
            for tensor in tensors_in(batch):
                tensor.share_memory_()
        return batch


def tensors_in(batch) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested dicts, lists and tuples."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from tensors_in(value)


def start_worker(worker_id=0):
    """Set up a worker: it ends with its parent, on SIGTERM, and when it cannot hand over a batch."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the main process may have a handler
    end_with_parent(worker_id)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)


def _end_worker(error, batch):
    print(f"a worker cannot hand over a batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def describe_failure(error: BaseException) -> str:
    """Return a line for an error that a worker's end or a lack of shared memory raises; "" for any other error."""
    text = " ".join(str(error).split())
    no_space = "shared memory" in text or ("torch_" in text and "No space left" in text)
    if isinstance(error, WorkerFailed):
        return text
    if "out of shared memory" in text or "Bus error" in text or no_space:
        reason = f"a worker process that reads images has no shared memory left ({SHARED_MEMORY})"
    elif "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
        name = text.partition("killed by signal: ")[2].split(".")[0]
        how = f"was killed by a signal ({name})" if name else "has ended, perhaps for lack of memory"
        reason = f"a worker process that reads images {how}"
    else:
        return ""
    return f"{reason}: {ADVICE}"


def workers_that_fit(workers: int, batch_bytes: int, batches: int) -> int:
    """Return the number of workers that fit into shared memory. If it is smaller, print a line once.

    Args:
        workers: number of workers of the config.
        batch_bytes: size of the tensors of a batch.
        batches: total number of batches.
    """
    if not workers or not os.path.isdir(SHARED_MEMORY):
        return workers
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free

    def needed(number):
        return min(PREFETCH * number + 1, batches) * batch_bytes + number * QUEUE  # one batch is in use

    n_fitting = next((number for number in range(workers, 0, -1) if needed(number) <= free_bytes), 0)
    if n_fitting < workers:
        needed_mb = needed(workers) / 1e6
        problem = f"{workers} workers need {needed_mb:.1f} MB, but {SHARED_MEMORY} has {free_bytes / 1e6:.1f} MB free"
        consequence = f"{n_fitting} workers are used" if n_fitting else "images are read without workers"
        _print_once(f"{problem}: {consequence}. Give a container more with docker run --shm-size 1g")
    return n_fitting


def _print_once(line):
    if line not in _printed:
        _printed.add(line)
        print(line, file=sys.stderr)


def read_in_order(dataset: Dataset, batch_size: int, workers: int, collate_fn=None) -> Iterator:
    """Yield the batches of a data set without random parts.

    If a worker fails, the rest is read without workers, and a line is printed.
    """
    count = -(-len(dataset) // batch_size)
    workers = workers if count > 1 else 0
    if workers:
        item_bytes = sum(tensor.nbytes for tensor in tensors_in(dataset[0]))
        workers = workers_that_fit(workers, item_bytes * batch_size, count)
    batches_read = 0
    try:
        for batch in WorkerLoader(dataset, batch_size, collate_fn, num_workers=workers):
            yield batch
            batches_read += 1
    except WorkerFailed as error:
        _print_once(f"{str(error).partition(':')[0]}: the rest is read without workers")
        rest = Subset(dataset, range(batches_read * batch_size, len(dataset)))
        yield from WorkerLoader(rest, batch_size, collate_fn)
