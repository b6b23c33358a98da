"""Base-to-new on the embedded Shapes: ZeroshotCLIP, CoOp and OrthCR, seeds 1-3, 16 shots, real training.

    python scripts/demo.py [--output-dir output/demo]

Writes summary.json, report.html, report.md, report.csv and the runs themselves; ends with a table. Given again, it goes
on where it was.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from dassl.utils import write_json  # noqa: E402
from experiments.command import command  # noqa: E402
from experiments.plans import Job, execute, parser  # noqa: E402
from experiments.protocols import SEEDS, Method, Stages  # noqa: E402
from reports.comparison import costs_of, grids  # noqa: E402
from reports.page import examples, figure, page, section  # noqa: E402
from reports.pictures import save  # noqa: E402
from reports.report import write_report  # noqa: E402
from reports.tables import costs, harmonic_mean  # noqa: E402
from reports.training import loss_and_accuracy, orthogonality  # noqa: E402

SECONDS = {"ZeroshotCLIP": 3.0, "CoOp": 17.0, "OrthCR": 45.0}  # a training here; for the order and the ETA only
TEXT = """Each method adapts the tiny CLIP from 16 images of each of 20 base classes and is tested on these classes and
on 20 classes that it never saw. Mean ± standard deviation over seeds {seeds}; accuracy in percent; {device}, PyTorch
{torch}."""


CAPTIONS = {
    "training": "Loss and training accuracy of each epoch, mean over seeds with the range between them.",
    "orthogonality": "Distance of R from orthogonal, and change of the hyperspherical energy of a weight's rows.",
    "shapes": "Images of the base and of the new classes, as the methods get them.",
}


def main(argv: list[str] | None = None) -> list[str]:
    """Returns a line for each method and seed that failed."""
    args = parser(__doc__, "demo").parse_args(argv)
    plan, summary, device = {}, {}, {}
    for trainer, seconds in SECONDS.items():
        stages = Stages(Method(trainer), ROOT / "data", args.output_dir)
        for seed in SEEDS:
            runs = stages.base2new_train("shapes", seed), stages.base2new_test("shapes", seed)
            plan[trainer, seed] = Job(runs, seconds)

    def done(job: Job, results: list[dict]) -> str:
        base, new = results
        s = {key: base[key] for key in ("trainer", "dataset", "seed")}
        s |= {"base": base["accuracy"], "new": new["accuracy"]}
        s |= {"hm": harmonic_mean(s["base"], s["new"])} | {key: base[key] for key in ("trainable_params", "seconds")}
        summary[s["trainer"], s["seed"]] = s
        device.update(device=base["device"], torch=base["versions"]["torch"])
        which = f"[{len(summary)}/{len(plan)}] {s['trainer']} seed {s['seed']}"
        figures = f"base {s['base']:.1f}  new {s['new']:.1f}  H {s['hm']:.1f}  ({s['seconds']:.0f} s)"
        return f"{which}: {figures}"

    print("Base-to-new on Shapes, 16 shots, tiny CLIP: 3 methods x 3 seeds, a few minutes on 2 CPU cores", flush=True)
    failed = execute(list(plan.values()), args.workers, "demo", done)
    if failed:
        return failed
    out = args.output_dir
    write_json([summary[key] for key in plan], str(out / "summary.json"))
    (table,) = write_report([out / "base2new"], output_dir=out).tables
    seeds = ", ".join(map(str, SEEDS))
    print(f"\n{costs(table.runs)}\n\nmean ± standard deviation over seeds {seeds}; accuracy in percent")

    trainings = {trainer: [plan[trainer, seed].runs[0].folder for seed in SEEDS] for trainer in SECONDS}
    pictures = {out / f"{table.slug}.png": "Accuracy of each method on base and new classes, and the harmonic mean."}
    for name, draw, given in (
        ("training", loss_and_accuracy, trainings),
        ("orthogonality", orthogonality, trainings["OrthCR"]),
        ("shapes", examples, ROOT / "data" / "shapes"),
    ):
        pictures[save(draw(given), out / f"{name}.png")] = CAPTIONS[name]
    text = TEXT.format(seeds=seeds, **device)
    figures = [figure(path, caption) for path, caption in pictures.items()]
    body = [section(table.title, [*grids(table, costs_of(table)), *figures], table.notes)]
    (out / "report.html").write_text(page("Base-to-new on Shapes", text, body), encoding="utf-8")
    print(f"{out / 'summary.json'}\n{out / 'report.html'}")
    return []


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: make demo goes on with the runs that were under way", 1))
