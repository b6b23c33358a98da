"""The difference between two runs: settings and results."""

from pathlib import Path

from tabulate import tabulate

from dassl.infrastructure.files import read_json, visible
from orthcr.reports.runs import read_config

PATHS = ("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "DATASET.FEATURE_CACHE")
SHA256 = "SHA256"  # end of the keys that hold checksums of files
RESULTS = ("accuracy", "macro_f1", "ece", "trainable_params", "seconds")
MISSING = "-"


def difference(folder: str | Path, other_folder: str | Path) -> str:
    """Return a table of the settings that differ, except paths and checksums, and a table of the results.

    Args:
        folder: directory of a run.
        other_folder: directory of another run.

    Raises:
        FileNotFoundError: a directory has neither results.json nor config.yaml.
        ValueError: such a file is damaged.
    """
    (config, results), (other_config, other_results) = read_run(Path(folder)), read_run(Path(other_folder))
    keys = sorted(key for key in {*config, *other_config} if key not in PATHS and not key.endswith(SHA256))
    keys = [key for key in keys if config.get(key, MISSING) != other_config.get(key, MISSING)]
    rows = [[key, format_value(config, key), format_value(other_config, key)] for key in keys]
    settings = grid(["setting", str(folder), str(other_folder)], rows) if rows else "The runs have the same settings."
    figures = [[key, format_value(results, key), format_value(other_results, key)] for key in RESULTS]
    return "\n".join([settings, grid(["result", str(folder), str(other_folder)], figures)])


def read_run(folder: Path) -> tuple[dict, dict]:
    """Return the config of a run with dotted keys, and its results; {} as the results of an unfinished run."""
    path = folder / "results.json"
    if not path.exists():
        if not (folder / "config.yaml").exists():
            raise FileNotFoundError(f"{folder} has neither results.json nor config.yaml: give the directory of a run")
        return read_config(folder / "config.yaml"), {}
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("config"), dict):
        raise ValueError(f"{path} has no config: give a run of this code base")
    return results["config"], results


def format_value(values: dict, key: str) -> str:
    if key not in values:
        return MISSING
    value = values[key]
    return visible(f"{value:.2f}" if isinstance(value, float) and key in RESULTS else str(value))[:80]


def grid(heads: list[str], rows: list[list[str]]) -> str:
    align = ["left", "right", "right"]
    return tabulate(rows, list(map(visible, heads)), "simple_outline", colalign=align, disable_numparse=True)
