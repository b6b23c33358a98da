"""The demo: base-to-new on the embedded Shapes with ZeroshotCLIP, CoOp and OrthCR, seeds 1-3, 16 shots.

    python -m scripts.demo [--output-dir output/demo]

It trains for real, writes summary.json, report.html, report.md, report.csv and the runs, and ends with a table. The
same command given again resumes.
"""

import sys
from pathlib import Path

from dassl.infrastructure.command import command
from dassl.utils import write_json
from orthcr.compare.plans import Job, execute, make_parser
from orthcr.compare.stages import SEEDS, Method, Stages
from orthcr.reports.comparison import costs_of, grids
from orthcr.reports.page import draw_examples, figure, page, section
from orthcr.reports.pictures import save
from orthcr.reports.report import write_report
from orthcr.reports.tables import cost_table, harmonic_mean
from orthcr.reports.training import draw_loss_and_accuracy, draw_orthogonality

ROOT = Path(__file__).resolve().parents[1]

SECONDS = {"ZeroshotCLIP": 3.0, "CoOp": 17.0, "OrthCR": 45.0}  # of a run on 2 CPU cores; for the order and the ETA only
TEXT = """Each method adapts the tiny CLIP from 16 images of each of 20 base classes and is tested on these classes and
on 20 classes that it never saw. Mean ± standard deviation over seeds {seeds}; accuracy in percent; {device}, PyTorch
{torch}."""


def main(argv: list[str] | None = None) -> list[str]:
    """Run the demo and write its report; return a line for each method and seed that failed."""
    args = make_parser(__doc__, "demo").parse_args(argv)
    plan, summary, device = {}, {}, {}
    for trainer, seconds in SECONDS.items():
        stages = Stages(Method(trainer), ROOT / "data", args.output_dir)
        for seed in SEEDS:
            runs = stages.base2new_train("shapes", seed), stages.base2new_test("shapes", seed)
            plan[trainer, seed] = Job(runs, seconds)

    def on_job_done(job: Job, results: list[dict]) -> str:
        base, new = results
        row = {
            "trainer": base["trainer"],
            "dataset": base["dataset"],
            "seed": base["seed"],
            "base": base["accuracy"],
            "new": new["accuracy"],
            "hm": harmonic_mean(base["accuracy"], new["accuracy"]),
            "trainable_params": base["trainable_params"],
            "seconds": base["seconds"],
        }
        summary[row["trainer"], row["seed"]] = row
        device.update(device=base["device"], torch=base["versions"]["torch"])
        name = f"[{len(summary)}/{len(plan)}] {row['trainer']} seed {row['seed']}"
        figures = f"base {row['base']:.1f}  new {row['new']:.1f}  H {row['hm']:.1f}  ({row['seconds']:.0f} s)"
        return f"{name}: {figures}"

    print("Base-to-new on Shapes, 16 shots, tiny CLIP: 3 methods x 3 seeds, a few minutes on 2 CPU cores", flush=True)
    failures = execute(list(plan.values()), args.workers, "demo", on_job_done)
    if failures:
        return failures
    out = args.output_dir
    write_json([summary[key] for key in plan], str(out / "summary.json"))
    (table,) = write_report([out / "base2new"], output_dir=out).tables
    seeds = ", ".join(map(str, SEEDS))
    print(f"\n{cost_table(table.runs)}\n\nmean ± standard deviation over seeds {seeds}; accuracy in percent")

    trainings = {trainer: [plan[trainer, seed].runs[0].folder for seed in SEEDS] for trainer in SECONDS}
    pictures = {out / f"{table.slug}.png": "Accuracy of each method on base and new classes, and the harmonic mean."}
    pictures[save(draw_loss_and_accuracy(trainings), out / "training.png")] = (
        "Loss and training accuracy of each epoch, mean over seeds with the range between them."
    )
    pictures[save(draw_orthogonality(trainings["OrthCR"]), out / "orthogonality.png")] = (
        "Distance of R from an orthogonal matrix, and relative change of the hyperspherical energy of the weights."
    )
    pictures[save(draw_examples(ROOT / "data" / "shapes"), out / "shapes.png")] = (
        "Some images of the base and of the new classes, as the methods get them."
    )
    text = TEXT.format(seeds=seeds, **device)
    figures = [figure(path, caption) for path, caption in pictures.items()]
    body = [section(table.title, [*grids(table, costs_of(table)), *figures], table.notes)]
    (out / "report.html").write_text(page("Base-to-new on Shapes", text, body), encoding="utf-8")
    print(f"{out / 'summary.json'}\n{out / 'report.html'}")
    return []


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: make demo resumes the runs", 1))
