"""Optional packages. The check comes before anything else is imported and needs nothing but Python."""

from importlib.util import find_spec

ONNX = ("onnx", "onnxscript", "onnxruntime")

PEFT = ("peft", "transformers")


def check_installed(packages: tuple[str, ...], purpose: str, extra: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        packages: their import names.
        purpose: the flag or file that needs them, for the message.
        extra: the extra of setup.py that brings them.

    Raises:
        ValueError: one is missing; the message has the command that installs it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(f"{purpose} needs {', '.join(missing)}: in the clone, pip install -e '.[{extra}]'")
