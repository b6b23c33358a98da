"""The drawing of the embedded benchmark: a coloured, patterned shape in a style, and the digits as strokes.

A *composition* is (pattern, colour, shape), e.g. "striped red heart". The 400 compositions are divided once, by a fixed
seed. The tiny CLIP is pre-trained on the `SEEN` ones; the data sets are drawn from the `UNSEEN` ones. The styles are
divided in the same way. All random numbers come from the NumPy generator in the arguments, so that a picture is a
function of its seed.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COLOURS = {  # RGB in [0, 1]
    "red": (0.86, 0.12, 0.12), "orange": (0.96, 0.55, 0.08), "yellow": (0.95, 0.88, 0.15), "green": (0.13, 0.63, 0.22),
    "blue": (0.13, 0.32, 0.86), "purple": (0.52, 0.16, 0.72), "pink": (0.96, 0.50, 0.72), "brown": (0.48, 0.28, 0.12),
}  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checkered", "hollow")


def _regular(corners: int, turn: float = 0.0, inner: float = 1.0) -> list[tuple[float, float]]:
    """Return the corners of a regular polygon or a star.

    Args:
        corners: corners of the polygon, or tips of the star.
        turn: angle in radians.
        inner: 1: a polygon; less: a star whose inner corners have this radius.
    """
    n = corners if inner == 1.0 else 2 * corners
    radius = [1.0 if inner == 1.0 or k % 2 == 0 else inner for k in range(n)]
    angle = [2 * np.pi * k / n - np.pi / 2 + turn for k in range(n)]
    return [(r * np.cos(a), r * np.sin(a)) for r, a in zip(radius, angle, strict=True)]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(16 * np.sin(a) ** 3 / 17, -b / 17) for a, b in zip(t, y, strict=True)]


def _moon() -> list[tuple[float, float]]:
    outer, inner = np.linspace(0.6, 2 * np.pi - 0.6, 30), np.linspace(2 * np.pi - 0.9, 0.9, 24)
    tip = 0.45  # centre of the bite
    return [(np.cos(a), np.sin(a)) for a in outer] + [(tip + 0.62 * np.cos(a), 0.72 * np.sin(a)) for a in inner]


SHAPES = {  # outlines in a circle of radius one, y pointing down
    "circle": _regular(40), "triangle": _regular(3), "square": _regular(4, np.pi / 4), "hexagon": _regular(6),
    "star": _regular(5, inner=0.42), "heart": _heart(), "moon": _moon(),
    "diamond": [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)],
    "cross": [(0.33 * a, 0.33 * b) for a, b in ((-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3),
                                                (-1, 1), (-3, 1), (-3, -1), (-1, -1))],
    "arrow": [(-0.28, 1), (-0.28, 0), (-0.8, 0), (0, -1), (0.8, 0), (0.28, 0), (0.28, 1)],
}  # fmt: skip

DIGITS = {  # strokes in the unit square, y pointing down
    "zero": [[(.5, 0), (.9, .25), (.9, .75), (.5, 1), (.1, .75), (.1, .25), (.5, 0)]],
    "one": [[(.25, .2), (.55, 0), (.55, 1)]],
    "two": [[(.1, .2), (.5, 0), (.9, .2), (.8, .5), (.1, 1), (.95, 1)]],
    "three": [[(.1, .1), (.6, 0), (.9, .25), (.45, .48), (.9, .72), (.6, 1), (.1, .9)]],
    "four": [[(.7, 1), (.7, 0), (.05, .68), (.95, .68)]],
    "five": [[(.9, 0), (.2, 0), (.15, .45), (.65, .42), (.9, .7), (.6, 1), (.1, .92)]],
    "six": [[(.75, 0), (.3, .3), (.1, .72), (.45, 1), (.85, .78), (.6, .5), (.15, .65)]],
    "seven": [[(.08, 0), (.92, 0), (.4, 1)]],
    "eight": [[(.5, .48), (.15, .25), (.5, 0), (.85, .25), (.5, .48), (.1, .75), (.5, 1), (.9, .75), (.5, .48)]],
    "nine": [[(.85, .3), (.5, .5), (.15, .25), (.5, 0), (.85, .2), (.85, .5), (.6, 1)]],
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """The look of a picture; an interval is sampled uniformly. Lengths are fractions of the picture's side."""

    paper: tuple[float, float] = (0.85, 1.0)  # brightness of the background
    tint: float = 0.0  # colourfulness of the background
    texture: float = 0.0  # strength of the blotches in the background
    radius: tuple[float, float] = (0.28, 0.42)
    tilt: float = 0.15  # radians, in both directions
    ink: float = 1.0  # opacity of the shape
    hue: float = 0.0  # fraction of each RGB channel that is mixed into the next one
    blur: float = 0.0  # radius
    noise: float = 0.0  # standard deviation
    clutter: int = 0  # thin grey lines across the picture


STYLES = {
    # seen in pre-training
    "flat": Style(),
    "dark": Style(paper=(0.0, 0.2)),
    "grey": Style(paper=(0.35, 0.65), tilt=0.3),
    "grainy": Style(paper=(0.2, 1.0), noise=0.06, blur=0.01),
    # never seen in pre-training
    "canvas": Style(paper=(0.3, 0.8), tint=0.25, texture=0.15, tilt=0.4, ink=0.95, hue=0.08, noise=0.05),
    "fog": Style(paper=(0.6, 0.8), ink=0.45, blur=0.03, noise=0.03),
    "night": Style(paper=(0.0, 0.1), ink=0.55, hue=0.2, noise=0.1),
    "neon": Style(paper=(0.1, 0.5), tint=0.5, tilt=0.6, clutter=5),
    "scribble": Style(paper=(0.7, 1.0), tilt=0.8, clutter=12, radius=(0.22, 0.34)),
}
SEEN_STYLES = ("flat", "dark", "grey", "grainy")

_all = [(p, c, s) for p in PATTERNS for c in COLOURS for s in SHAPES]
_order = np.random.RandomState(20240917).permutation(len(_all))  # RandomState, because its stream never changes
UNSEEN = [_all[k] for k in _order[:100]]
SEEN = [_all[k] for k in _order[100:]]


def name(composition: tuple[str, str, str]) -> str:
    """Return the class name of a composition, as "striped red heart" of ("striped", "red", "heart")."""
    return " ".join(composition)


def _background(style: Style, n: int, rng: np.random.Generator) -> np.ndarray:
    paper = np.full((n, n, 3), rng.uniform(*style.paper)) + style.tint * rng.uniform(-0.5, 0.5, 3)
    if style.texture:
        blotches = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((n, n), Image.BICUBIC)
        paper = paper + style.texture * (np.asarray(blotches) / 255.0 - 0.5) * 2
    return paper


def _ink(pattern: str, colour: np.ndarray, n: int, angle: float, rng: np.random.Generator) -> np.ndarray:
    """Return the plane filled with a pattern, [n, n, 3]; "plain" and "hollow" are one colour."""
    y, x = np.mgrid[0:n, 0:n] / n
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    period, phase = rng.uniform(0.19, 0.24), rng.uniform(0, 1, 2)
    u, v = u / period + phase[0], v / period + phase[1]
    if pattern == "striped":
        second = (v % 1) < 0.45
    elif pattern == "dotted":
        second = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09
    elif pattern == "checkered":
        second = (np.floor(1.25 * u) + np.floor(1.25 * v)) % 2 < 1
    else:
        second = np.zeros((n, n), bool)
    other = rng.choice([0.05, 0.97]) * np.ones(3)
    return np.where(second[..., None], other, colour)


def _finish(picture: np.ndarray, style: Style, size: int, rng: np.random.Generator) -> Image.Image:
    picture = (1 - style.hue) * picture + style.hue * np.roll(picture, 1, axis=-1)
    image = Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8))
    if style.clutter:
        pen = ImageDraw.Draw(image)
        for a, b, c, d, grey in rng.uniform(0, 1, (style.clutter, 5)):
            n = image.width
            pen.line((a * n, b * n, c * n, d * n), fill=(int(255 * grey),) * 3, width=n // 48)
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur * image.width))
    image = image.resize((size, size), Image.BOX)
    if style.noise:
        noisy = np.asarray(image) / 255.0 + rng.normal(0, style.noise, (size, size, 3))
        image = Image.fromarray((noisy.clip(0, 1) * 255).astype(np.uint8))
    return image


def draw(composition: tuple[str, str, str], style: Style, rng: np.random.Generator, size: int = 32) -> Image.Image:
    """Draw a picture of a composition.

    Args:
        composition: (pattern, colour, shape), each a name of the tables above.
        style: one of the values of `STYLES`.
        rng: source of the random numbers.
        size: side of the picture in pixels.

    Returns:
        RGB image, size x size.
    """
    pattern, colour, shape = composition
    n = 3 * size  # draw larger and average down, for smooth edges
    angle, radius = rng.uniform(-style.tilt, style.tilt), rng.uniform(*style.radius) * n
    centre = n / 2 + rng.uniform(-0.08, 0.08, 2) * n
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    mask = Image.new("L", (n, n))
    pen = ImageDraw.Draw(mask)
    outline = np.array(SHAPES[shape]) @ turn.T
    pen.polygon([tuple(p) for p in outline * radius + centre], fill=255)
    if pattern == "hollow":
        middle = outline.mean(0)
        pen.polygon([tuple(p) for p in (middle + (outline - middle) * 0.58) * radius + centre], fill=0)

    rgb = np.array(COLOURS[colour]) * rng.uniform(0.85, 1.1) + rng.normal(0, 0.03, 3)
    cover = style.ink * np.asarray(mask)[..., None] / 255.0
    picture = _background(style, n, rng) * (1 - cover) + _ink(pattern, rgb, n, angle, rng) * cover
    return _finish(picture, style, size, rng)


def draw_digit(digit: str, style: Style, rng: np.random.Generator, size: int = 32) -> Image.Image:
    """Draw a picture of a digit ("zero" ... "nine"), light strokes on dark or dark on light; RGB, size x size."""
    n = 3 * size
    angle, height = rng.uniform(-0.2, 0.2), rng.uniform(0.55, 0.85) * n
    shape = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * height
    shape = shape @ np.diag([rng.uniform(0.45, 0.8), 1.0])
    picture = _background(style, n, rng)
    mask = Image.new("L", (n, n))
    for stroke in DIGITS[digit]:
        points = (np.array(stroke) - 0.5 + rng.normal(0, 0.03, (len(stroke), 2))) @ shape.T + n / 2
        ImageDraw.Draw(mask).line(
            [tuple(p) for p in points], fill=255, width=int(rng.uniform(0.06, 0.14) * n), joint="curve"
        )
    cover = np.asarray(mask)[..., None] / 255.0
    strokes = 0.95 if picture.mean() < 0.5 else 0.05
    return _finish(picture * (1 - cover) + strokes * cover, style, size, rng)
