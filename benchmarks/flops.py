"""What a case should need: GFLOP by the size of CLIP's linear maps, and GiB of the reference formulation.

Of N tokens through a map W [o, d]: 2 N o d forward, as much again for the gradient of its input (dx), and as much
again where the gradient of a whole weight (dW) is formed. A ViT-B/16 has 35 GFLOP forward for an image, attention and
patches included, and 0.075 for a token of text. OrthCR's rotations are counted, too, forward and backward: of W
4 o d b, of activations 6 N d b (b the block size), and Cayley's solves.

    reference   77 tokens for each prompt, dW of each changed weight
    ours        the tokens that all prompts share once, then SUFFIX tokens a class; no dW

In evaluation the reference encodes the text for each batch; ours once for EVAL_BATCHES batches, few for a test set.
"""

from typing import NamedTuple

LENGTH = 77  # tokens of a prompt in the reference
SUFFIX = 5  # of the benchmark's class names: "harbour red car . <end>"
EVAL_BATCHES = 4
BLOCK = 64  # OrthCR's block size
KEPT = 16  # numbers of the width that the graph keeps of a token in a block; CoOp's measured 15, and some room
START_AND_WORDS = 5  # "<start> a photo of a"
START_AND_16 = 17


class Backbone(NamedTuple):
    """image, text: (width, blocks) of an encoder."""

    patch: int
    image: tuple[int, int]
    text: tuple[int, int]
    embed: int

    @property
    def patches(self) -> int:
        return (224 // self.patch) ** 2


BACKBONES = {
    "ViT-B/16": Backbone(16, (768, 12), (512, 12), 512),
    "ViT-B/32": Backbone(32, (768, 12), (512, 12), 512),
    "ViT-L/14": Backbone(14, (1024, 24), (768, 12), 768),
}


class Method(NamedTuple):
    """What a training step of a method computes, beside what an evaluation does.

    Attributes:
        prefix: tokens that its prompts share; 0: it encodes no text in a step.
        image_dx, text_dx: share of an encoder's blocks that gradients go through.
        bypass: passes of the frozen image encoder beside the tuned one's.
        weights: share of a block's weights that are changed.
        rotated: whether that is done by OrthCR's rotations.
        whole: whether whole weights are trained, so that dW is needed in ours, too.
        per_image: whether each image has its own prompts.
        backwards: backward passes of a step.
        extra: tokens more in each encoder.
    """

    prefix: int = START_AND_WORDS
    image_dx: float = 0
    text_dx: float = 1
    bypass: int = 0
    weights: float = 0
    rotated: bool = False
    whole: bool = False
    per_image: bool = False
    backwards: int = 1
    extra: int = 0


METHODS = {  # with the settings of benchmarks/cases.py
    "CoOp": Method(START_AND_16),
    "OrthCR": Method(image_dx=1, bypass=1, weights=1, rotated=True),
    "MaPLe": Method(image_dx=1, extra=2),
    "PromptSRC": Method(image_dx=1, bypass=1, extra=4),
    "CoCoOp": Method(per_image=True),
    "CLIPLoRA": Method(image_dx=1, weights=3 / 12),
    "KgCoOp": Method(START_AND_16),
    "ProGrad": Method(START_AND_16, backwards=2),
    "IVLP": Method(image_dx=1, extra=4),
    "VPT": Method(0, image_dx=1, extra=8),
    "MMRL": Method(image_dx=7 / 12, text_dx=7 / 12, bypass=1, extra=5),
    "OrthSR": Method(image_dx=1, bypass=2, weights=1, rotated=True),
    "FullFT": Method(image_dx=1, weights=1, whole=True),
    "CLIP_Adapter": Method(0),
}


def image_forward(clip: Backbone, extra: int = 0) -> float:
    """GFLOP of one image."""
    (d, blocks), n = clip.image, clip.patches + 1 + extra
    return patches_forward(clip) + blocks * (24 * n * d**2 + 4 * n**2 * d) / 1e9


def patches_forward(clip: Backbone) -> float:
    """GFLOP of an image's patch embedding, through which no gradient goes."""
    return 6 * clip.patches * clip.patch**2 * clip.image[0] / 1e9


def token_forward(clip: Backbone) -> float:
    """GFLOP of one token of text."""
    d, blocks = clip.text
    return blocks * 24 * d**2 / 1e9


def text_tokens(method: Method, classes: int, batch: int, formulation: str) -> int:
    if not method.prefix:
        return 0
    sets = batch if method.per_image else 1
    extra = method.extra if method is METHODS["MMRL"] else 0  # its tokens are shared, too; the others' replace some
    return sets * (LENGTH * classes if formulation == "reference" else method.prefix + extra + SUFFIX * classes)


def of_step(trainer: str, backbone: str, classes: int, batch: int, formulation: str) -> float:
    """GFLOP of a training step; formulation: "reference" or "ours"."""
    method, clip = METHODS[trainer], BACKBONES[backbone]
    tokens = text_tokens(method, classes, batch, formulation)
    weights = method.weights if formulation == "reference" or method.whole else 0

    def passes(dx):  # forward, and backward with dW where it is needed
        return 1 + method.backwards * (dx + (weights if dx else 0))

    patches = patches_forward(clip)
    image = patches + (image_forward(clip, method.extra * (method.image_dx > 0)) - patches) * passes(method.image_dx)
    image = batch * (image + method.bypass * image_forward(clip))
    text = tokens * token_forward(clip) * passes(method.text_dx)
    if not method.rotated:
        return image + text
    sides = ((*clip.image, batch * (clip.patches + 1)), (*clip.text, tokens))
    return image + text + sum(rotation(*side, formulation) for side in sides)


def rotation(width: int, blocks: int, tokens: int, formulation: str) -> float:
    """GFLOP of rotating all weights of an encoder, or what goes into them, and of Cayley's solves; both directions."""
    inputs = 9 * width  # of the six maps of a block: c_proj has four times as many as the others
    turned = 4 * 12 * width**2 * BLOCK if formulation == "reference" else 6 * tokens * inputs * BLOCK
    solves = 3 * 8 / 3 * BLOCK**3 * inputs / BLOCK
    return blocks * (turned + solves) / 1e9


def of_evaluation(trainer: str, backbone: str, classes: int, batch: int, formulation: str) -> float:
    """GFLOP of one batch of an evaluation of EVAL_BATCHES."""
    method, clip = METHODS[trainer], BACKBONES[backbone]
    image = batch * image_forward(clip, method.extra * (method.image_dx > 0))
    text = text_tokens(method, classes, batch, formulation) * token_forward(clip)
    return image + text / (1 if formulation == "reference" or method.per_image else EVAL_BATCHES)


def reference_memory(trainer: str, backbone: str, classes: int, batch: int, itemsize: int = 4) -> float:
    """GiB at the peak of a training step of the reference: CLIP, changed weights and their gradients, activations."""
    method, clip = METHODS[trainer], BACKBONES[backbone]
    sizes = [12 * width**2 * blocks for width, blocks in (clip.image, clip.text)]
    clips = sum(sizes) + 49408 * clip.text[0]
    total = 4 * (clips + 2 * method.weights * sum(sizes))
    sides = ((clip.image, batch * (clip.patches + 1) * method.image_dx),)
    sides += ((clip.text, text_tokens(method, classes, batch, "reference") * method.text_dx),)
    return (total + itemsize * sum(tokens * width * blocks * KEPT for (width, blocks), tokens in sides)) / 2**30
