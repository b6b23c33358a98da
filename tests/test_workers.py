"""Worker processes: a lack of shared memory, and workers that end, are told in a line; nothing waits for ever."""

import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from dassl.data import workers
from dassl.data.workers import SharedCollate, WorkerLoader, read_in_order, tensors_in, workers_that_fit
from dassl.infrastructure.command import command
from tests.processes import in_processes


class Numbers(Dataset):
    """Random numbers; in a worker, item `wrong` does something else."""

    def __init__(self, n, wrong=-1, do=None):
        self.values, self.wrong, self.do = torch.rand(n, 3), wrong, do

    def __len__(self):
        return len(self.values)

    def __getitem__(self, k):
        if k == self.wrong and get_worker_info() is not None:
            return self.do()
        return {"value": self.values[k], "index": k}


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def not_to_be_handed_over():
    return {"value": torch.rand(3), "index": lambda: None}


def without_memory():
    raise RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)")


def fail(do):
    """Read with a worker that fails, as a command does."""
    batch = {"collate_fn": list} if do is not_to_be_handed_over else {}
    return list(WorkerLoader(Numbers(12, wrong=7, do=do), 2, num_workers=2, **batch)) and []


def read_to_the_end(do):
    """Read all rows, some of them without the worker that has failed."""
    data = Numbers(11, wrong=5, do=do)
    rows = [item for batch in read_in_order(data, 2, 2, list) for item in batch]
    assert [row["index"] for row in rows] == list(range(11))
    assert torch.equal(torch.stack([row["value"] for row in rows]), data.values)


def in_child(function, do, log):
    """Call function(do) as a command in its own process, because PyTorch raises a worker's end anywhere in it.

    Returns its exit status, and what it printed.
    """
    (status,) = in_processes(lambda: command(lambda: function(do)), log, n=1)
    return status, log.with_suffix(".0").read_text()


@pytest.mark.parametrize("do", [killed, not_to_be_handed_over, without_memory])
def test_a_worker_that_fails_is_told_in_a_line(do, tmp_path):
    status, printed = in_child(fail, do, tmp_path / "log")
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert status == 1
    assert "a worker process that reads images" in line and "DATALOADER.NUM_WORKERS 0" in line


@pytest.mark.parametrize("do", [killed, not_to_be_handed_over, without_memory])
def test_what_nothing_is_random_in_is_read_to_the_end(do, tmp_path):
    """PyTorch may notice a worker's end between two batches, which ends the command in a line: then once more."""
    for _ in range(3):
        status, printed = in_child(read_to_the_end, do, tmp_path / "log")
        if status == 0:
            break
    assert status == 0 and "the rest is read without workers" in printed


def test_other_errors_stay_as_they_are():
    def wrong():
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        list(WorkerLoader(Numbers(4, wrong=1, do=wrong), 2, num_workers=1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        command(wrong)


@pytest.mark.parametrize(
    "free, batch, batches, expected",
    [(10**9, 10**6, 99, 8), (6 * 10**6, 10**6, 99, 2), (10**6, 10**6, 99, 0), (6 * 10**6, 10**6, 3, 8), (0, 1, 1, 0)],
)
def test_as_many_workers_as_shared_memory_has_room_for(free, batch, batches, expected, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workers, "_printed", set())
    monkeypatch.setattr(workers, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    for _ in range(2):
        assert workers_that_fit(8, batch, batches) == expected
    said = capsys.readouterr().err
    assert said.count("\n") == int(expected < 8), "told once"
    assert ("without workers" in said) == (expected == 0) and ("--shm-size" in said) == (expected < 8)
    assert workers_that_fit(0, batch, batches) == 0
    monkeypatch.setattr(workers, "SHARED_MEMORY", str(tmp_path / "nowhere"))
    assert workers_that_fit(8, batch, batches) == 8, "of a system without it nothing is known"


def test_tensors_are_shared_in_workers_only():
    nested = {"a": [torch.rand(2), (torch.rand(1), "text")], "b": 3}
    assert len(list(tensors_in(nested))) == 2
    collate = SharedCollate(list)
    assert not any(tensor.is_shared() for tensor in tensors_in(collate([nested])))


RUN = """
import sys
import torch
from torch.utils.data import Dataset
import dassl.data.workers as workers

class Big(Dataset):
    def __len__(self): return 64
    def __getitem__(self, k): return f"image {k}", torch.full((3, 64, 64), float(k))

workers.SHARED_MEMORY = sys.argv[1]
print(sum(int(t[0, 0, 0]) for batch in workers.read_in_order(Big(), 8, 4, list) for _, t in batch))
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="it mounts a small /dev/shm")
@pytest.mark.parametrize("looked_at", ["/dev/shm", "/nowhere"])
def test_with_a_small_shared_memory(looked_at, root):
    """A file system of 1 MB, which it looks at, or runs into."""
    mounts = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mounts, "sh", "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    argv = ["unshare", "-m", "sh", "-c", mounts, "sh", sys.executable, "-c", RUN, looked_at]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{sum(range(64))}\n"
    assert "without workers" in done.stderr
