"""Names that only this project's `dassl` has, with substitutes for the original Dassl, so that trainers/ run with both.

The other modules of trainers/ import these names from here, and names that both versions have from `dassl`.
"""

from importlib.util import find_spec

if find_spec("dassl.infrastructure"):
    from dassl.config.keys import Key, values
    from dassl.data.feature_cache import FeatureCache
    from dassl.data.transforms import is_fixed
    from dassl.infrastructure.archives import load as read_archive
    from dassl.infrastructure.archives import state_dict
    from dassl.infrastructure.console import say
    from dassl.infrastructure.distributed import (
        add_up,
        bounds,
        gather,
        gather_with_gradient,
        is_first,
        own_draws,
        parts,
        size,
    )
    from dassl.infrastructure.files import (
        check_hashes,
        check_regular,
        explain_read_error,
        read_json,
        visible,
        write_json,
    )
    from dassl.utils import free_memory

    BY_ITEM = {"draws_by_item": True}  # for build_transform and build_data_loader
else:
    import contextlib
    import json

    import torch

    # ---------------------------------------------------------------- the config checks no values

    class Key:
        def __init__(self, default, **_):
            self.default = default

    def values(declared):
        defaults = {}
        for name, key in declared.items():
            if isinstance(key, dict):
                defaults[name] = values(key)
            else:
                defaults[name] = key.default if isinstance(key, Key) else key
        return defaults

    # ---------------------------------------------------------------- files are not checked

    def read_archive(path: str) -> object:
        """Load a file like CoOp: OpenAI's archives by TorchScript, which runs their code, others without pickles."""
        try:
            return torch.jit.load(path, map_location="cpu").state_dict()
        except RuntimeError:
            return torch.load(path, map_location="cpu", weights_only=True)

    def state_dict(content: object) -> object:
        return content

    def check_hashes(folder: str, hashes: dict) -> None: ...

    def check_regular(path: str) -> None: ...

    def explain_read_error(error: Exception) -> str:
        return str(error)

    def visible(text) -> str:
        return str(text)

    def read_json(path: str):
        with open(path, encoding="utf-8") as f:
            return json.load(f)

    def write_json(content, path: str, seal: bool = False) -> None:
        with open(path, "w", encoding="utf-8") as f:
            json.dump(content, f)

    # ---------------------------------------------------------------- there is one process

    bounds = gather_with_gradient = None  # not called with one process

    def size() -> int:
        return 1

    def is_first() -> bool:
        return True

    def add_up(tensors):
        return tensors

    def gather(part, *tensors):
        return tensors

    def own_draws(*numbers):
        return contextlib.nullcontext()

    def parts(loader):
        return ((batch, None) for batch in loader)

    # ---------------------------------------------------------------- the rest

    FeatureCache = None  # the config has no key that switches it on

    BY_ITEM = {}  # there is one way to draw random numbers

    def is_fixed(transform) -> bool:
        return False

    def free_memory(device: torch.device | None = None) -> float:
        return float("inf")

    say = print

__all__ = ["BY_ITEM", "FeatureCache", "Key", "add_up", "bounds", "check_hashes", "check_regular", "free_memory"]
__all__ += [
    "gather",
    "gather_with_gradient",
    "is_first",
    "is_fixed",
    "explain_read_error",
    "own_draws",
    "parts",
    "read_archive",
    "read_json",
]
__all__ += ["say", "size", "state_dict", "values", "visible", "write_json"]
