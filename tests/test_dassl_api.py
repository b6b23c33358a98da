"""What dassl/ promises to keep of Dassl.pytorch: every name at its import path, and nothing of it unexercised."""

import ast
import importlib
import re

import pytest

import dassl
from dassl.absent import ABSENT
from dassl.data.datasets import build_dataset
from dassl.engine import build_trainer
from dassl.modeling import build_backbone, build_network


def promised():
    """{module: [names]} of the tables in dassl's docstring."""
    names, module = {}, None
    for line in dassl.__doc__.splitlines():
        if line.startswith("    "):
            words = line.split()
            module = words.pop(0) if words[0].startswith("dassl.") else module
            names.setdefault(module, []).extend(words)
    return names


@pytest.mark.parametrize("module", promised())
def test_names_are_there(module):
    found = importlib.import_module(module)
    assert not [name for name in promised()[module] if not hasattr(found, name)]


def test_every_promised_name_is_used_in_a_test(root):
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (root / "tests").glob("*.py")]
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not {name for names in promised().values() for name in names} - used - {"_C"}


def test_the_table_of_public_names(root):
    """Each name of the page imports, or fails with the file of Dassl that has it; and the page has all of them."""
    rows = re.findall(
        r"^\| `(dassl[\w.]*)` \| (.*) \| (yes|no) \| (.*) ?\|$", (root / "docs" / "coop.md").read_text(), re.MULTILINE
    )
    tables = {"yes": {}, "no": {}}
    for module, names, here, why in rows:
        tables[here][module] = names.replace("`", "").split()
        assert bool(why.strip()) == (here == "no"), module
        for name in tables[here][module]:
            if here == "yes":
                exec(f"from {module} import {name}", {})
            else:
                with pytest.raises(ImportError, match=f"{name} is not in this dassl. It is .* of dassl/.*docs/coop.md"):
                    exec(f"from {module} import {name}", {})
    assert tables["yes"] == promised()
    assert tables["no"] == {module: list(names) for module, names in ABSENT.items()}


def test_a_name_that_nobody_knows_is_an_ordinary_error():
    for module in ABSENT:
        assert not hasattr(importlib.import_module(module), "nonsense")
        with pytest.raises(ImportError, match="cannot import name"):
            exec(f"from {module} import nonsense", {})


def test_what_is_not_here_is_named_by_the_registries_too(bare_cfg, one_line):
    for build, module in (
        (lambda: build_trainer(bare_cfg("TRAINER.NAME", "DANN")), "dassl/engine/da/"),
        (lambda: build_dataset(bare_cfg("DATASET.NAME", "PACS")), "dassl/data/datasets/dg/"),
        (lambda: build_backbone("vgg16"), "dassl/modeling/backbone/vgg"),
        (lambda: build_network("fcn_3x64_gctx"), "dassl/modeling/network/"),
    ):
        with pytest.raises(ValueError, match="is not in this dassl") as error:
            build()
        assert module in one_line(error)
