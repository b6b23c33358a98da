"""What dassl/ promises to keep of Dassl.pytorch: every name at its import path, and nothing of it unexercised."""

import ast
import importlib

import pytest

import dassl


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
