"""Many methods on many data sets, by any of the four protocols, as one plan."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import datasets
import trainers
from dassl.command import USER_ERRORS
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability, locked
from trainers.base import ClipTrainer, node_of
from trainers.shared.backbones import fetch

from . import engines
from .config import discover, is_foreign, owner_of, setup_cfg, strength_key
from .flags import NAMES, parse
from .plans import FINISHED_MAY_DIFFER, Job, execute, tell
from .protocols import Method, Stages, row_of, source_of, targets, variants
from .run import differences

# the part of the embedded data that each protocol trains or tests on
EMBEDDED = {"base2new": ["shapes"], "fewshot": ["digits"], "xd": targets("shapes"), "dg": variants("shapes")}


def run(args: argparse.Namespace) -> tuple[list[str], dict[Path, str]]:
    """Make all runs.

    Returns:
        A line for each model that failed; and of the directories that hold results of other settings why.

    Raises:
        ValueError: something cannot be planned.
    """
    names = list(NAMES) if "all" in args.protocol else args.protocol
    methods = [Method(trainer, args.cfg, opts) for trainer, opts in share(args.opts, registered(args.trainers)).items()]
    jobs = plan(methods, [NAMES[name] for name in names], args)
    clips = backbones(jobs)
    engine = engine_of(args, clips)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for planned in (planned for job in jobs for planned in job.runs):
        check_no_link(planned.folder, args.output_dir)
    planned = f"{sum(len(job.runs) for job in jobs)} runs of {len(methods)} methods on {', '.join(clips)}"
    print(f"{planned}; logs and results: {args.output_dir}", flush=True)
    with locked(args.output_dir, f"another benchmark is at work in {args.output_dir}: wait, or choose another"):
        finished = set()

        def done(job: Job, results: list[dict]) -> str:
            finished.add(job)
            return tell(job, results)

        failed = execute(jobs, title=args.output_dir.name, done=done, engine=engine)
        return failed, outdated([job for job in jobs if job not in finished])


def check_no_link(folder: Path, output_dir: Path) -> None:
    """Raise ValueError if a folder of the output directory lies behind a link, which leads somewhere else."""
    if folder.resolve() != output_dir.resolve() / folder.relative_to(output_dir):
        raise ValueError(f"{folder} lies behind a link: remove the link, or give another --output-dir")


def outdated(jobs: list[Job]) -> dict[Path, str]:
    """Return the folders of runs whose results are not those of their settings now, with the reason."""
    reasons = {}
    for planned in (planned for job in jobs for planned in job.runs):
        result = planned.folder / "results.json"
        if not result.exists():
            continue
        if planned.model in reasons:
            reasons[planned.folder] = "it is of a model with other settings"
            continue
        try:
            different = differences(setup_cfg(parse(list(planned.argv))), FINISHED_MAY_DIFFER)
        except USER_ERRORS as error:
            reasons[planned.folder] = f"its settings cannot be compared ({error})"
            continue
        if different:
            reasons[planned.folder] = f"it was made with {', '.join(different)}"
        elif planned.model and result.stat().st_mtime < (planned.model / "results.json").stat().st_mtime:
            reasons[planned.folder] = "it is older than its model"
    return reasons


def share(opts: tuple[str, ...], names: list[str]) -> dict[str, tuple[str, ...]]:
    """The KEY VALUE pairs of each trainer: those of a method's node are for it alone.

    Raises:
        ValueError: a pair that none of them takes.
    """
    pairs, node = list(zip(opts[::2], opts[1::2], strict=False)), {n: node_of(TRAINER_REGISTRY.get(n)) for n in names}
    of = {key: key.split(".")[1] for key, _ in pairs if key.startswith("TRAINER.")}
    nobodys = next((key for key, name in of.items() if name not in node.values()), None)
    if nobodys:
        raise ValueError(f"{nobodys} is of none of these trainers: {', '.join(names)}")
    mine = {n: [pair for pair in pairs if of.get(pair[0], node[n]) == node[n]] for n in names}
    return {n: tuple(word for pair in taken for word in pair) for n, taken in mine.items()}


def registered(words: list[str]) -> list[str]:
    """The trainers that they name, each once, zero-shot first; "all" is every ClipTrainer."""
    for package in (trainers, datasets):
        discover(package)
    known = TRAINER_REGISTRY.registered_names()
    for word in words:
        check_availability(word, [*known, "all"])
    every = [name for name in known if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]
    named = [name for word in words for name in (every if word == "all" else [word])]
    return sorted(dict.fromkeys(named), key=learns)


def learns(trainer: str) -> bool:
    return bool(getattr(TRAINER_REGISTRY.get(trainer), "learner", True))


def tell_settings(args: argparse.Namespace) -> None:
    """Print the settings of methods and data sets of somebody's own, of which nobody has published any."""
    for name in registered(args.trainers):
        if not args.cfg and not is_foreign(name) and not owner_of("*", name):
            print(f"{name} has no YAML in configs/trainers/{name}: it runs with the defaults and what the options say")
    own = [name for name in args.datasets if name not in ("all", "embedded") and row_of(name) is None]
    named = args.cfg or "MODEL.BACKBONE.NAME" in args.opts[::2]
    if own and not named:
        settings = f"{', '.join(own)}: each method has its published settings for ViT-B/16"
        print(f"{settings} (335 MB are downloaded once); for the embedded CLIP give --cfg tiny", flush=True)


def engine_of(args: argparse.Namespace, backbones: list[str]) -> Callable:
    """Return the engine of the runs, when what they need is there. Raises ValueError or OSError if it is not."""
    tell_settings(args)
    if args.engine == "local":
        for name in backbones:  # before any run, each of which would fail, or download it, too
            fetch(name)
    if args.engine == "ray":
        return partial(engines.on_ray, address=args.address, per_gpu=args.per_gpu or 1)
    gib = args.memory or max(map(engines.memory_of, backbones))
    return partial(engines.local, slots=engines.slots(gib, args.workers, args.per_gpu))


def backbones(jobs: list[Job]) -> list[str]:
    """Return those of the trainings, from their configs: what is wrong with one is told before anything runs."""
    each = {job.runs[0].argv[job.runs[0].argv.index("--dataset-config-file") :]: job.runs[0] for job in jobs}
    kinds = {(run.argv[1], *(word for word in argv if word.endswith("yaml"))): run for argv, run in each.items()}
    return sorted({setup_cfg(parse(list(run.argv))).MODEL.BACKBONE.NAME for run in kinds.values()})


# ------------------------------------------------------------------ the plan


def plan(methods: Iterable[Method], protocols: list[str], args: argparse.Namespace) -> list[Job]:
    """A job for each model: its training and all its tests. Raises ValueError if a data set is in none of them."""
    used, jobs = set(), []
    for protocol in protocols:
        used.update(named(protocol, args.datasets))
    lost = [word for word in args.datasets if word not in ("all", "embedded") and word not in used | sources(used)]
    if lost:
        raise ValueError(f"{lost[0]} has no part in {', '.join(args.protocol)}: see docs/protocols.md")
    for method in methods:
        stages, trained = Stages(method, args.root, args.output_dir), learns(method.trainer)
        for seed in args.seeds if trained else args.seeds[:1]:
            for runs, images in models(stages, protocols, args, seed, trained):
                strengths = args.strength if strength_key(method.trainer) else []
                runs += [run.at_strength(s) for s in strengths for run in list(runs)]
                seconds = images * trained + 20 * len(runs)
                jobs.append(Job(tuple(runs), seconds, method.trainer))
    return jobs


def models(stages: Stages, protocols: list[str], args: argparse.Namespace, seed: int, trained: bool) -> Iterator[tuple]:
    """The runs of each model of one method and seed, and how many images it is trained on."""
    if "base2new" in protocols:
        for name in named("base2new", args.datasets):
            yield [stages.base2new_train(name, seed), stages.base2new_test(name, seed)], 16 * classes(name) / 2
    if "fewshot" in protocols:
        for name in named("fewshot", args.datasets):
            for shots in args.shots if trained else [max(args.shots)]:
                yield [stages.fewshot(name, seed, shots)], shots * classes(name)
    away = {p: named(p, args.datasets) if p in protocols else [] for p in ("xd", "dg")}
    for source in dict.fromkeys(map(source_of, away["xd"] + away["dg"])):
        runs = [stages.xd_train(source, seed, half_the_epochs(stages, source))]
        runs += [stages.xd_test(name, seed) for name in away["xd"] if source_of(name) == source]
        runs += [stages.dg_test(name, seed) for name in away["dg"] if source_of(name) == source]
        yield runs, 16 * classes(source) / 2


def named(protocol: str, words: list[str]) -> list[str]:
    """The data sets of a protocol that are named: trained on in base2new and fewshot, tested on in xd and dg.

    There, a source stands for all its targets or variants.
    """
    found = []
    for word in words:
        every = word if word in ("all", "embedded") else ""
        source = "imagenet" if word == "all" else word
        if every == "embedded":
            found += EMBEDDED[protocol]
        elif protocol in ("base2new", "fewshot"):
            found += [source, *targets(source)] if every else [word] * (word not in variants(source_of(word)))
        elif source_of(source) == source:
            found += targets(source) if protocol == "xd" else variants(source)
        elif (word in variants(source_of(word))) == (protocol == "dg"):
            found.append(word)
    return list(dict.fromkeys(found))


def sources(names: Iterable[str]) -> set[str]:
    return set(map(source_of, names))


def classes(name: str) -> int:
    row = row_of(name)
    return row.size.classes if row and row.size else 40


def half_the_epochs(stages: Stages, source: str) -> tuple[str, ...]:
    """tiny.yaml is for half the classes of an embedded source: then half the epochs are as many steps.

    Papers train a source for fewer epochs, too; published settings have files of their own for it.
    """
    row = row_of(source)
    if not (row and row.embedded) or not learns(stages.method.trainer):
        return ()
    cfg, method = setup_cfg(parse(list(stages.xd_train(source, 1).argv))), TRAINER_REGISTRY.get(stages.method.trainer)
    decides = getattr(method, "decides", {})
    if any(cfg.TRAINER[node_of(method)][key] for key, of in decides.items() if "OPTIM.MAX_EPOCH" in of.keys):
        return ()  # the epochs are of no account
    return "OPTIM.MAX_EPOCH", str(-(-cfg.OPTIM.MAX_EPOCH // 2))
