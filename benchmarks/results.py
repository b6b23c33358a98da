"""The measurements: one JSON file, and tables of it."""

from collections import defaultdict
from pathlib import Path

from tabulate import tabulate

from dassl.infrastructure.files import atomic_write, read_json, write_json

from .cases import EVAL_BATCHES, Case

NAME = "results.json"
TITLES = {
    "train": "a training step",
    "eval": "a batch of an evaluation",
    "adapt": "a batch of an evaluation that adapts to each image",
}


class Results:
    """The results of a folder; those of an existing `results.json` are kept.

    Args:
        folder: folder of results.json and table.md.
        identity: device, torch, commit.

    Attributes:
        cases: the results of `measure.measure` by case.
        left_out: the reasons of other cases.

    Raises:
        ValueError: the file is of another device, torch or commit.
    """

    def __init__(self, folder: Path, identity: dict[str, str]):
        self.folder, self.identity = folder, identity
        self.cases: dict[Case, dict] = {}
        self.left_out: dict[Case, str] = {}
        if (folder / NAME).exists():
            content = read_json(folder / NAME)
            for key, value in identity.items():
                if content[key] != value:
                    difference = f"{folder / NAME} was measured with {key} {content[key]}, not {value}"
                    raise ValueError(f"{difference}: choose another --output-dir, or remove that one")
            self.cases = {case_of(result): result for result in content["cases"]}

    def write(self) -> None:
        """Write results.json and table.md."""
        content = {**self.identity, "cases": list(self.cases.values())}
        content["left_out"] = [{**case._asdict(), "reason": reason} for case, reason in self.left_out.items()]
        write_json(content, self.folder / NAME)
        with atomic_write(self.folder / "table.md") as f:
            f.write(self.text().encode())

    # ---------------------------------------------------------------- figures

    def seconds(self, case: Case, form: str, part: str = "") -> float | None:
        """Return the seconds of a step, of a batch that adapts, or of a batch of an evaluation of EVAL_BATCHES batches.

        Args:
            case: the case.
            form: formulation.
            part: part of a step: forward, backward or optimizer; "": the whole.

        Returns:
            None if it was not measured.
        """
        times = self.cases.get(case, {}).get(form)
        if times is None:
            return None
        if "later" in times:
            later_seconds = times["later"]["seconds"]
            return later_seconds + (times["first"]["seconds"] - later_seconds) / EVAL_BATCHES
        return times[part or ("step" if case.kind == "train" else "batch")]["seconds"]

    def reference(self, case: Case) -> tuple[float | None, bool]:
        """Return the reference's seconds, and True if they are measured.

        Other seconds are extrapolated on a line through the two largest numbers of classes that are measured. They are
        None if there are fewer.
        """
        seconds = self.seconds(case, "reference")
        if seconds is not None:
            return seconds, True
        measured_cases = [c for c, result in self.cases.items() if "reference" in result]
        similar_cases = [c for c in measured_cases if c._replace(classes=case.classes) == case]
        if len(similar_cases) < 2:
            return None, False
        a, b = sorted(similar_cases, key=lambda c: c.classes)[-2:]
        low, high = self.seconds(a, "reference"), self.seconds(b, "reference")
        return high + (high - low) / (b.classes - a.classes) * (case.classes - b.classes), False

    def ratio(self, case: Case) -> float | None:
        reference = self.reference(case)[0]
        return reference and reference / self.seconds(case, "ours")

    def predicted(self, case: Case) -> float:
        """Return the ratio reference / ours of the counted operations."""
        counted = self.cases[case]["counted"]
        return counted["reference"]["gflop"] / counted["ours"]["gflop"]

    def line(self, case: Case) -> str:
        reference, our_seconds, ratio = self.seconds(case, "reference"), self.seconds(case, "ours"), self.ratio(case)
        text = f"{case}: {our_seconds:.2f} s"
        if reference:
            text += f", the reference's {reference:.2f} s"
        if ratio:
            text += f", ratio {ratio:.2f}"
        return f"{text} (predicted {self.predicted(case):.2f})"

    # ---------------------------------------------------------------- tables

    def text(self) -> str:
        """Return the tables in Markdown."""
        parts = [", ".join(self.identity.values())]
        for backbone in dict.fromkeys(case.backbone for case in self.cases):
            for kind, row in (("train", self.step), ("eval", self.evaluation), ("adapt", self.adaptation)):
                cases = sorted(c for c in self.cases if (c.kind, c.backbone) == (kind, backbone))
                if cases:
                    table = tabulate([row(case) for case in cases], "keys", "github", disable_numparse=True)
                    parts.append(f"**{backbone}, {TITLES[kind]}**\n\n{table}")
        skipped_lines = [f"- {case}: the reference {r['skipped']}" for case, r in self.cases.items() if "skipped" in r]
        if skipped_lines:
            parts.append("\n".join(["Reference not run:\n", *skipped_lines]))
        if self.left_out:
            parts.append("\n".join(["Left out (classes x batch):\n", *self.gaps()]))
        return "\n\n".join(parts) + "\n"

    def step(self, case: Case) -> dict[str, str]:
        result = self.cases[case]
        data = {name: result["data"][name]["seconds"] for name in ("first", "later")}
        seconds = self.seconds(case, "ours")
        share = [f"{100 * data[name] / (data[name] + seconds):.1f}" for name in ("later", "first")]
        return {
            **self.head(case),
            **{part: f"{self.seconds(case, 'ours', part):.3f}" for part in ("forward", "backward", "optimizer")},
            "wall s": f"{result['ours']['step']['wall']:.2f}",
            "data %, first epoch": "{}, {}".format(*share),
            **self.memory(case),
        }

    def evaluation(self, case: Case) -> dict[str, str]:
        reference, our_seconds = self.seconds(case, "reference"), self.seconds(case, "ours")
        later_seconds = self.cases[case]["ours"]["later"]["seconds"]
        return {
            **self.head(case),
            "reference images/s": f"{case.batch / reference:.2f}" if reference else "",
            "ours images/s": f"{case.batch / our_seconds:.2f}",
            "with the text at hand": f"{case.batch / later_seconds:.2f}",
        }

    def adaptation(self, case: Case) -> dict[str, str]:
        reference, _ = self.reference(case)
        return {
            **self.head(case),
            "reference images/s": f"{case.batch / reference:.4f}" if reference else "",
            "ours images/s": f"{case.batch / self.seconds(case, 'ours'):.4f}",
            "wall s": f"{self.cases[case]['ours']['batch']['wall']:.2f}",
            **self.memory(case),
        }

    def memory(self, case: Case) -> dict[str, str]:
        result = self.cases[case]
        return {
            "reference MiB": f"{result['reference']['peak_mib']:,.0f}" if "reference" in result else "",
            "ours MiB": f"{result['ours']['peak_mib']:,.0f}",
        }

    def head(self, case: Case) -> dict[str, str]:
        (reference, is_measured), ratio = self.reference(case), self.ratio(case)
        sign = "" if is_measured else "~"
        return {
            "trainer": case.trainer,
            "classes": f"{case.classes:,}",
            "batch": str(case.batch),
            "prec": case.prec,
            "reference s": f"{sign}{reference:.3f}" if reference else "",
            "ours s": f"{self.seconds(case, 'ours'):.3f}",
            "ratio": f"{sign}{ratio:.2f}" if ratio else "",
            "predicted": f"{self.predicted(case):.2f}",
        }

    def gaps(self) -> list[str]:
        """Return a line for each kind of case that was left out."""
        kinds = defaultdict(list)
        for case, reason in self.left_out.items():
            kinds[case.kind, case.trainer, case.backbone, case.prec, reason].append(f"{case.classes} x {case.batch}")
        return [
            f"- {kind} {trainer}, {backbone}, {prec}, {reason}: {', '.join(sizes)}"
            for (kind, trainer, backbone, prec, reason), sizes in kinds.items()
        ]


def case_of(result: dict) -> Case:
    return Case(*(result[field] for field in Case._fields))
