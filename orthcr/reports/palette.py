"""The colour, marker and hatch of each method. They are the same in every picture."""

import re

GREY = "#7f7f7f"  # for methods without training
# colours that colour-blind readers can distinguish (Okabe and Ito, Tol)
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PINK, SKY, WINE = "#cc79a7", "#56b4e9", "#882255"
COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, WINE)
MARKERS = "osD^vP<>"
HATCHES = (None, "///", "...", "xx", "\\\\\\", "++", "oo", "--")
METHODS = {  # (colour, marker, hatch)
    "OrthCR": (BLUE, "o", None),
    "CoOp": (ORANGE, "s", None),
    "CLIPLoRA": (GREEN, "D", None),
    "FullFT": (RED, "^", None),
    "MaPLe": (PINK, "v", None),
    "OrthSR": (SKY, "P", None),
    "PromptSRC": (WINE, "<", None),
    "BlockFT": (RED, ">", "..."),
    "VPT": (BLUE, "s", "///"),
    "CoCoOp": (ORANGE, "D", "///"),
    "KgCoOp": (GREEN, "^", "///"),
    "IVLP": (RED, "o", "///"),
    "ProGrad": (PINK, "o", "///"),
    "MMRL": (SKY, "v", "///"),
    "TipAdapterF": (WINE, "s", "///"),
    "LinearProbe": (ORANGE, "v", "..."),
    "CLIP_Adapter": (GREEN, "<", "..."),
    "TipAdapter": (WINE, "P", "..."),
    "TCP": (BLUE, "D", "xx"),
    "MMA": (ORANGE, "P", "xx"),
    "MMRLpp": (GREEN, "v", "xx"),
    "DePT": (RED, "s", "xx"),
    "CoPrompt": (PINK, "D", "xx"),
    "GDA": (BLUE, "v", "\\\\\\"),
    "LPpp": (ORANGE, "^", "\\\\\\"),
    "TwoStageFS": (GREEN, "o", "\\\\\\"),
    "CLIP_SVD": (RED, "D", "\\\\\\"),
    "ZeroshotCLIP": (GREY, "o", None),
    "ZeroshotCLIP2": (GREY, "s", "///"),
    "TPT": (GREY, "D", "..."),
    "TDA": (GREY, "v", "xx"),
    "CuPL": (GREY, "^", "\\\\\\"),
}


def method_of(label):
    """Return the method's name at the beginning of a label such as "OrthCR (s=0.5)"."""
    return re.match(r"\w*", label)[0]


def colour_of(method):
    """Return the colour of a method; for a method that is not in `METHODS`, a fixed one of `COLOURS`."""
    if method in METHODS:
        return METHODS[method][0]
    return COLOURS[sum(map(ord, method)) % len(COLOURS)]


def styles_of(labels, untrained=()):
    """Return {label: {"color", "marker", "hatch"}}. No two labels have the same colour and marker, or colour and hatch.

    - The label that is a method's name has the method's style; if there is none, the first label that begins with it.
    - Other labels of a method have its colour, and an unused marker and hatch.
    - Labels of methods that are not in `METHODS` have unused styles, with unused colours first.

    Args:
        labels: labels that begin with the name of their method.
        untrained: labels of methods without training, which are grey.
    """
    styles, owners = {}, {}
    for label in sorted(labels, key=lambda label: label != method_of(label)):
        method = method_of(label)
        if method in METHODS and method not in owners and (METHODS[method][0] == GREY) == (label in untrained):
            owners[method] = label
            styles[label] = METHODS[method]
    for label in labels:
        if label not in styles:
            used_styles = list(styles.values())
            colours = [GREY] if label in untrained else sorted(COLOURS, key=[style[0] for style in used_styles].count)
            if method_of(label) in owners and label not in untrained:
                colours.insert(0, colour_of(method_of(label)))
            styles[label] = _free_style(colours, used_styles)
    return {label: dict(zip(("color", "marker", "hatch"), styles[label], strict=True)) for label in labels}


def _free_style(colours, styles):
    """Return the first style in one of these colours that is not in `styles`."""
    for colour in colours:
        markers = [marker for marker in MARKERS if (colour, marker) not in {style[:2] for style in styles}]
        hatches = [hatch for hatch in HATCHES if (colour, hatch) not in {style[::2] for style in styles}]
        if markers and hatches:
            return colour, markers[0], hatches[0]
    return colours[0], MARKERS[len(styles) % len(MARKERS)], HATCHES[len(styles) % len(HATCHES)]
