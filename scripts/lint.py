"""Check what ruff has no rule for: docstrings without a verb or a subject, vague names, arithmetic with booleans.

    python -m scripts.lint [FILE OR FOLDER ...]      default: all of the project but its tests

Prints a line for each place and a count of each kind; exits with 1 if there is any.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FIRST_WORDS = set("What That Those Of From How Which Whether All In".split())
VAGUE = set("found given told kept taken known had some many own mine theirs where away".split())
BOOLEAN = (ast.Compare, ast.BoolOp)
REPEATED = (ast.JoinedStr, ast.List, ast.Tuple)


def problems(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yield line, kind and words of each problem in a module."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            words = (ast.get_docstring(node) or "").split()
            if words and (words[0] in FIRST_WORDS or words[0][0].isdigit()):
                yield getattr(node, "lineno", 1), "docstring", f'begins with "{words[0]}"'
        is_stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        name = node.id if is_stored else node.arg if isinstance(node, ast.arg) else ""
        if name in VAGUE:
            yield node.lineno, "name", f'"{name}" says nothing of what it holds'
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            sides = (node.left, node.right)
            if any(map(is_boolean, sides)) and any(map(is_repeated, sides)):
                yield node.lineno, "boolean", "a text or list is multiplied by a boolean: use if"


def is_boolean(node: ast.expr) -> bool:
    """Return whether an expression is a truth value by its form."""
    is_negation = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    calls_predicate = (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("bool", "isinstance")
    )
    return isinstance(node, BOOLEAN) or is_negation or calls_predicate


def is_repeated(node: ast.expr) -> bool:
    """Return whether an expression is a text, a list or a tuple by its form."""
    return isinstance(node, REPEATED) or isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


def files(words: list[str]) -> Iterator[Path]:
    """Yield the Python files that git has below these paths, but the tests."""
    names = subprocess.check_output(["git", "ls-files", "-z", "--", *words], cwd=ROOT, text=True).split("\0")
    for name in names:
        if name.endswith(".py") and not name.startswith("tests/"):
            yield ROOT / name


def main(words: list[str]) -> int:
    counts = Counter()
    for path in files(words):
        for line, kind, text in problems(ast.parse(path.read_text(encoding="utf-8"))):
            print(f"{path.relative_to(ROOT)}:{line}: {text}")
            counts[kind] += 1
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items())) or "nothing found")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
