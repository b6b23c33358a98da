"""Optional packages: one that is missing is told at once, before anything slow is imported or loaded."""

import ast
import sys

import pytest

import benchmark
import export
import predict
from orthcr import packages


@pytest.mark.parametrize(
    "main, argv, missing, module, extra",
    [
        (export.main, "--model-dir OUT --to onnx --output NEW", "onnxscript", "orthcr.deploy.exporter", "onnx"),
        (export.main, "--model-dir OUT --to onnx --output NEW", "onnxruntime", "orthcr.deploy.exporter", "onnx"),
        (predict.main, "--model-dir OUT --serve", "gradio", "orthcr.deploy.predictor", "serve"),
        (predict.main, "--model-dir ONNX photo.jpg", "onnxruntime", "orthcr.deploy.predictor", "onnx"),
        (benchmark.main, "--engine ray", "ray", "orthcr.compare.benchmark_run", "cluster"),
    ],
)
def test_a_missing_package_is_told_at_once(main, argv, missing, module, extra, monkeypatch, capsys, tmp_path):
    (tmp_path / "ONNX").mkdir()
    (tmp_path / "ONNX" / "model.onnx").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == missing else sys.modules["sys"])
    monkeypatch.setitem(sys.modules, module, None)  # importing it would be an ImportError
    assert main(argv.split()) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and missing in said and f"pip install -e '.[{extra}]'" in said


def test_the_set_up_brings_what_the_readmes_commands_need(root):
    """`make demo` installs these extras; the README's third command exports to ONNX, its fourth reads that."""
    (line,) = [line for line in (root / "Makefile").read_text().splitlines() if "--editable" in line]
    extras = line.split("[")[1].split("]")[0].split(",")
    assigned = [node for node in ast.parse((root / "setup.py").read_text()).body if isinstance(node, ast.Assign)]
    (requirements,) = [ast.literal_eval(node.value) for node in assigned if node.targets[0].id == "ONNX"]
    brought = {requirement.split(">")[0] for requirement in requirements}
    assert "onnx" in extras and brought == set(packages.ONNX)
