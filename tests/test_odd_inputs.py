"""What an unlucky world does to commands: signals, memory, names, odd values. One line each, nothing left."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import own_photos
import pytest
import scipy.io
import torch

from dassl.infrastructure.command import command
from dassl.infrastructure.files import spreadsheet_cell, write_json
from datasets.base import DrawnDataset, read_split
from datasets.shared.annotations import read_lines, read_mat
from datasets.shared.image_files import find_images, from_csv
from datasets.tools import prepare
from orthcr.compare import plans
from orthcr.compare.display import newest_log
from orthcr.compare.sweep import check_accuracies
from orthcr.reports.runs import UnusableResult, read_config
from orthcr.run.own_images import write_wrong
from orthcr.run.runner import main
from orthcr.run.spec import RunSpec
from orthcr.run.temperature import TEMPERATURE, read_temperature
from trainers.shared.backbones import find, read_weights

trained = own_photos.trained  # the fixture


# ------------------------------------------------------------------ how a command ends


@pytest.mark.parametrize(
    "error, words",
    [
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deep"),
        (FileExistsError(17, "File exists", "a name"), "error: File exists: 'a name'\n"),
        (ValueError("something\n\nwrong"), "error: wrong\n"),
        ("\ud800".encode, "cannot write: give other names"),
    ],
)
def test_errors_in_a_line(error, words, capsys):
    def work():
        if callable(error):
            error("utf-8")
        raise error

    assert command(work) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err and "Errno" not in err


def test_other_errors_show_their_trace():
    for error in (RuntimeError("a bug"), TypeError("a bug")):

        def work(error=error):
            raise error

        with pytest.raises(type(error)):
            command(work)


ENDED = """
import os, signal, sys, time
from dassl.infrastructure.command import command

def work():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(5)
    finally:
        print("cleaned up")

status = command(work, "the same command goes on")
assert signal.getsignal(int(sys.argv[1])) == signal.SIG_DFL
sys.exit(status)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_a_closed_terminal_end_as_ctrl_c_does(root, number):
    words = [sys.executable, "-c", ENDED, str(int(number))]
    default = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, preexec_fn=default)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "cleaned up\n", "the same command goes on\n")


def test_under_nohup_a_closed_terminal_ends_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_a_module_is_imported(root):
    """At a random moment: status 130 and a word, or the command's own end; never a trace of ours."""
    for seconds in np.random.default_rng().uniform(0.4, 2.5, 2):
        words = [sys.executable, "-m", "orthcr", "calibrate", "--model-dir", "nowhere"]
        child = subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(seconds)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
        assert "Traceback" not in err or "orthcr" not in err, "but in Python's own start"


STARTING = """
import signal, sys
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", MODULE, "calibrate"]
import orthcr
print(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
"""


@pytest.mark.parametrize("module, ends", [("orthcr", True), ("theirs", False)])
def test_ctrl_c_ends_the_start_of_a_command_and_no_program_of_others(root, module, ends):
    code = STARTING.replace("MODULE", repr(module))
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test in the background has it ignored
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, preexec_fn=default)
    assert (done.stdout, done.stderr) == (f"{ends}\n", "")


def test_a_killed_export_leaves_nothing_for_long(trained, root, tmp_path):
    """A folder of an export that was killed goes with the next one; that of one at work stays."""
    from dassl.infrastructure.files import scratch_folder
    from orthcr.deploy.exporter import export

    (tmp_path / ".orthcr-export-0123abcd").mkdir()
    with scratch_folder(str(tmp_path), "orthcr-export") as at_work:
        export(str(trained), "openai", str(tmp_path / "out"))
        assert sorted(os.listdir(tmp_path)) == sorted([os.path.basename(at_work), "out"])


# ------------------------------------------------------------------ values


def test_no_cell_is_a_formula(tmp_path, monkeypatch):
    monkeypatch.setattr("orthcr.run.own_images.draw_contact_sheet", lambda images, path: None)
    rows = [("=1+1.png", "@cmd", "-x", 0.5), ("a.png", "+y", "b", 0.25)]
    write_wrong(rows, 2, str(tmp_path))
    cells = [cell for row in csv.reader((tmp_path / "wrong.csv").read_text().splitlines()) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+", "-"))] and "'=1+1.png" in cells
    assert spreadsheet_cell("a=b") == "a=b" and spreadsheet_cell("=\x1b[2J") == "'=\\x1b[2J"


ROWS = [
    ["a.png", 1e999, "cat"],
    ["a.png", 5.0, "cat"],
    ["a.png", None, "cat"],
    ["a.png", {}, "cat"],
    ["a.png", True, "cat"],
]
ROWS += [[5, 0, "cat"], ["", 0, "cat"], ["a.png", 0, None], ["a.png", 0, {}], ["a.png", 0], "abc", None, 7]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_rows_of_a_split_file_that_are_none(tmp_path, row, one_line):
    text = json.dumps({"train": [["a.png", 0, "cat"], row], "val": [], "test": []}).replace("Infinity", "1e999")
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match="split.json is no split file") as error:
        read_split(str(tmp_path / "split.json"), "")
    one_line(error)


@pytest.mark.parametrize("t", [1e-40, 0, -1, 1e30, "nan", None, {}])
def test_temperatures_that_are_none(tmp_path, t, one_line):
    write_json({"temperature": t, "of": {}}, tmp_path / TEMPERATURE)
    with pytest.raises(ValueError, match="damaged") as error:
        read_temperature(str(tmp_path))
    one_line(error)


ODD_RESULTS = [{"accuracy": []}, {"accuracy": "90"}, {"accuracy": 1e4}, {"accuracy": True}, {"accuracy": None}]
ODD_RESULTS += [{"classes": []}, [], 5, "x"]


@pytest.mark.parametrize("odd", ODD_RESULTS, ids=str)
def test_results_of_a_plan_that_are_none(tmp_path, odd, monkeypatch):
    """Of a finished run, which a benchmark reads instead of making it again."""
    results = {"accuracy": 90.0, "classes": "base", **odd} if isinstance(odd, dict) else odd
    write_json(results, tmp_path / "results.json")
    monkeypatch.setattr(plans, "check_same_run", lambda *_: None)
    (results, failure) = plans.make_job(plans.Job((plans.PlannedRun("a run", RunSpec(output_dir=str(tmp_path))),)))
    assert failure.startswith(f"a run: {tmp_path}/results.json ") and "or remove it" in failure and not results


def test_a_plan_tells_failures_without_numbers_of_the_system(tmp_path, monkeypatch):
    (tmp_path / "results.json").mkdir()
    monkeypatch.setattr(plans, "check_same_run", lambda *_: None)
    monkeypatch.setattr(plans, "read_json", lambda path: open(path))
    _, failure = plans.make_job(plans.Job((plans.PlannedRun("a run", RunSpec(output_dir=str(tmp_path))),)))
    assert failure == f"a run: Is a directory: '{tmp_path}/results.json'"


def test_logs_that_are_no_files(tmp_path):
    """In the tree of a benchmark, whose display opens the newest one."""
    os.mkfifo(tmp_path / "log.txt-2")
    (tmp_path / "log.txt-3").symlink_to(tmp_path / "nowhere")
    assert newest_log(tmp_path, 0) is None
    (tmp_path / "log.txt").write_text("text")
    assert newest_log(tmp_path, 0) == tmp_path / "log.txt"


def test_a_sweep_of_runs_without_a_test(tmp_path, one_line):
    job = plans.Job((plans.PlannedRun("a run", RunSpec(output_dir=str(tmp_path))),))
    check_accuracies(job, [{"accuracy": 1.0, "classes": "all"}])
    with pytest.raises(ValueError, match="has no accuracy") as error:
        check_accuracies(job, [{"classes": "all"}])
    one_line(error)


@pytest.mark.parametrize("files", [5, 0.5, [], "x", None], ids=str)
def test_checksums_of_a_folder_that_are_none(tmp_path, files, one_line):
    write_json({"files": files}, tmp_path / "export.json")
    with pytest.raises(ValueError, match="checksums") as error:
        find(str(tmp_path))
    one_line(error)


@pytest.mark.parametrize("config", [{"model_cfg": "x"}, {"model_cfg": {}}, {"model_cfg": {"vision_cfg": 5}}], ids=str)
def test_damaged_configs_are_told_without_words_of_python(tmp_path, config, one_line):
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    write_json(config, tmp_path / "open_clip_config.json")
    with pytest.raises(ValueError, match="damaged config .(it lacks '|a value is of another type)") as error:
        find(str(tmp_path))
    assert "object" not in one_line(error) and "Error" not in one_line(error)


@pytest.mark.parametrize("processor", [{"crop_size": []}, {"crop_size": {}}, {"crop_size": 5}, {"x": 1}], ids=str)
def test_a_processor_without_a_size_beside_weights_of_openai(tmp_path, processor, one_line):
    (tmp_path / "model.pt").write_bytes(b"")
    write_json(processor, tmp_path / "preprocessor_config.json")
    with pytest.raises(ValueError, match="damaged config") as error:
        find(str(tmp_path / "model.pt"))
    one_line(error)


def test_annotations_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(ValueError, match="is a device, a pipe or a socket"):
        list(read_lines(str(tmp_path / "list.txt"), "image class"))


def test_lists_that_are_no_files_or_nested(tmp_path, one_line):
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="line 1 is no JSON") as error:
        find_images(str(tmp_path / "deep.jsonl"))
    one_line(error)
    for suffix in ("csv", "json", "jsonl"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        with pytest.raises(ValueError, match="is a device, a pipe or a socket"):
            find_images(str(tmp_path / f"pipe.{suffix}"))


def test_settings_without_an_effect_are_errors(tmp_path, pictures, capsys):
    words = ["--trainer", "ZeroshotCLIP", "--root", str(pictures), "--output-dir", str(tmp_path / "OUT")]
    for more, told in (
        (["--source-domains", "nope"], "Shapes has no domains (got nope)"),
        (["--target-domains", "nope"], "leave out DATASET.TARGET_DOMAINS"),
        (["--eval-only", "--model-dir", str(tmp_path / "nowhere")], "there is no"),
    ):
        assert main([*words, *more, "VERBOSE", "False"]) == 1
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1


def test_one_class_is_no_task(tmp_path, capsys):
    names = dict(list(own_photos.COLOURS.items())[:2])
    folder = own_photos.make_photos(tmp_path / "photos", n=4, classes=names)
    words = ["--images", str(folder), "--output-dir", str(tmp_path / "OUT"), "DATASET.SUBSAMPLE_CLASSES", "new"]
    assert main([*words, "VERBOSE", "False"]) == 1
    assert "has one class: a classifier needs two or more" in capsys.readouterr().err


def test_an_output_path_that_is_too_long(capsys, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "/".join(["x" * 20] * 210)
    words = ["--trainer", "ZeroshotCLIP", "--root", str(pictures), "--output-dir", path, "VERBOSE", "False"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: OUTPUT_DIR must have at most") and err.count("\n") == 1 and not os.listdir(tmp_path)


def test_list_downloads_nothing(monkeypatch, capsys):
    monkeypatch.setattr(prepare, "prepare", None)
    assert prepare.main(["--list", "all"]) == 0 and "Caltech101" in capsys.readouterr().out


def test_drawing_leaves_the_random_numbers_alone(tmp_path):
    """A run that draws its data set goes on from the same numbers as one that finds it drawn."""

    class Drawn(DrawnDataset):
        dataset_dir = "drawn"

        def pictures(self):
            from PIL import Image

            random.random(), np.random.rand(), torch.rand(1)
            for part in ("train", "val", "test"):
                yield part, 0, "a", Image.new("RGB", (4, 4))

    torch.manual_seed(1)
    random.seed(1)
    wanted = torch.rand(1).item(), random.random()
    torch.manual_seed(1)
    random.seed(1)
    data = Drawn.__new__(Drawn)
    data.set_paths(str(tmp_path))
    data.draw()
    assert (torch.rand(1).item(), random.random()) == wanted and (tmp_path / "drawn" / "split.json").exists()


# ------------------------------------------------------------------ small files, much work


def test_a_matlab_file_that_unpacks_to_far_more(tmp_path, one_line):
    labels = np.random.default_rng().integers(1, 100, 1000).astype(np.uint8)
    for packed in (False, True):
        scipy.io.savemat(tmp_path / "labels.mat", {"labels": labels}, do_compression=packed)
        assert read_mat(str(tmp_path / "labels.mat"), "labels") == labels.tolist()
    scipy.io.savemat(tmp_path / "labels.mat", {"labels": np.zeros(2**26, np.uint8)}, do_compression=True)
    assert (tmp_path / "labels.mat").stat().st_size < 100_000
    with pytest.raises(ValueError, match="unpacks to more than 32 MB") as error:
        read_mat(str(tmp_path / "labels.mat"), "labels")
    assert one_line(error)


def test_an_index_of_indexes(tmp_path, one_line):
    """Forty small files that name each other would be read 2**20 times."""
    for k in range(20):
        names = {"x": f"a{k + 1}.index.json", "y": f"b{k + 1}.index.json"}
        for letter in "ab":
            write_json({"weight_map": names}, tmp_path / f"{letter}{k}.index.json")
    with pytest.raises(ValueError, match="names another index") as error:
        read_weights(str(tmp_path / "a0.index.json"))
    assert one_line(error)


def test_the_first_line_of_a_csv_is_a_field_without_end(tmp_path, one_line):
    (tmp_path / "list.csv").write_text('path,"' + "a" * 200_000 + "\n")
    with pytest.raises(ValueError, match="line 1: field larger than field limit") as error:
        from_csv(str(tmp_path / "list.csv"))
    assert one_line(error)


def test_pairs_of_a_yaml_file_that_name_each_other(tmp_path):
    """Thirty lines whose text would have 2**30 entries."""
    lines = ["a0: &a0 !!pairs [{x: 1}]"] + [
        f"a{k}: &a{k} !!pairs [{{x: *a{k - 1}}}, {{y: *a{k - 1}}}]" for k in range(1, 30)
    ]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UnusableResult, match="no config of a run"):
        read_config(tmp_path / "config.yaml")


def test_annotations_have_a_limit_of_size(tmp_path, one_line):
    with open(tmp_path / "list.txt", "wb") as f:
        f.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ValueError, match="more than 67.1 MB") as error:
        list(read_lines(str(tmp_path / "list.txt"), "PATH LABEL"))
    assert one_line(error)
