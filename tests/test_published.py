"""Files as the originals' code writes them: evaluated by their directory alone, trained on from their weights."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from prompted import randomized
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from dassl.engine import build_trainer
from dassl.infrastructure.archives import Stub
from dassl.optim.lr_scheduler import ConstantWarmupScheduler
from dassl.utils import load_checkpoint, set_random_seed
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse
from orthcr.run.runner import main

PREFIX, SUFFIX = torch.zeros(7, 1, 64), torch.zeros(7, 60, 64)
FIXED = {"token_prefix": PREFIX, "token_suffix": SUFFIX}
DEAD = {"bias_vectors": torch.zeros(1, 512), "meta_net.linear1.weight": torch.zeros(512, 512)}
WHOLE = {  # of a whole CLIP
    "image_encoder.conv1.weight": torch.zeros(2, 3, 4, 4),
    "image_encoder.transformer.resblocks.1.attn.in_proj_weight": torch.zeros(6, 2),
    "text_encoder.transformer.resblocks.1.ln_1.weight": torch.zeros(2),
    "prompt_learner.token_prefix": PREFIX,
    "prompt_learner.token_suffix": SUFFIX,
    "logit_scale": torch.tensor(4.6),
}
ZS_SIDE = {"prompt_learner.ZS_image_encoder.class_embedding": torch.zeros(3)}


def of_blocks(name):
    """IVLP's, PromptSRC's and VPT's own name."""
    kind, _, block = name.partition(".")
    if kind == "ctx":
        return "prompt_learner.ctx"
    encoder = {"text_prompts": "text_encoder", "vision_prompts": "image_encoder"}[kind]
    shallow = kind == "vision_prompts" and block == "0"
    return f"{encoder}.VPT" if shallow else f"{encoder}.transformer.resblocks.{block}.VPT_shallow"


def of_mmrl(name):
    return f"image_encoder.{name}" if name == "proj_rep" else f"representation_learner.{name}"


def of_mmrlpp(name):
    return f"image_encoder.{name}" if name in ("A", "B") else f"representation_learner.{name}"


METHODS = {  # folder, the original's name of a tensor of ours, what else is in the file, settings
    "CoOp": ("prompt_learner", str, FIXED, []),
    "CoCoOp": ("prompt_learner", str, FIXED, []),
    "KgCoOp": ("prompt_learner", str, FIXED | DEAD, []),
    "ProGrad": ("prompt_learner", str, FIXED, []),
    "TCP": ("prompt_learner", str, FIXED, []),
    "MaPLe": ("MultiModalPromptLearner", "prompt_learner.{}".format, WHOLE, []),
    "IVLP": ("VLPromptLearner", of_blocks, WHOLE, ["TRAINER.IVLP.PROMPT_DEPTH_VISION", "3"]),
    "VPT": ("prompt_learner", of_blocks, WHOLE, ["TRAINER.VPT.PROMPT_DEPTH_VISION", "3"]),
    "PromptSRC": ("VLPromptLearner", of_blocks, WHOLE | ZS_SIDE, []),
    "MMRL": ("MultiModalRepresentationLearner", of_mmrl, WHOLE | {"prompt_embeddings": PREFIX}, ["TASK", "FS"]),
    "MMRLpp": ("MultiModalRepresentationLearner", of_mmrlpp, WHOLE | {"prompt_embeddings": PREFIX}, ["TASK", "FS"]),
    "DePT": ("PromptLearner", str, WHOLE, []),
    "CoPrompt": ("MultiModalPromptLearner", str, WHOLE | {"model_distill.logit_scale": torch.zeros(())}, []),
    "CLIP_Adapter": ("clip_adapter", str, {}, []),
    "MMA": ("adapter_learner", str, {"token_embedding": PREFIX, "tokenized_prompts": PREFIX.long()}, []),
    "LinearProbe": ("adapter", str, {"logit_scale": torch.tensor(4.6)}, []),
}
legacy = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def dassls(folder, tensors, epoch, legacy=False):
    """Writes a checkpoint as the original Dassl's `save_checkpoint` does; its schedules are pickled objects."""
    trained = [torch.nn.Parameter(tensor.float()) for tensor in tensors.values()]
    optimizer = torch.optim.SGD(trained, 0.002, momentum=0.9)
    sum(p.square().sum() for p in trained).backward()
    schedule = CosineAnnealingLR(optimizer, float(epoch))
    schedule = ConstantWarmupScheduler(optimizer, schedule, 1, 1e-5)
    optimizer.step()
    content = {
        "state_dict": OrderedDict(tensors),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": LRScheduler.state_dict(schedule),  # Dassl's leaves the successor in it as it is
        "val_result": np.float64(81.25),
    }
    content["state_dict"]._metadata = OrderedDict({"": {"version": 1}})
    folder.mkdir(parents=True)
    path = folder / f"model.pth.tar-{epoch}"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    (folder / "checkpoint").write_text(f"{path.name}\n")
    return path


def command(name, root, *opts):
    words = ["--trainer", name, "--root", str(root), "--seed", "1"]
    return words, ["VERBOSE", "False", "USE_CUDA", "False", "DATALOADER.NUM_WORKERS", "0", *opts]


def built(name, root, *opts):
    words, pairs = command(name, root, *opts)
    set_random_seed(1)
    return build_trainer(setup_cfg(parse([*words, *pairs])))


def evaluated(name, root, out, model_dir, *opts, flags=()):
    """Accuracy of `train.py --eval-only --model-dir` on a directory without a config.yaml."""
    words, pairs = command(name, root, *opts)
    argv = [*words, "--eval-only", "--model-dir", str(model_dir), "--output-dir", str(out), *flags, *pairs]
    assert main(argv) == 0
    return json.loads((out / "results.json").read_text())["accuracy"]


def halved(learner, seed=5):
    """Random trained tensors that half precision holds, put into a learner too; by our names."""
    randomized(learner, scale=0.5, seed=seed)
    for p in learner.parameters():
        p.data.copy_(p.data.half())
    return {name: p.detach().half() for name, p in learner.named_parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_an_originals_directory_is_evaluated(pictures, tmp_path, name):
    folder, theirs, others, opts = METHODS[name]
    opts = [*opts, "DATASET.SUBSAMPLE_CLASSES", "base"]
    trainer = built(name, pictures, *opts)
    learner = trainer.model.get_submodule(trainer.learner)
    own = halved(learner)
    if name == "LinearProbe":
        own["base_text_features"] = learner.base_text_features
    wanted, state = trainer.test(), {theirs(key): tensor for key, tensor in own.items()} | others
    path = dassls(tmp_path / "DIR" / folder, state, 50)
    with pytest.raises(Exception, match="(?i)weights_only"):
        torch.load(path, weights_only=True)
    got = evaluated(name, pictures, tmp_path / "out", tmp_path / "DIR", *opts, flags=["--load-epoch", "50"])
    assert got == wanted

    old = dassls(tmp_path / "OLD" / folder, state, 50, legacy=True)
    fresh = built(name, pictures, *opts, "MODEL.INIT_WEIGHTS", str(old))
    again = built(name, pictures, *opts)
    again.load_model(str(tmp_path / "OLD"))
    for some in (fresh, again):
        for key, tensor in some.model.get_submodule(some.learner).named_parameters():
            assert tensor.dtype == torch.float32 and torch.equal(tensor.detach().half(), own[key]), key


@legacy
def test_what_is_neither_tensor_nor_plain_is_inert(tmp_path, noise, legacy):
    """The schedule, its optimizer, and NumPy's scalar."""
    state = {"ctx": noise(2, 8).half(), **FIXED}
    read = load_checkpoint(str(dassls(tmp_path / "x", state, 3, legacy)))
    assert list(read["state_dict"]) == list(state) and read["epoch"] == 3
    for key, tensor in state.items():
        assert read["state_dict"][key].dtype == tensor.dtype and torch.equal(read["state_dict"][key], tensor)
    successor, result = read["scheduler"]["successor"], read["val_result"]
    assert isinstance(successor, Stub) and successor.name == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert successor.attributes["T_max"] == 3 and isinstance(successor.attributes["optimizer"], Stub)
    assert read["scheduler"]["cons_lr"] == 1e-5 and isinstance(result, Stub)
    assert torch.equal(read["optimizer"]["state"][0]["momentum_buffer"], 2 * state["ctx"].float())


def test_an_epoch_of_nonsense_is_not_printed(pictures, tmp_path, capsys):
    path = dassls(tmp_path / "DIR" / "prompt_learner", {"ctx": torch.zeros(4, 64)}, 2)
    torch.save({"state_dict": load_checkpoint(str(path))["state_dict"], "epoch": ["\x1b[31m"]}, path)
    trainer = built("CoOp", pictures)
    trainer.load_model(str(tmp_path / "DIR"))
    assert not trainer.model.prompt_learner.ctx.any() and "\x1b" not in capsys.readouterr().out


@legacy
def test_training_does_not_go_on_from_an_original(pictures, tmp_path, capsys, legacy):
    trainer = built("CoOp", pictures)
    own = halved(trainer.model.prompt_learner)
    path = dassls(tmp_path / "DIR" / "prompt_learner", own | FIXED, 2, legacy)
    words, pairs = command("CoOp", pictures)
    for flags in (["--output-dir", tmp_path / "DIR"], ["--output-dir", tmp_path / "new", "--resume", tmp_path / "DIR"]):
        assert main([*words, *map(str, flags), *pairs]) == 1
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert str(path) in error and "CosineAnnealingLR" in error and "MODEL.INIT_WEIGHTS" in error
    assert load_checkpoint(str(path))["epoch"] == 2, "it is still there"


# ------------------------------------------------------------------ those that are not written for Dassl


def test_clip_lora(pictures, tmp_path, capsys):
    """lora_weights.pt: the layers of the text encoder, then those of the image encoder."""
    trainer = built("CLIPLoRA", pictures)
    own, layers = halved(trainer.model.lora), {}
    names = [key.removeprefix("w_lora_A.") for key in own if key.startswith("w_lora_A.")]
    blocks = sorted({tuple(name.split("_")[:2]) for name in names}, key=lambda b: (b[0] != "text", int(b[1])))
    for k, (encoder, i) in enumerate(blocks):
        layers[f"layer_{k}"] = {
            f"{w}_proj": {m: own[f"{m}.{encoder}_{i}_{w}"].float() for m in ("w_lora_A", "w_lora_B")} for w in "qkv"
        }
    metadata = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"}
    path = tmp_path / "seed1" / "lora_weights.pt"
    path.parent.mkdir()
    torch.save({"weights": layers, "metadata": metadata}, path)
    wanted = trainer.test()
    assert evaluated("CLIPLoRA", pictures, tmp_path / "out", path.parent) == wanted
    words, pairs = command("CLIPLoRA", pictures, "MODEL.INIT_WEIGHTS", str(path))
    assert main([*words, "--eval-only", "--output-dir", str(tmp_path / "init"), *pairs]) == 0
    assert json.loads((tmp_path / "init" / "results.json").read_text())["accuracy"] == wanted

    words, pairs = command("CLIPLoRA", pictures)
    for wrong, told in (({"alpha": 2}, "alpha 2"), ({"r": 4}, "does not fit")):
        if "r" in wrong:
            layers["layer_0"]["q_proj"]["w_lora_A"] = torch.zeros(4, 64)
        torch.save({"weights": layers, "metadata": metadata | wrong}, path)
        capsys.readouterr()
        assert main([*words, "--eval-only", "--model-dir", str(path.parent), *pairs]) == 1
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert told in error


@legacy
@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF"])
def test_tip_adapter(pictures, tmp_path, name, capsys, legacy):
    """caches/<data set>: keys, values and, trained, best_F; alpha and beta are searched on val, as there."""
    opts = [f"TRAINER.{name.upper()}.SEARCH_STEP", "[20, 5]"]
    trainer = built(name, pictures, *opts)
    n_cls, caches = trainer.num_classes, tmp_path / "caches"
    keys = F.normalize(torch.randn(64, 3 * n_cls, generator=torch.Generator().manual_seed(1)), dim=0).half()
    values = F.one_hot(torch.arange(3 * n_cls) // 3).half()
    files = {"keys_3shots": keys, "values_3shots": values}
    files |= {"best_F_3shots": torch.nn.Parameter(keys.t().contiguous())} if name == "TipAdapterF" else {}
    caches.mkdir()
    for file, content in files.items():
        torch.save(content, caches / f"{file}.pt", _use_new_zipfile_serialization=not legacy)
    trainer.model.cache.load_state_dict({"keys": keys, "values": values})
    trainer.search()
    wanted = trainer.test()
    assert evaluated(name, pictures, tmp_path / "out", caches, *opts) == wanted
    assert "Best on val" in capsys.readouterr().out

    torch.save(values, caches / "values_9shots.pt")
    words, pairs = command(name, pictures, *opts)
    for change in ([], ["DATASET.NUM_SHOTS", "9"]):
        assert main([*words, "--eval-only", "--model-dir", str(caches), *pairs, *change]) == 1
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "9shots.pt" in error if change else "[3, 9] shots" in error
