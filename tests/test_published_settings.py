"""Published settings: the originals' YAML files and command lines give here what the files of the same names give."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from prompt_tools import bare

from dassl.config import flatten
from orthcr.compare.stages import published_file
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse
from trainers.mmrl import REG_WEIGHTS
from trainers.shared.templates import IMAGENET_TEMPLATES_SELECT
from trainers.tip_adapter import TipAdapter

WORDS = "a photo of a"


def original(batch, lr, epochs, backbone="ViT-B/16", **others):
    """{dotted key: value} of a file in the form that CoOp's and those made after it share."""
    return {
        "DATALOADER.TRAIN_X.BATCH_SIZE": batch,
        "DATALOADER.TEST.BATCH_SIZE": 100,
        "DATALOADER.NUM_WORKERS": 8,
        "INPUT.SIZE": "(224, 224)",
        "INPUT.INTERPOLATION": "bicubic",
        "INPUT.PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
        "INPUT.PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
        "INPUT.TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": lr,
        "OPTIM.MAX_EPOCH": epochs,
        "OPTIM.LR_SCHEDULER": "cosine",
        "OPTIM.WARMUP_EPOCH": 1,
        "OPTIM.WARMUP_TYPE": "constant",
        "OPTIM.WARMUP_CONS_LR": "1e-5",
        "MODEL.BACKBONE.NAME": backbone,
        **others,
    }


def node(name, **keys):
    return {f"TRAINER.{name}.{key}": value for key, value in keys.items()}


def coop(epochs, backbone, **keys):
    return original(32, 0.002, epochs, backbone, **node("COOP", **keys))


def cocoop(n_ctx, words=""):
    return original(1, 0.002, 10, **node("COCOOP", N_CTX=n_ctx, CTX_INIT=words, PREC="fp16"))


def prograd(epochs):
    return coop(epochs, "RN50", CTX_INIT=True) | {"LOSS.NAME": "prograd", "LOSS.T": 1.0}


def maple(lr, epochs, depth):
    return original(4, lr, epochs, **node("MAPLE", N_CTX=2, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH=depth))


def both(name, n_vision, n_text, vision, text, **keys):
    depths = {"PROMPT_DEPTH_VISION": vision, "PROMPT_DEPTH_TEXT": text}
    return node(name, N_CTX_VISION=n_vision, N_CTX_TEXT=n_text, CTX_INIT=WORDS, PREC="fp16", **depths, **keys)


def promptsrc(epochs, depth, mean, std):
    weights = {"TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": mean, "GPA_STD": std}
    return original(4, 0.0025, epochs, **both("PROMPTSRC", 4, 4, depth, depth, **weights))


def mmrl(batch, epochs, warmup=1, **keys):
    """Without the REG_WEIGHT of those files of which it is never used."""
    tokens = {"ALPHA": 0.7, "N_REP_TOKENS": 5, "REP_LAYERS": [6, 7, 8, 9, 10, 11, 12], "REP_DIM": 512, "PREC": "amp"}
    optim = {"OPTIM.NAME": "adamw", "OPTIM.WARMUP_EPOCH": warmup, "INPUT.RRCROP_SCALE": "(0.5, 1)"}
    return original(batch, 0.001, epochs, **node("MMRL", **tokens | keys)) | optim


def mmrlpp(batch, epochs, lr=0.001, **keys):
    """As MMRL's, without the BETA and the REG_WEIGHT that its code overrides."""
    new = {"RES_LORA_DIM": 4, "PROJ_LORA_DIM": 64}
    theirs = {key.replace(".MMRL.", ".MMRLpp."): value for key, value in mmrl(batch, epochs, **new, **keys).items()}
    return theirs | {"OPTIM.LR": lr}


def coprompt(epochs):
    """Without what its code has by data set, which no argument changes there."""
    views = {"INPUT.TRANSFORMS": ["randaugment", "normalize"], "DATALOADER.K_TRANSFORMS": 2}
    return original(4, 0.0035, epochs, **node("CoPrompt", CTX_INIT=WORDS, PREC="fp16")) | views


DEPT = {"OPTIM.STAGED_LR": True, "OPTIM.NEW_LAYERS": ["linear_probe", "film"], "OPTIM.LR_EXP": 6.5}
DEPT |= {"OPTIM.BASE_LR_MULT": 1.0, "TRAINER.LINEAR_PROBE.TYPE": "linear", "TRAINER.LINEAR_PROBE.WEIGHT": 0.7}
DEPT |= {"TRAINER.LINEAR_PROBE.TEST_TIME_FUSION": True, "TRAINER.FILM.LINEAR_PROBE": True}
DEPT_KGCOOP = {"TRAINER.LINEAR_PROBE.BASE": "KgCoOp", "TRAINER.COOP.CTX_INIT": WORDS, "TRAINER.COOP.W": 2.0}
DEPT_MAPLE = {"TRAINER.LINEAR_PROBE.BASE": "MaPLe", **node("MAPLE", N_CTX=2, CTX_INIT=WORDS, PROMPT_DEPTH=9)}


def mma(batch):
    adapters = {"ADAPTER_START": 5, "ADAPTER_END": 12, "ADAPTER_DIM": 32, "ADAPTER_SCALE": 0.001}
    keys = node("MMADAPTER", TEXT_CTX_INIT=WORDS, PREC="amp", **adapters)
    return original(batch, 0.0015, 5, **keys) | {"OPTIM.WARMUP_EPOCH": 0}


def tcp(epochs):
    """With the epochs that the original's train.py sets; without the W of its scripts, which is never used."""
    return original(32, 0.002, epochs, **node("COOP", N_CTX=4, CSC=False, CTX_INIT=False)) | {"OPTIM.NAME": "adam"}


WEIGHT_METHODS = ["OrthCR", "OrthSR", "FullFT", "BlockFT", "CLIPLoRA"]
TCP = "vit_b16_ep100_ctxv1"
KGCOOP = "TRAINER.COOP.N_CTX 4 TRAINER.COOP.CSC False TRAINER.COOP.W 8.0 TRAINER.COOP.CLASS_TOKEN_POSITION end"
PROGRAD = "LOSS.LAMBDA 1.0 TRAINER.COOP.N_CTX 16 TRAINER.COOP.CSC False TRAINER.COOP.CLASS_TOKEN_POSITION end"
ADAPTER = "TRAINER.ADAPTER.INIT ZS TRAINER.ADAPTER.CONSTRAINT none TRAINER.ADAPTER.KEEP_UNDERSCORES True"
DEEP = "vit_b16_c2_ep20_batch4_4+4ctx"
SHOTS = "vit_b16_c2_ep50_batch4_4+4ctx_few_shot"
FIVE = ["stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"]  # lines to comment out in the original's
FILES = [  # trainer, file, what is in it, what the original's script adds
    ("CoOp", "vit_b16", coop(200, "ViT-B/16"), ""),
    ("CoOp", "vit_b16_ep50_ctxv1", coop(50, "ViT-B/16", CTX_INIT=WORDS), ""),
    ("CoOp", "rn50_ep100", coop(100, "RN50"), ""),
    ("CoOp", "rn50_ctxv1", coop(200, "RN50", CTX_INIT=WORDS), ""),
    ("CoOp", "rn50_ep50_ctxv1", coop(50, "RN50", CTX_INIT=WORDS), ""),
    ("CoCoOp", "vit_b16_c4_ep10_batch1_ctxv1", cocoop(4, WORDS), ""),
    ("CoCoOp", "vit_b16_c4_ep10_batch1", cocoop(4), ""),
    ("CoCoOp", "vit_b16_c8_ep10_batch1", cocoop(8), ""),
    ("CoCoOp", "vit_b16_c16_ep10_batch1", cocoop(16), ""),
    ("KgCoOp", "vit_b16_ep100_ctxv1", original(128, 0.002, 100, **node("COOP", CTX_INIT=True)), KGCOOP),
    ("KgCoOp", "rn50_ep100", original(128, 0.002, 100, "RN50", **node("COOP", CTX_INIT=True)), KGCOOP),
    ("ProGrad", "rn50", prograd(200), PROGRAD),
    ("ProGrad", "rn50_ep100", prograd(100), PROGRAD),
    ("ProGrad", "rn50_ep50", prograd(50), PROGRAD),
    ("TCP", TCP, tcp(50), ""),
    ("TCP", TCP + "_imagenet", tcp(25), ""),
    ("TCP", TCP + "_sun397", tcp(25), ""),
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx", maple(0.0035, 5, 9), ""),
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx_cross_datasets", maple(0.0026, 2, 3), ""),
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx_few_shot", maple(0.0035, 50, 9), ""),
    ("IVLP", "vit_b16_c2_ep5_batch4_2+2ctx", original(4, 0.0035, 5, **both("IVLP", 2, 2, 12, 12)), ""),
    ("IVLP", DEEP, original(4, 0.0025, 20, **both("IVLP", 4, 4, 9, 9)), ""),
    ("IVLP", "vit_b16_c2_ep5_batch4_4ctx_language_only", original(4, 0.0025, 5, **both("IVLP", 0, 4, 0, 12)), ""),
    (
        "VPT",
        "vit_b16_c2_ep5_batch4_4",
        original(4, 0.0025, 5, **node("VPT", N_CTX_VISION=8, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH_VISION=12)),
        "",
    ),
    ("PromptSRC", DEEP, promptsrc(20, 9, 15, 1), ""),
    ("PromptSRC", DEEP + "_cross_datasets", promptsrc(20, 3, 6, 10), ""),
    ("PromptSRC", SHOTS, promptsrc(50, 9, 30, 30), ""),
    *[("PromptSRC", f"{SHOTS}_{name}", promptsrc(50, 9, 45, 5), "") for name in FIVE],
    ("MMRL", "vit_b16", mmrl(4, 10), ""),
    ("MMRL", "vit_b16_eurosat", mmrl(4, 10), "TRAINER.MMRL.REP_DIM 2048"),
    ("MMRL", "vit_b16_imagenet", mmrl(32, 5), ""),
    ("MMRL", "vit_b16_few_shot", mmrl(32, 50), ""),
    ("MMRL", "vit_b16_few_shot_eurosat", mmrl(32, 50), "TRAINER.MMRL.REP_DIM 2048"),
    ("MMRL", "vit_b16_cross_datasets", mmrl(32, 1, 0, REG_WEIGHT=0.2), ""),
    ("MMA", "vit_b16_ep5", mma(16), ""),
    ("MMA", "vit_b16_ep5_imnet", mma(128), ""),
    ("MMRLpp", "vit_b16", mmrlpp(4, 10), ""),
    ("MMRLpp", "vit_b16_imagenet", mmrlpp(32, 5), ""),
    ("MMRLpp", "vit_b16_few_shot", mmrlpp(32, 100, lr=0.002), ""),
    ("MMRLpp", "vit_b16_cross_datasets", mmrlpp(32, 1, warmup=0, REG_WEIGHT=0.1), ""),
    ("DePT", "vit_b16_ep10_bs4_lr35", original(4, 0.0035, 10, **DEPT), ""),
    ("DePT", "vit_b16_ep10_ctxv1_bs4_lr35", original(4, 0.0035, 10, **DEPT, **DEPT_KGCOOP), ""),
    ("DePT", "vit_b16_c2_ep10_batch4_2ctx", original(4, 0.0035, 10, **DEPT, **DEPT_MAPLE), ""),
    ("CoPrompt", "vit_b16", coprompt(8), ""),
    ("CoPrompt", "coprompt", coprompt(8), ""),
    ("CoPrompt", "vit_b16_food101", coprompt(5), ""),
    ("LinearProbe", "SGD_lr1e-1_B256_ep300", original(256, 0.1, 300, "RN50") | {"OPTIM.WEIGHT_DECAY": 0.0}, ADAPTER),
]


def config(trainer, file, opts=""):
    """All keys of the run but its precision, fp16 of the originals, and how often it prints."""
    where = "--dataset-config-file configs/datasets/caltech101.yaml --output-dir out"
    cfg = flatten(setup_cfg(parse(["--trainer", trainer, "--config-file", str(file), *where.split(), *opts.split()])))
    return {key: value for key, value in cfg.items() if not key.endswith((".PREC", "PRINT_FREQ"))}


def ours(root, trainer, file):
    return root / "configs" / "trainers" / trainer / f"{file}.yaml"


@pytest.mark.parametrize("trainer, file, settings, opts", FILES, ids=[f"{row[0]}-{row[1]}" for row in FILES])
def test_a_file_and_command_of_the_original(root, tmp_path, monkeypatch, trainer, file, settings, opts):
    monkeypatch.chdir(root)
    tree = {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[leaf] = value
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text(yaml.safe_dump(tree))
    given = config(trainer, ours(root, trainer, file))
    assert given == config(trainer, theirs, opts)
    sgd = given["OPTIM.NAME"] == "sgd"  # Dassl's defaults, which no file of theirs says
    assert given["OPTIM.MOMENTUM"] == 0.9 and not given["OPTIM.SGD_NESTEROV"] or not sgd
    assert given["OPTIM.WEIGHT_DECAY"] == settings.get("OPTIM.WEIGHT_DECAY", 5e-4)


STEPS = {"OPTIM.NAME": "adamw", "OPTIM.WEIGHT_DECAY": 0.01, "OPTIM.LR_SCHEDULER": "cosine", "OPTIM.WARMUP_EPOCH": -1}
TIP = STEPS | {"OPTIM.LR": 0.001, "DATALOADER.TRAIN_X.BATCH_SIZE": 256, "INPUT.RRCROP_SCALE": (0.5, 1.0)}
TIP |= {"TRAINER.TIPADAPTERF.EPS": 1e-4, "TRAINER.TIPADAPTERF.AUGMENT_EPOCH": 10}
LORA = STEPS | {"OPTIM.LR": 2e-4, "DATALOADER.TRAIN_X.BATCH_SIZE": 32, "TRAINER.CLIPLORA.N_ITERS": 500}
LORA |= node("CLIPLORA", R=2, ALPHA=1.0, DROPOUT=0.25, LR_MIN=1e-6, LOGIT_SCALE=100.0, WEIGHTS=["q", "k", "v"])

TWO = STEPS | {"OPTIM.LR": 2e-4, "DATALOADER.TRAIN_X.BATCH_SIZE": 32, "INPUT.RRCROP_SCALE": (0.08, 1.0)}
TWO |= node("TWOSTAGEFS", N_ITERS=300, N_ITERS_FRAC=0.6, PEFT="ln", LR_MIN=1e-6, TEMPLATE="a photo of a {}.")
SVD = STEPS | {"DATALOADER.TRAIN_X.BATCH_SIZE": 32, "INPUT.RRCROP_SCALE": (0.08, 1.0)}
SVD |= node("CLIP_SVD", LR_MIN=1e-6, LOGIT_SCALE=100.0)
BASE_TO_NEW = {"OPTIM.LR": 4e-4, "OPTIM.MAX_EPOCH": 10}
TPT = {"OPTIM.NAME": "adamw", "OPTIM.LR": 5e-3, "OPTIM.WEIGHT_DECAY": 0.01, "INPUT.RRCROP_SCALE": (0.08, 1.0)}
TPT |= node("TPT", VIEWS=64, SELECTION_P=0.1, TTA_STEPS=1, CTX_INIT="a_photo_of_a", AUGMIX="auto")
TDA = node("TDA", POSITIVE=[2.0, 5.0], POS_CAPACITY=3, NEG_CAPACITY=2, NEG_ALPHA=0.117, NEG_BETA=1.0, LOG2=True)
TDA |= node("TDA", NEG_ENTROPY=[0.2, 0.5], NEG_MASK=[0.03, 1.0], VIEWS=0, LOGIT_SCALE=100.0)
LPPP = {"OPTIM.NAME": "sgd", "OPTIM.MOMENTUM": 0.9, "OPTIM.WEIGHT_DECAY": 0.0, "OPTIM.MAX_EPOCH": 300}
LPPP |= {"INPUT.RRCROP_SCALE": (0.5, 1.0)} | node("LPPP", ALPHA_EVERY=10, ALPHA_GRADIENT="sum", SELECT="val")


@pytest.mark.parametrize(
    "trainer, file, settings",
    [
        ("TipAdapterF", "rn50", TIP | {"OPTIM.MAX_EPOCH": 20, "MODEL.BACKBONE.NAME": "RN50"}),
        ("TipAdapterF", "vit_b16", TIP | {"OPTIM.MAX_EPOCH": 20}),
        ("TipAdapterF", "rn50_eurosat", TIP | {"OPTIM.MAX_EPOCH": 100, "MODEL.BACKBONE.NAME": "RN50"}),
        ("TipAdapterF", "vit_b16_eurosat", TIP | {"OPTIM.MAX_EPOCH": 100}),
        ("CLIPLoRA", "vit_b16", LORA | {"INPUT.RRCROP_SCALE": (0.08, 1.0)}),
        ("TwoStageFS", "vit_b16", TWO),
        ("CLIP_SVD", "vit_b16", SVD | node("CLIP_SVD", N_ITERS=0, TEMPLATE="a photo of a {}.") | BASE_TO_NEW),
        ("CLIP_SVD", "vit_b16_dtd", SVD | node("CLIP_SVD", N_ITERS=0) | BASE_TO_NEW | {"OPTIM.MAX_EPOCH": 20}),
        ("CLIP_SVD", "vit_b16_few_shot_dtd", SVD | node("CLIP_SVD", N_ITERS=200, TEMPLATE="") | {"OPTIM.LR": 5e-4}),
        ("TPT", "vit_b16", TPT),
        ("TDA", "vit_b16", TDA),
        ("LPpp", "vit_b16", LPPP),
        ("LPpp", "rn50", LPPP | {"MODEL.BACKBONE.NAME": "RN50"}),
    ],
)
def test_settings_of_originals_with_another_config(root, monkeypatch, trainer, file, settings):
    monkeypatch.chdir(root)
    given = config(trainer, ours(root, trainer, file))
    assert {key: given[key] for key in settings} == settings


# ------------------------------------------------------------------ what is in the trainers, by data set

SEARCHES = {  # ends of Tip-Adapter's search of beta and of alpha, its alpha before
    "ImageNet": (7, 3, 1.17),
    "OxfordPets": (7, 3, 1.17),
    "Caltech101": (12, 5, 3),
    "DescribableTextures": (13, 13, 2),
    "EuroSAT": (12, 10, 2),
    "FGVCAircraft": (30, 30, 5),
    "Food101": (10, 10, 1.17),
    "OxfordFlowers": (50, 50, 10),
    "StanfordCars": (20, 10, 3),
    "SUN397": (12, 10, 1.17),
    "UCF101": (7, 3, 3),
}


@pytest.mark.parametrize("dataset", SEARCHES)
def test_searches_of_tip_adapter(random_clip, monkeypatch, dataset):
    data = SimpleNamespace(dataset=SimpleNamespace(train_x=[]))
    monkeypatch.setattr(TipAdapter, "dm", data, raising=False)
    trainer = bare("TipAdapter", random_clip(), "DATASET.NAME", dataset)
    assert (*trainer.search_scale, trainer.model.cache.alpha.item()) == pytest.approx(SEARCHES[dataset])
    assert trainer.model.cache.beta == 1 and len(trainer.model.templates) == (7 if dataset == "ImageNet" else 1)


def test_weights_of_mmrls_regularizer():
    same = {
        6.0: ["FGVCAircraft", "SUN397", "DescribableTextures"],
        0.5: ["ImageNet", "Caltech101"],
        7.0: ["StanfordCars"],
    }
    same |= {5.0: ["Food101"], 4.0: ["OxfordFlowers"], 3.0: ["UCF101"], 0.2: ["OxfordPets"], 0.01: ["EuroSAT"]}
    assert REG_WEIGHTS == {name: weight for weight, names in same.items() for name in names}


def test_prompts_that_differ_from_coops(random_clip):
    probe = [
        bare("LinearProbe", random_clip(), "DATASET.NAME", name).model.templates for name in ("ImageNet", "EuroSAT")
    ]
    assert probe == [[*IMAGENET_TEMPLATES_SELECT, "a photo of a {}."], ["a centered satellite photo of {}."]]
    assert bare("CLIPLoRA", random_clip(), "DATASET.NAME", "EuroSAT").model.templates == ["a photo of a {}."]


def test_a_random_probe_starts_from_kaimings_normal(random_clip):
    names = [f"thing {k}" for k in range(400)]
    trainer = bare("LinearProbe", random_clip(), "TRAINER.ADAPTER.INIT", "RANDOM", classnames=names)
    w = trainer.model.adapter.prototypes
    assert w.std().item() == pytest.approx((2 / w.shape[1]) ** 0.5, rel=0.05) and w.mean().abs() < 0.01


def test_full_fine_tuning_is_plain_by_default(random_clip, noise):
    trainer = bare("FullFT", random_clip())
    terms, _ = trainer.losses(noise(2, 3, 32, 32), torch.tensor([0, 1]))
    assert list(terms) == ["ce"]


@pytest.mark.parametrize(
    "trainer, dataset, protocol, file",
    [
        ("PromptSRC", "imagenet", "fewshot", SHOTS),
        *[("PromptSRC", name, "fewshot", f"{SHOTS}_{name}") for name in FIVE],
        *[("PromptSRC", name, "base2new", DEEP) for name in (*FIVE, "imagenet")],
        ("PromptSRC", "imagenet", "xd", DEEP + "_cross_datasets"),
        ("MaPLe", "imagenet", "fewshot", "vit_b16_c2_ep5_batch4_2ctx_few_shot"),
        ("MMRLpp", "imagenet", "base2new", "vit_b16_imagenet"),
        ("MMRLpp", "imagenet", "xd", "vit_b16_cross_datasets"),
        ("MMRLpp", "eurosat", "fewshot", "vit_b16_few_shot"),
        ("DePT", "imagenet", "xd", "vit_b16"),
        ("DePT", "dtd", "base2new", "vit_b16"),
        ("CoPrompt", "food101", "base2new", "vit_b16_food101"),
        ("CoPrompt", "dtd", "base2new", "vit_b16"),
        ("MMRL", "imagenet", "base2new", "vit_b16_imagenet"),
        ("MMRL", "imagenet", "fewshot", "vit_b16_imagenet"),
        ("MMRL", "imagenet", "xd", "vit_b16_cross_datasets"),
        *[(name, "imagenet", "xd", "vit_b16_cross_datasets") for name in WEIGHT_METHODS],
        *[(name, "dtd", protocol, "vit_b16") for name in WEIGHT_METHODS for protocol in ("base2new", "fewshot")],
        ("MMRL", "eurosat", "base2new", "vit_b16_eurosat"),
        ("MMRL", "eurosat", "fewshot", "vit_b16_few_shot_eurosat"),
        ("MMRL", "dtd", "fewshot", "vit_b16_few_shot"),
        ("TipAdapterF", "eurosat", "fewshot", "vit_b16_eurosat"),
        ("TipAdapterF", "dtd", "fewshot", "vit_b16"),
        ("MMA", "imagenet", "base2new", "vit_b16_ep5_imagenet"),
        ("MMA", "imagenet", "xd", "vit_b16_ep1_cross_datasets"),
        ("MMA", "dtd", "base2new", "vit_b16_ep5"),
        ("TCP", "imagenet", "base2new", TCP + "_imagenet"),
        ("TCP", "imagenet", "xd", TCP + "_cross_datasets"),
        ("TCP", "sun397", "base2new", TCP + "_sun397"),
        ("TCP", "dtd", "base2new", TCP),
        ("CoCoOp", "imagenet", "xd", "vit_b16_c4_ep10_batch1_ctxv1"),
        ("IVLP", "dtd", "base2new", DEEP),
        ("GDA", "dtd", "base2new", "vit_b16"),
        ("CLIP_SVD", "dtd", "base2new", "vit_b16_dtd"),
        ("CLIP_SVD", "dtd", "fewshot", "vit_b16_few_shot_dtd"),
        ("CLIP_SVD", "food101", "fewshot", "vit_b16_few_shot"),
        ("CLIP_SVD", "food101", "base2new", "vit_b16"),
        ("CLIP_SVD", "imagenet", "xd", "vit_b16_cross_datasets"),
        ("GDA", "imagenet", "base2new", "vit_b16_imagenet"),
        ("GDA", "dtd", "fewshot", "vit_b16_few_shot"),
        ("GDA", "imagenet", "fewshot", "vit_b16_few_shot_imagenet"),
        ("GDA", "imagenet", "xd", "vit_b16_cross_datasets"),
    ],
)
def test_the_file_that_a_benchmark_takes(root, trainer, dataset, protocol, file):
    assert published_file(trainer, dataset, protocol, 16) == file and ours(root, trainer, file).exists()


@pytest.mark.parametrize(
    "file, covariance, neighbours, scale",
    [
        ("rn50", "shrunk", 0, (0.5, 1.0)),
        ("vit_b16", "per_class", 64, (0.5, 1.0)),
        ("vit_b16_few_shot", "shrunk", 0, (0.5, 1.0)),
        ("vit_b16_imagenet", "per_class", 64, (0.08, 1.0)),
        ("vit_b16_few_shot_imagenet", "shrunk", 0, (0.08, 1.0)),
        ("vit_b16_cross_datasets", "shrunk", 0, (0.08, 1.0)),
    ],
)
def test_settings_of_gda(root, monkeypatch, file, covariance, neighbours, scale):
    monkeypatch.chdir(root)
    settings = node("GDA", AUGMENT_EPOCH=10, COVARIANCE=covariance, NEIGHBOURS=neighbours, COPIES=16, LOGIT_SCALE=100.0)
    settings["INPUT.RRCROP_SCALE"] = scale
    given = config("GDA", ours(root, "GDA", file))
    assert {key: given[key] for key in settings} == settings
