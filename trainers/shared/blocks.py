"""Block-diagonal factors on the input side of a weight (OrthCR, OrthSR, BlockFT): the keys of their size."""

import math

from .keys import DecidingKey, Key

KEYS = {
    # number of rows of a block; 64 is the width of a head, and cheap to invert. 0 = one full block, slow on a ViT-B
    "BLOCK_SIZE": Key(64, low=0, rule=("not 1: a 1 x 1 rotation is the number 1", lambda b: b != 1)),
    # number of blocks of each weight whatever its width; 0 = by BLOCK_SIZE
    "N_BLOCKS": Key(0, low=0),
}
DECIDING_KEYS = {"N_BLOCKS": DecidingKey(("BLOCK_SIZE",), refused=True)}


def block_sizes(widths: dict[str, int], b: int, n: int, node_name: str) -> dict[str, tuple[int, int]]:
    """Return (number of blocks, block size) for each place.

    Args:
        widths: number of inputs, by place.
        b: block size; 0: one block for all inputs.
        n: number of blocks of each place, which has precedence over b; 0: b.
        node_name: full name of the config node, for the message.

    Raises:
        ValueError: b or n does not divide all widths. The message lists values that do.
    """
    common = math.gcd(*widths.values())
    for name, width in widths.items():
        if n and (width % n or width == n):
            numbers = [number for number in (1, 2, 4, 8, 16) if common % number == 0 and common > number]
            problem = f"{node_name}.N_BLOCKS {n} does not divide the {width} inputs of {name} into blocks of 2 or more"
            raise ValueError(f"{problem}: take one of {numbers}")
        if not n and b and width % b:
            sizes = [size for size in (16, 32, 64, 128, 256) if common % size == 0]
            problem = f"{node_name}.BLOCK_SIZE {b} does not divide the {width} inputs of {name}"
            raise ValueError(f"{problem}: take one of {sizes} or 0")
    if n:
        return {name: (n, width // n) for name, width in widths.items()}
    return {name: (width // (b or width), b or width) for name, width in widths.items()}
