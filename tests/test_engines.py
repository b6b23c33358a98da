"""The engines: what is killed or raises is begun once more, others go on, and nobody outlives the plan."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from orthcr.compare import engines
from orthcr.compare.engines import find_slots, run_locally, run_on_ray
from orthcr.compare.plans import Job, PlannedRun, describe_crash, execute
from orthcr.run.spec import RunSpec

REPO = Path(__file__).resolve().parents[1]


def work(job):
    """`job`: what to do, and a file that gets a line for each try; returns the number of tries and the GPU it sees."""
    what, path = job
    with open(path, "a") as f:
        f.write(f"{os.getpid()}\n")
    tries = len(Path(path).read_text().splitlines())
    if what == "killed" or what == "killed once" and tries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raises" or what == "raises once" and tries == 1:
        raise ZeroDivisionError("of a bug")
    time.sleep(60 if what == "slow" else 0)
    return tries, os.environ.get("CUDA_VISIBLE_DEVICES")


def gone(pid, seconds=10.0):
    """Whether it has ended by then; one that nobody waited for has, too."""
    until = time.time() + seconds
    while time.time() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_one_more_try_and_the_others_go_on(tmp_path):
    names = ["fine", "killed", "raises once", "killed once", "raises", "fine too"]
    jobs = [(name, str(tmp_path / name)) for name in names]
    with closing(run_locally(work, jobs, ["7", "7"])) as outcomes:
        found = {job[0]: outcome for job, outcome in filter(None, outcomes)}
    assert sorted(found) == sorted(names)
    assert found["fine"] == found["fine too"] == (1, "7")
    assert found["killed once"] == found["raises once"] == (2, "7")
    assert isinstance(found["killed"], ChildProcessError) and isinstance(found["raises"], ZeroDivisionError)
    assert all(len((tmp_path / name).read_text().splitlines()) == 2 for name in ("killed", "raises"))


def test_an_interrupt_while_jobs_are_handed_over_ends_what_is_under_way(tmp_path):
    def jobs():
        yield "slow", str(tmp_path / "slow")
        until = time.time() + 30
        while not (tmp_path / "slow").exists() and time.time() < until:
            time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(run_locally(work, jobs(), [""]))
    assert gone(int((tmp_path / "slow").read_text().split()[0]))


def test_closing_ends_what_is_under_way(tmp_path):
    jobs = [("slow", str(tmp_path / str(k))) for k in range(3)]
    with closing(run_locally(work, jobs, [""])) as outcomes:
        while not (tmp_path / "0").exists():
            assert next(outcomes) is None
        began = time.time()
    assert time.time() - began < 10 and gone(int((tmp_path / "0").read_text()))
    assert not (tmp_path / "1").exists() and not (tmp_path / "2").exists()


def test_nobody_outlives_a_killed_parent(tmp_path):
    code = f"""
import sys; sys.path[:0] = [{str(REPO)!r}, {str(REPO / "tests")!r}]
from test_engines import work, run_locally
if __name__ == "__main__":
    list(run_locally(work, [("slow", {str(tmp_path / "job")!r})], [""]))
"""
    (tmp_path / "plan.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "plan.py"])
    until = time.time() + 60
    while not (tmp_path / "job").exists() or not (tmp_path / "job").read_text():
        assert time.time() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert gone(int((tmp_path / "job").read_text()), 5)


def test_slots(monkeypatch):
    monkeypatch.setattr(engines.os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(engines.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(engines, "free_memory", lambda: 20.0)
    assert (
        find_slots(8.0) == ["", ""]
        and find_slots(1.0) == [""] * 6
        and find_slots(50.0) == [""]
        and find_slots(8.0, workers=5) == [""] * 5
    )
    monkeypatch.setattr(engines.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engines.torch.cuda, "mem_get_info", lambda k: ((30 - 20 * k) * 2**30, 0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_slots(9.0) == ["0", "1", "0", "0"] and find_slots(9.0, per_gpu=1) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    assert find_slots(9.0, workers=2) == ["4", "GPU-abc"] and len(find_slots(0.1)) == 6


def test_a_crash_is_told_with_the_end_of_its_log(tmp_path):
    """And what failed for good does not hide what did not."""
    jobs = [Job((PlannedRun(name, RunSpec(output_dir=str(tmp_path / name))),)) for name in ("good", "bad", "ugly")]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "log.txt").write_text("".join(f"line {k}\n" for k in range(9)))

    def engine(work, plan):
        yield jobs[1], ChildProcessError("its process was killed")
        yield None
        yield jobs[0], ([{"accuracy": 50.0}], "")
        yield jobs[2], RuntimeError("first line\nlast line")

    told = []
    failed = execute(jobs, on_job_done=lambda job, results: told.append(results), engine=engine)
    assert told == [[{"accuracy": 50.0}]]
    head, *log = failed[0].splitlines()
    assert head == f"bad failed 2 times: its process was killed. The end of {tmp_path / 'bad' / 'log.txt'}:"
    assert [line.strip() for line in log] == [f"line {k}" for k in range(4, 9)]
    assert failed[1] == f"ugly failed 2 times: RuntimeError: last line. It left no log in {tmp_path / 'ugly'}"
    assert failed[1] == describe_crash(jobs[2], RuntimeError("last line"))


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: pip install '.[cluster]'")
def test_ray_does_the_runs_of_a_lost_node_elsewhere(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    def task(job):  # pickled by value: the nodes need not find this file
        what, path = job
        with open(path, "a") as f:
            f.write(f"{ray.get_runtime_context().get_node_id()}\n")
        time.sleep(2 if what != "raises" else 0)
        if what == "raises":
            raise ZeroDivisionError("of a bug")
        return len(Path(path).read_text().splitlines())

    jobs = [("works", str(tmp_path / str(k))) for k in range(5)] + [("raises", str(tmp_path / "raises"))]
    found, out = {}, lost.node_id
    try:
        with closing(run_on_ray(task, jobs, cluster.address)) as outcomes:
            for outcome in outcomes:
                if outcome:
                    found[outcome[0][1]] = outcome[1]
                under_way = [path for path in tmp_path.iterdir() if str(path) not in found and out in path.read_text()]
                if lost and under_way:
                    cluster.remove_node(lost, allow_graceful=False)
                    lost, victim = None, under_way[0]
    finally:
        cluster.shutdown()
    assert lost is None and len(found) == 6
    nodes = victim.read_text().split()
    assert nodes[0] == out and len(nodes) == 2 and nodes[1] != out and found[str(victim)] == 2
    assert isinstance(found.pop(str(tmp_path / "raises")), ZeroDivisionError)
    assert sorted(found.values()) == [1, 1, 1, 1, 2]


def test_without_ray_it_says_how_to_get_it(monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError) as caught:
        next(run_on_ray(work, []))
    assert "pip install '.[cluster]'" in one_line(caught)
