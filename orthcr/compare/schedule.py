"""One plan for many methods on many data sets, by any of the four protocols."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import trainers
from dassl.config import flatten
from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure.command import USER_ERRORS
from dassl.utils import check_availability, locked
from orthcr.compare import engines
from orthcr.compare.command_line import NAMES
from orthcr.compare.plans import Job, PlannedRun, execute, tell
from orthcr.compare.stages import Method, Stages, row_of, source_of, targets, variants
from orthcr.key_roles import MACHINE
from orthcr.run.checks import differences
from orthcr.run.config import setup_cfg
from orthcr.run.config_files import owner_of
from orthcr.run.declarations import CACHE_KEYS, descriptions_key, discover, is_foreign, strength_key
from trainers.base import ClipTrainer, node_of, nodes_of
from trainers.shared.backbones import fetch
from trainers.shared.strength import AUTO

# the part of the embedded data that each protocol trains or tests on
EMBEDDED = {"base2new": ["shapes"], "fewshot": ["digits"], "xd": targets("shapes"), "dg": variants("shapes")}


def run(args: argparse.Namespace) -> tuple[list[str], dict[Path, str]]:
    """Make all runs.

    Returns:
        A line for each model that failed, and the reason for each directory that holds results of other settings.

    Raises:
        ValueError: something cannot be planned.
    """
    names = methods_of(args.protocol, args.trainers)
    opts = feature_cache(args) + args.opts
    methods = [Method(trainer, args.cfg, own_opts) for trainer, own_opts in share(opts, names).items()]
    jobs = plan(methods, protocols_of(args.protocol), args)
    clips = backbones(jobs)
    engine = engine_of(args, clips)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for planned in (planned for job in jobs for planned in job.runs):
        check_no_link(planned.folder, args.output_dir)
    summary = f"{sum(len(job.runs) for job in jobs)} runs of {len(methods)} methods on {', '.join(clips)}"
    print(f"{summary}; logs and results: {args.output_dir}", flush=True)
    with locked(args.output_dir, f"another benchmark is at work in {args.output_dir}: wait, or choose another"):
        finished = set()

        def done(job: Job, results: list[dict]) -> str:
            finished.add(job)
            return tell(job, results)

        failed = execute(jobs, title=args.output_dir.name, done=done, engine=engine)
        return failed, outdated([job for job in jobs if job not in finished])


def feature_cache(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the KEY VALUE pair of the folder in which the runs share frozen features, or () if the user gives it.

    Raises:
        ValueError: the folder lies behind a link.
    """
    if "DATASET.FEATURE_CACHE" in args.opts[::2]:
        return ()
    folder = args.output_dir / "features"
    check_no_link(folder, args.output_dir)
    return "DATASET.FEATURE_CACHE", str(folder)


def protocols_of(words: list[str]) -> list[str]:
    """Return the protocols that the words of --protocol name, of `command_line.PROTOCOLS`."""
    if words == ["tta"]:
        return ["xd", "dg"]
    return [NAMES[name] for name in (NAMES if "all" in words else words)]


def methods_of(protocols: list[str], words: list[str]) -> list[str]:
    """Return the trainers to be compared.

    Args:
        protocols: words of --protocol. With tta, "all" is every trainer that trains nothing.
        words: of --trainers.

    Raises:
        ValueError: a trainer named for tta is trained.
    """
    names = registered(words)
    if protocols != ["tta"]:
        return names
    trained = [name for name in names if learns(name)]
    if trained and "all" not in words:
        raise ValueError(f"--protocol tta trains nothing, and {trained[0]} is trained: take cross_dataset for it")
    return [name for name in names if name not in trained]


def check_no_link(folder: Path, output_dir: Path) -> None:
    """Raise ValueError if a folder of the output directory lies behind a link: results would land elsewhere."""
    if folder.resolve() != output_dir.resolve() / folder.relative_to(output_dir):
        raise ValueError(f"{folder} lies behind a link: remove the link, or give another --output-dir")


def outdated(jobs: list[Job]) -> dict[Path, str]:
    """Return the reason for each folder of a run whose results do not belong to its present settings."""
    reasons = {}
    for planned in (planned for job in jobs for planned in job.runs):
        result = planned.folder / "results.json"
        if not result.exists():
            continue
        if planned.model in reasons:
            reasons[planned.folder] = "it is of a model with other settings"
            continue
        try:
            different = differences(setup_cfg(planned.spec), MACHINE)
        except USER_ERRORS as error:
            reasons[planned.folder] = f"its settings cannot be compared ({error})"
            continue
        if different:
            reasons[planned.folder] = f"it was made with {', '.join(different)}"
        elif planned.model and result.stat().st_mtime < (planned.model / "results.json").stat().st_mtime:
            reasons[planned.folder] = "it is older than its model"
    return reasons


def share(opts: tuple[str, ...], names: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the KEY VALUE pairs of each trainer.

    A key of a node goes to the methods that have this node, and a key that a method does not read goes to the others. A
    trainer written for Dassl does not read DATASET.FEATURE_CACHE.

    Args:
        opts: KEY VALUE ...
        names: of the trainers.

    Raises:
        ValueError: no trainer takes one of the pairs.
    """
    pairs = list(zip(opts[::2], opts[1::2], strict=False))
    trainer_nodes = {name: nodes_of(TRAINER_REGISTRY.get(name)) for name in names}
    key_nodes = {key: key.split(".")[1] for key, _ in pairs if key.startswith("TRAINER.")}
    for key, node in key_nodes.items():
        if not any(node in nodes for nodes in trainer_nodes.values()):
            raise ValueError(f"{key} is no key of {', '.join(names)}: leave it out, or add its trainer to --trainers")
    shares = {}
    for name, nodes in trainer_nodes.items():
        unread = CACHE_KEYS if is_foreign(name) else TRAINER_REGISTRY.get(name).unread
        own_pairs = [(k, v) for k, v in pairs if key_nodes.get(k, nodes[0]) in nodes and k not in unread]
        shares[name] = tuple(word for pair in own_pairs for word in pair)
    return shares


def registered(words: list[str]) -> list[str]:
    """Return the trainers with these names, each once, zero-shot first; "all" is every ClipTrainer."""
    for package in (trainers, datasets):
        discover(package)
    available = TRAINER_REGISTRY.registered_names()
    for word in words:
        check_availability(word, [*available, "all"])
    every = [name for name in available if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]
    names = [name for word in words for name in (every if word == "all" else [word])]
    return sorted(dict.fromkeys(names), key=learns)


def learns(trainer: str) -> bool:
    return bool(getattr(TRAINER_REGISTRY.get(trainer), "learner", True))


def depends_on_seed(trainer: str) -> bool:
    """Return whether the results of a method depend on the seed, as those of zero-shot CLIP do not."""
    return learns(trainer) or bool(TRAINER_REGISTRY.get(trainer).adaptation)


def tell_settings(args: argparse.Namespace) -> None:
    """Print the settings of the user's own methods and data sets, which have no published ones."""
    for name in registered(args.trainers):
        if not args.cfg and not is_foreign(name) and not owner_of("*", name):
            print(f"{name} has no YAML in configs/trainers/{name}: it runs with the defaults and the options")
    own_datasets = [name for name in args.datasets if name not in ("all", "embedded") and row_of(name) is None]
    names_settings = args.cfg or "MODEL.BACKBONE.NAME" in args.opts[::2]
    if own_datasets and not names_settings:
        settings = f"{', '.join(own_datasets)}: each method has its published settings for ViT-B/16"
        print(f"{settings} (335 MB are downloaded once); for the embedded CLIP give --cfg tiny", flush=True)


def engine_of(args: argparse.Namespace, backbones: list[str]) -> Callable:
    """Return the engine of the runs, after the backbones are fetched.

    Args:
        args: of `command_line.arguments`.
        backbones: names of the CLIPs that the runs load.

    Raises:
        ValueError, OSError: the runs lack something.
    """
    tell_settings(args)
    if args.engine == "local":
        for name in backbones:  # before any run: each would fail for the same reason, or download it again
            fetch(name)
    if args.engine == "ray":
        return partial(engines.on_ray, address=args.address, per_gpu=args.per_gpu or 1)
    gib = args.memory or max(map(engines.memory_of, backbones))
    return partial(engines.local, slots=engines.slots(gib, args.workers, args.per_gpu))


def backbones(jobs: list[Job]) -> list[str]:
    """Return the backbones of the trainings, sorted.

    This reads one config of each trainer and set of files, so that a wrong one is an error before anything runs.
    """
    specs = [job.runs[0].spec for job in jobs]
    kinds = {(spec.trainer, spec.dataset_config_file, spec.config_file): spec for spec in specs}
    return sorted({setup_cfg(spec).MODEL.BACKBONE.NAME for spec in kinds.values()})


# ------------------------------------------------------------------ the plan


def plan(methods: Iterable[Method], protocols: list[str], args: argparse.Namespace) -> list[Job]:
    """Return a job for each model: its training and all its tests.

    Args:
        methods: to be compared.
        protocols: of `command_line.PROTOCOLS`.
        args: of `command_line.arguments`.

    Raises:
        ValueError: a data set has no part in any of the protocols.
    """
    used, jobs = set(), []
    for protocol in protocols:
        used.update(named(protocol, args.datasets))
    unused = [word for word in args.datasets if word not in ("all", "embedded") and word not in used | sources(used)]
    if unused:
        raise ValueError(f"{unused[0]} has no part in {', '.join(args.protocol)}: see docs/protocols.md")
    for method in methods:
        for cutout in cutouts(method.trainer, args):
            jobs += described(list(jobs_of(method, cutout, protocols, args)), "all" in args.trainers)
    return jobs


def described(jobs: list[Job], may_lack: bool) -> list[Job]:
    """Return the jobs of a method, without those that lack the descriptions of the classes that it needs.

    Args:
        jobs: of one method.
        may_lack: whether they are left out with a line; False: they are an error.

    Raises:
        ValueError: jobs are without descriptions.
    """
    trainer = jobs[0].runs[0].spec.trainer if jobs else ""
    key = descriptions_key(trainer) if jobs else ""
    if not key or learns(trainer):
        return jobs
    ready = [job for job in jobs if flatten(setup_cfg(job.runs[0].spec))[key]]
    if len(ready) < len(jobs):
        lack = f"{trainer} needs sentences about the classes in {len(jobs) - len(ready)} of {len(jobs)} jobs"
        if not may_lack:
            raise ValueError(f"{lack}: give {key} FILE, or leave {trainer} out")
        print(f"{lack}, which are left out: give {key} FILE for them")
    return ready


def jobs_of(method: Method, cutout: str, protocols: list[str], args: argparse.Namespace) -> Iterator[Job]:
    """Yield a job for each model of a method.

    Args:
        method: to be compared.
        cutout: of `cutouts`.
        protocols: of `command_line.PROTOCOLS`.
        args: of `command_line.arguments`.
    """
    out = args.output_dir / f"{cutout}_cutout" if cutout else args.output_dir
    stages, trained = Stages(method, args.root, out), learns(method.trainer)
    for seed in args.seeds if depends_on_seed(method.trainer) else args.seeds[:1]:
        for runs, images in models(stages, protocols, args, seed, trained):
            if cutout:
                runs[0] = at_cutout(runs[0], cutout)
            strengths = other_strengths(runs[0], args.strength)
            runs += [run.at_strength(s) for s in strengths for run in list(runs)]
            seconds = 20 * len(runs)
            if trained:
                seconds += images
            yield Job(tuple(runs), seconds, method.trainer)


def other_strengths(training: PlannedRun, strengths: list[str]) -> list[str]:
    """Return the strengths at which a model is not tested by its settings; none for a method without a strength."""
    key = strength_key(training.spec.trainer)
    if not key or not strengths:
        return []
    configured = flatten(setup_cfg(training.spec))[key]
    return [s for s in strengths if (s if s == AUTO else float(s)) != configured]


def cutouts(trainer: str, args: argparse.Namespace) -> list[str]:
    """Return the words of --cutout for a method; "", its settings, without that flag or without training images."""
    return list(dict.fromkeys(args.cutout)) if args.cutout and learns(trainer) else [""]


def at_cutout(training: PlannedRun, word: str) -> PlannedRun:
    """Return a training with or without Cutout, and with its other settings.

    A method without Cutout gets the transform "cutout", whose hole has a quarter of the side unless INPUT.CUTOUT_LEN is
    given. A method that cuts the holes itself continues to do so, or gets no holes and one view.

    Args:
        training: with the method's settings.
        word: "with" or "without".
    """
    cfg, method = setup_cfg(training.spec), TRAINER_REGISTRY.get(training.spec.trainer)
    node, key = cfg.TRAINER.get(node_of(method), {}), f"TRAINER.{node_of(method)}"
    transforms, pairs = list(cfg.INPUT.TRANSFORMS), []
    if node.get("ATTENTIVE"):
        if word == "without":
            no_holes = {"ATTENTIVE": False, "CUTOUT_BY": "attention", "VIEWS": "cut", "LAMBDA_CUT": None}
            for name, value in no_holes.items():
                if node[name] != value:
                    pairs += [f"{key}.{name}", str(value)]
    else:
        if "cutout" not in transforms and "INPUT.CUTOUT_LEN" not in training.spec.opts[::2]:
            pairs = ["INPUT.CUTOUT_LEN", str(min(cfg.INPUT.SIZE) // 4)]
        if word == "without":
            transforms = [name for name in transforms if name != "cutout"]
        elif "cutout" not in transforms:
            transforms.append("cutout")
        pairs += ["INPUT.TRANSFORMS", str(transforms)]
    return replace(training, spec=replace(training.spec, opts=(*training.spec.opts, *pairs)))


def models(stages: Stages, protocols: list[str], args: argparse.Namespace, seed: int, trained: bool) -> Iterator[tuple]:
    """Yield the runs of each model of one method and seed, and its expected cost, in images of a full training."""
    if "base2new" in protocols:
        for name in named("base2new", args.datasets):
            yield [stages.base2new_train(name, seed), stages.base2new_test(name, seed)], 16 * classes(name) / 2
    if "fewshot" in protocols:
        for name in named("fewshot", args.datasets):
            for shots in args.shots if trained else [max(args.shots)]:
                yield [stages.fewshot(name, seed, shots)], shots * classes(name)
    tested = {p: named(p, args.datasets) if p in protocols else [] for p in ("xd", "dg")}
    for source in dict.fromkeys(map(source_of, tested["xd"] + tested["dg"])):
        runs = [stages.xd_train(source, seed, half_the_epochs(stages, source))]
        runs += [stages.xd_test(name, seed) for name in tested["xd"] if source_of(name) == source]
        runs += [stages.dg_test(name, seed) for name in tested["dg"] if source_of(name) == source]
        yield runs, 16 * classes(source) / 2  # embedded sources train for half the epochs


def named(protocol: str, words: list[str]) -> list[str]:
    """Return the data sets that the words name: of trainings in base2new and fewshot, of tests in xd and dg.

    In xd and dg, a source stands for all its targets or variants.
    """
    names = []
    for word in words:
        source = "imagenet" if word == "all" else word
        if word == "embedded":
            names += EMBEDDED[protocol]
        elif protocol in ("base2new", "fewshot"):
            if word == "all":
                names += [source, *targets(source)]
            elif word not in variants(source_of(word)):
                names.append(word)
        elif source_of(source) == source:
            names += targets(source) if protocol == "xd" else variants(source)
        elif (word in variants(source_of(word))) == (protocol == "dg"):
            names.append(word)
    return list(dict.fromkeys(names))


def sources(names: Iterable[str]) -> set[str]:
    return set(map(source_of, names))


def classes(name: str) -> int:
    row = row_of(name)
    return row.size.classes if row and row.size else 40


def half_the_epochs(stages: Stages, source: str) -> tuple[str, ...]:
    """Return the KEY VALUE pair that halves the epochs of an embedded source, or ().

    tiny.yaml is for half the classes of an embedded source. With all classes, half the epochs are as many steps.
    Papers train a source for fewer epochs, too; published settings have files of their own for it.
    """
    row = row_of(source)
    if not (row and row.embedded) or not learns(stages.method.trainer):
        return ()
    cfg, method = setup_cfg(stages.xd_train(source, 1).spec), TRAINER_REGISTRY.get(stages.method.trainer)
    decides = getattr(method, "decides", {})
    if any(cfg.TRAINER[node_of(method)][key] for key, rule in decides.items() if "OPTIM.MAX_EPOCH" in rule.keys):
        return ()  # another key decides the number of steps in place of the epochs
    return "OPTIM.MAX_EPOCH", str(-(-cfg.OPTIM.MAX_EPOCH // 2))
