"""Pre-training of the tiny CLIP in `assets/tiny_clip.safetensors`, from scratch, on drawn pictures with captions.

    python -m scripts.pretrain_tiny            # writes assets/tiny_clip.safetensors

Architecture and tokenizer are OpenAI's. The loss is that of Radford et al. 2021: symmetric cross-entropy over the
batch. The pictures have the compositions of `drawing.SEEN` and the styles of `drawing.SEEN_STYLES`. A batch holds each
composition once at most, so that no two captions describe the same picture. `docs/tiny_clip.md` has the device, the
time and the accuracies of the run that made the committed file.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm

import trainers  # noqa: E402, F401  before `clip`, whose warning it silences

# isort: split
from clip import clip
from clip.model import CLIP

from datasets.shared import drawing

ROOT = Path(__file__).resolve().parents[1]

CAPTIONS = (
    "a photo of a {}.|a picture of a {}.|a drawing of a {}.|an image of a {}.|a {}.|{}|a photo of one {}.|"
    "a photo of the {}.|a bad photo of a {}.|a good photo of the {}.".split("|")
)
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def subjects() -> list[str]:
    """Return the subjects of the captions: the seen compositions, then the ten digits."""
    return [drawing.name(c) for c in drawing.SEEN] + [f"digit {d}" for d in drawing.DIGITS]


def draw_subject(index: int, count: int) -> np.ndarray:
    """Return `count` pictures of subject `index` in the seen styles, uint8 [count, 32, 32, 3]."""
    rng, n = np.random.default_rng([7, index]), len(drawing.SEEN)
    pictures = []
    for k in range(count):
        style = drawing.STYLES[drawing.SEEN_STYLES[k % len(drawing.SEEN_STYLES)]]
        if index < n:
            pictures.append(drawing.draw(drawing.SEEN[index], style, rng))
        else:
            pictures.append(drawing.draw_digit(list(drawing.DIGITS)[index - n], style, rng))
    return np.stack([np.asarray(p) for p in pictures])


def zero_shot(model: CLIP, style: str, compositions: list, count: int = 10) -> float:
    """Return the zero-shot accuracy in percent on `compositions` drawn in `style`, with one fixed prompt.

    Args:
        model: in eval mode.
        style: one of `drawing.STYLES`.
        compositions: the classes.
        count: pictures of each class.
    """
    rng = np.random.default_rng(11)
    images = [np.asarray(drawing.draw(c, drawing.STYLES[style], rng)) for c in compositions for _ in range(count)]
    images = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255.0 - MEAN) / STD
    labels = torch.arange(len(compositions)).repeat_interleave(count)
    with torch.no_grad():
        prompts = clip.tokenize([f"a photo of a {drawing.name(c)}." for c in compositions])
        text = F.normalize(model.encode_text(prompts), dim=-1)
        return 100 * (model.encode_image(images) @ text.t()).argmax(1).eq(labels).float().mean().item()


def main() -> None:
    """Draw the pictures, train the model and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(ROOT / "assets/tiny_clip.safetensors"))
    parser.add_argument("--pictures", type=int, default=120, help="pictures drawn of each subject")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()

    start, names = time.time(), subjects()
    with ProcessPoolExecutor() as pool:
        jobs = pool.map(draw_subject, range(len(names)), [args.pictures] * len(names), chunksize=4)
        drawn_pictures = np.stack(list(tqdm(jobs, "drawing", total=len(names))))
    pictures = torch.from_numpy(drawn_pictures).permute(0, 1, 4, 2, 3)  # [subjects, pictures, 3, 32, 32]
    tokens = torch.stack([clip.tokenize([c.format(n) for c in CAPTIONS]) for n in names])  # [subjects, captions, 77]
    tokens = tokens[..., : int(tokens.argmax(-1).max()) + 1]  # nothing lies behind the last end-of-text token

    torch.manual_seed(0)
    vision = {"image_resolution": 32, "vision_layers": 4, "vision_width": 128, "vision_patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408}
    text |= {"transformer_width": 64, "transformer_heads": 1, "transformer_layers": 3}
    model = CLIP(embed_dim=64, **vision, **text)
    # no weight decay of the embedding: its rows of unseen words would shrink to nothing
    decay = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optim = torch.optim.AdamW(groups, lr=args.lr)
    sched = torch.optim.lr_scheduler.OneCycleLR(optim, args.lr, total_steps=args.steps, pct_start=0.1)

    bar = tqdm(range(args.steps), "pre-training")
    for step in bar:
        index = torch.randperm(len(names))[: args.batch]
        images = pictures[index, torch.randint(args.pictures, index.shape)]
        captions = tokens[index, torch.randint(len(CAPTIONS), index.shape)]
        logits, _ = model((images / 255.0 - MEAN) / STD, captions)
        target = torch.arange(len(index))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
        optim.zero_grad()
        loss.backward()
        optim.step()
        sched.step()
        model.logit_scale.data.clamp_(max=np.log(100))  # as in Radford et al. 2021
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % 300 == 299 or step + 1 == args.steps:
            model.eval()
            accuracy = {s: round(zero_shot(model, s, drawing.UNSEEN), 1) for s in drawing.STYLES}
            tqdm.write(f"step {step + 1}, zero-shot over {len(drawing.UNSEEN)} unseen compositions: {accuracy}")
            model.train()

    # fp16, as OpenAI publishes its weights; contiguous because safetensors asks for it
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, args.out, metadata={"made_by": "scripts/pretrain_tiny.py", "steps": str(args.steps)})
    size = Path(args.out).stat().st_size / 2**20
    device = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{args.out}: {size:.2f} MiB, {time.time() - start:.0f} s, {device}")


if __name__ == "__main__":
    main()
