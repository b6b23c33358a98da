"""Every command ends as it should, whatever its output can take, and also where it has none."""

import io
import os
import subprocess
import sys

import own_photos
import pytest
import trees
from own_photos import SMALL, make_photos

from dassl.infrastructure import streams
from dassl.utils import Logger, read_json

NAMES = {"猫": (1, 2, 200), "café": (200, 3, 3), "狗 dog": (3, 200, 3)}
CASES = {  # redirections of the shell, and the encoding
    "cp1252": ("", "cp1252"),
    "ascii": ("", "ascii"),
    "no stdout": ("1>&-", "utf-8"),
    "no stderr": ("2>&-", "utf-8"),
    "neither": ("1>&- 2>&-", "utf-8"),
    "none, nor stdin": ("0<&- 1>&- 2>&-", "utf-8"),
}
photos = own_photos.photos  # the fixture


@pytest.fixture
def start(root, tmp_path):
    """start(case, words...): (exit status, output, error) of a command in a process of its own."""

    def run(case, *words):
        redirections, encoding = CASES[case]
        env = os.environ | {"PYTHONPATH": str(root), "PYTHONIOENCODING": encoding, "PYTHONWARNINGS": "ignore"}
        command = ["bash", "-c", f'exec "$@" {redirections}', "bash", sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=170)
        return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)

    return run


@pytest.mark.parametrize("case", ["cp1252", "none, nor stdin"])
def test_all_commands_on_any_stream(case, start, root, pictures, tmp_path):
    folder, out = make_photos(tmp_path / "photos", 4, NAMES), tmp_path / "OUT"
    words = ["--images", folder, "--output-dir", out, *SMALL, "OPTIM.MAX_EPOCH", 1]
    plan = tmp_path / "plan"
    bench = ["--trainers", "ZeroshotCLIP", "--protocol", "few_shot", "--datasets", "shapes", "--seeds", 1, "--shots", 1]
    bench += ["--workers", 1]
    commands = {
        "train": words,
        "predict": ["--model-dir", out, folder],
        "export": ["--model-dir", out, "--to", "openai", "--output", tmp_path / "export"],
        "benchmark": [*bench, "--root", pictures, "--output-dir", plan],
    }
    if case == "cp1252":  # the others print names of classes in the same way
        commands = {name: commands[name] for name in ("train", "predict")}
    shown = {}
    for name, argv in commands.items():
        status, shown[name], error = start(case, root / f"{name}.py", *argv)
        assert status == 0 and "Traceback" not in error, (name, error)
    results = read_json(out / "results.json")
    assert f"* accuracy: {results['accuracy']:.1f}%" in (out / "log.txt").read_text(encoding="utf-8")
    assert "猫" in (out / "log.txt").read_text(encoding="utf-8") and results["dataset"] == "Images"
    if case == "cp1252":
        assert "(\\u732b)" in shown["train"] and "\\u732b" in shown["predict"]
    else:
        assert list(plan.rglob("results.json")) and (tmp_path / "export" / "model.pt").exists()


@pytest.mark.parametrize("case", CASES)
def test_tables_and_errors_on_any_stream(case, start, root, tmp_path):
    """report.py, which starts without PyTorch: a table with names in Chinese, and an error with its status."""
    for seed in (1, 2):
        trees.train_and_new(tmp_path / "OUT", "猫café", "EuroSAT", seed, 80.0, 70.0)
    status, shown, error = start(case, root / "report.py", tmp_path / "OUT", "--output-dir", tmp_path / "report")
    assert status == 0 and "Traceback" not in error, error
    assert "猫café" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    if case in ("cp1252", "ascii"):
        assert {"cp1252": "\\u732bcafé", "ascii": "\\u732bcaf\\xe9"}[case] in shown
    status, _, error = start(case, root / "report.py", tmp_path / "nowhere")
    assert status == 1 and ("2>&-" in CASES[case][0] or error.startswith("error: "))


def test_help_and_other_modules(start):
    """Some that print before a command begins, and some that are no entry point."""
    for words in (["-m", "datasets.tools.prepare", "--list"], ["-m", "datasets.tools.verify"],
                  ["-m", "orthcr", "--help"], ["-m", "orthcr", "strength", "--help"]):  # fmt: skip
        status, _, error = start("no stdout", *words)
        assert "Traceback" not in error and "Error:" not in error, (words, error)
        assert status in (0, 1), words


def test_a_closed_descriptor_is_no_file(start, root, tmp_path):
    """What a library writes to descriptor 1 must not go into a file that is opened later."""
    (tmp_path / "program.py").write_text(
        "import os\n"
        "from dassl.infrastructure.streams import open_streams\n"
        "open_streams()\n"
        "with open('file', 'w') as f:\n"
        "    os.write(1, b'by a library')\n"
        "    os.write(2, b'by a library')\n"
        "    print('printed')\n"
    )
    assert start("none, nor stdin", tmp_path / "program.py")[0] == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_logger_writes_to_any_console(encoding, tmp_path, monkeypatch):
    """Also where no command has opened the streams: the file has everything."""
    console = io.TextIOWrapper(io.BytesIO(), encoding, "strict")
    monkeypatch.setattr(sys, "stdout", console)
    text = "猫 é \N{DOG FACE}\n"
    with Logger(str(tmp_path / "log.txt")) as log:
        log.write(text)
    console.flush()
    assert console.buffer.getvalue() == text.encode(encoding, "backslashreplace")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == text


def test_the_logger_without_a_console(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    log = Logger(str(tmp_path / "log.txt"))
    monkeypatch.setattr(sys, "stdout", log)
    print("猫")
    assert not sys.stdout.isatty()
    log.close()
    print("nowhere")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "猫\n"


@pytest.mark.parametrize("stream", [None, "closed"])
def test_bars_without_standard_error(stream, monkeypatch):
    if stream:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(streams.progress(range(3), desc="bar")) == [0, 1, 2]
    with streams.progress(total=3) as bar:
        bar.update()


def test_streams_that_are_open_are_kept(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), "latin-1", "strict")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, console)
    streams.open_streams()
    assert sys.stdout is sys.stderr is console
    print("猫 é", flush=True)
    assert console.buffer.getvalue() == b"\\u732b \xe9\n"
