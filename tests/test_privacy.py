"""Nothing is sent anywhere: optional packages are told so before they are imported."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from test_export import make_run, small  # noqa: F401

from trainers.shared.privacy import VARIABLES

# In the child: whatever Python code connects to, or asks a name server for, beyond this machine is an error
WATCHED = """
import sys

def audit(event, arguments):
    address = arguments[1] if event == "socket.connect" else ""
    if isinstance(address, tuple) and not address[0].startswith(("127.", "::1")):
        print("SENT", address, file=sys.stderr)
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "::1", "localhost", None, b"localhost"):
        print("ASKED", arguments[0], file=sys.stderr)

sys.addaudithook(audit)
import {module}
sys.exit({module}.main({words!r}))
"""


def run_watched(root, home, module, *words):
    """Run an entry point with an empty home; returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES and not name.startswith("XDG")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED.format(module=module, words=list(map(str, words)))],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stderr for word in ("SENT", "ASKED", "pkg_resources")), done.stderr
    return done.stdout


@pytest.mark.skipif(not find_spec("onnxscript"), reason="there is no onnxscript: pip install -e '.[export]'")
def test_onnxruntime_leaves_nothing(make_run, root, tmp_path):  # noqa: F811
    """Without the variable it writes an identifier below the cache, and looks up its maker's server."""
    from PIL import Image

    home, run, folder = tmp_path / "home", make_run("ZeroshotCLIP"), tmp_path / "exported"
    home.mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    run_watched(root, home, "export", "--model-dir", run, "--to", "onnx", "--output", folder)
    assert "a.png" in run_watched(root, home, "predict", "--model-dir", folder, tmp_path / "a.png")
    assert [path.name for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(not find_spec("open_clip"), reason="there is no open_clip: pip install -e '.[export]'")
def test_open_clip_leaves_nothing(make_run, root, tmp_path):  # noqa: F811
    home, run = tmp_path / "home", make_run("ZeroshotCLIP")
    home.mkdir()
    run_watched(root, home, "export", "--model-dir", run, "--to", "open_clip", "--output", tmp_path / "exported")
    assert [path.name for path in home.rglob("*") if path.is_file()] == []


def test_what_the_user_has_set_stays(monkeypatch):
    from trainers.shared.privacy import report_nothing

    monkeypatch.setenv("DO_NOT_TRACK", "0")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    report_nothing()
    assert os.environ["DO_NOT_TRACK"] == "0" and os.environ["ORT_DISABLE_TELEMETRY"] == "1"
