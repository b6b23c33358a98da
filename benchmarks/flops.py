"""The predicted costs of a case: GFLOP by the size of CLIP's linear maps, and GiB of the reference formulation.

N tokens through a map W [o, d] cost 2 N o d forward. The gradient of the input (dx) costs as much again, and so does
the gradient of a whole weight (dW), if it is formed. An image costs a ViT-B/16 35 GFLOP forward, with attention and
patches; a token of text costs 0.075. OrthCR's rotations cost, forward and backward: 4 o d b for W, or 6 N d b for
activations (b: block size), and Cayley's solves.

    reference   77 tokens for each prompt, dW of each changed weight
    ours        the tokens that all prompts share once, then SUFFIX tokens a class; no dW

In evaluation the reference encodes the text for each batch. Ours encodes it once for EVAL_BATCHES batches; a real test
set has more.
"""

from typing import NamedTuple

LENGTH = 77  # tokens of a prompt in the reference
SUFFIX = 5  # of the benchmark's class names: "harbour red car . <end>"
EVAL_BATCHES = 4
BLOCK = 64  # OrthCR's block size
SAVED_ACTIVATIONS = 16  # vectors of the width that autograd saves of a token in a block; 15 were measured for CoOp
START_AND_WORDS = 5  # "<start> a photo of a"
START_AND_16 = 17


class Backbone(NamedTuple):
    """The sizes of a CLIP."""

    patch: int
    image: tuple[int, int]  # (width, blocks) of the encoder
    text: tuple[int, int]  # (width, blocks) of the encoder
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
    """The computations of a training step of a method.

    Attributes:
        prefix: tokens that the prompts share; 0: a step encodes no text.
        image_dx: fraction of the image encoder's blocks with a gradient of their input.
        text_dx: fraction of the text encoder's blocks with a gradient of their input.
        bypass: passes of the frozen image encoder, in addition to the tuned one's.
        weights: fraction of a block's weights that are changed.
        rotated: OrthCR's rotations change them.
        whole: whole weights are trained, so that ours needs dW, too.
        per_image: each image has its own prompts.
        backwards: backward passes of a step.
        extra: additional tokens in each encoder.
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
    """Return the GFLOP of one image."""
    (d, blocks), n = clip.image, clip.patches + 1 + extra
    return patches_forward(clip) + blocks * (24 * n * d**2 + 4 * n**2 * d) / 1e9


def patches_forward(clip: Backbone) -> float:
    """Return the GFLOP of an image's patch embedding, which has no backward pass."""
    return 6 * clip.patches * clip.patch**2 * clip.image[0] / 1e9


def token_forward(clip: Backbone) -> float:
    """Return the GFLOP of one token of text."""
    d, blocks = clip.text
    return blocks * 24 * d**2 / 1e9


def text_tokens(method: Method, classes: int, batch: int, formulation: str) -> int:
    if not method.prefix:
        return 0
    sets = batch if method.per_image else 1
    if formulation == "reference":
        return sets * LENGTH * classes
    extra = method.extra if method is METHODS["MMRL"] else 0  # shared by all prompts; other methods replace tokens
    return sets * (method.prefix + extra + SUFFIX * classes)


def of_step(trainer: str, backbone: str, classes: int, batch: int, formulation: str) -> float:
    """Return the GFLOP of a training step; the formulation is "reference" or "ours"."""
    method, clip = METHODS[trainer], BACKBONES[backbone]
    tokens = text_tokens(method, classes, batch, formulation)
    weights = method.weights if formulation == "reference" or method.whole else 0

    def passes(dx):  # one forward, and the backwards with dW of the changed weights
        return 1 + method.backwards * (dx + weights) if dx else 1

    patches = patches_forward(clip)
    image = patches + (image_forward(clip, image_tokens(method)) - patches) * passes(method.image_dx)
    image = batch * (image + method.bypass * image_forward(clip))
    text = tokens * token_forward(clip) * passes(method.text_dx)
    if not method.rotated:
        return image + text
    sides = ((*clip.image, batch * (clip.patches + 1)), (*clip.text, tokens))
    return image + text + sum(rotation(*side, formulation) for side in sides)


def image_tokens(method: Method) -> int:
    """Return the number of additional tokens of an image."""
    return method.extra if method.image_dx > 0 else 0


def rotation(width: int, blocks: int, tokens: int, formulation: str) -> float:
    """Return the GFLOP of an encoder's rotations and Cayley's solves, forward and backward.

    The reference rotates the weights, ours the inputs of the maps.

    Args:
        width: of the encoder.
        blocks: of the encoder.
        tokens: of a step.
        formulation: "reference" or "ours".
    """
    inputs = 9 * width  # of the six maps of a block: c_proj has four times as many as each of the others
    rotated = 4 * 12 * width**2 * BLOCK if formulation == "reference" else 6 * tokens * inputs * BLOCK
    solves = 3 * 8 / 3 * BLOCK**3 * inputs / BLOCK
    return blocks * (rotated + solves) / 1e9


def of_evaluation(trainer: str, backbone: str, classes: int, batch: int, formulation: str) -> float:
    """Return the GFLOP of one batch of an evaluation of EVAL_BATCHES batches; see `of_step`."""
    method, clip = METHODS[trainer], BACKBONES[backbone]
    image = batch * image_forward(clip, image_tokens(method))
    text = text_tokens(method, classes, batch, formulation) * token_forward(clip)
    if formulation == "reference" or method.per_image:
        return image + text
    return image + text / EVAL_BATCHES


def reference_memory(trainer: str, backbone: str, classes: int, batch: int, itemsize: int = 4) -> float:
    """Return the GiB at the peak of a training step of the reference.

    It has CLIP, the changed weights and their gradients, and the activations that autograd saves.

    Args:
        trainer: name of the method.
        backbone: name of the CLIP.
        classes: number of classes.
        batch: number of images.
        itemsize: bytes of a number in an activation.
    """
    method, clip = METHODS[trainer], BACKBONES[backbone]
    weights = sum(12 * width**2 * blocks for width, blocks in (clip.image, clip.text))
    parameters = weights + 49408 * clip.text[0]
    total = 4 * (parameters + 2 * method.weights * weights)
    tokens_of_images = batch * (clip.patches + 1) * method.image_dx
    tokens_of_text = text_tokens(method, classes, batch, "reference") * method.text_dx
    for (width, blocks), tokens in ((clip.image, tokens_of_images), (clip.text, tokens_of_text)):
        total += itemsize * tokens * width * blocks * SAVED_ACTIVATIONS
    return total / 2**30
