"""Reading files of PyTorch, where `load_clip` finds it beside the original Dassl too, which has no `dassl.archives`."""

import torch

try:
    from dassl.archives import load, state_dict
except ImportError:

    def load(path: str) -> object:
        """As CoOp does: OpenAI's archives by TorchScript, which runs their code; all else with nothing pickled."""
        try:
            return torch.jit.load(path, map_location="cpu").state_dict()
        except RuntimeError:
            return torch.load(path, map_location="cpu", weights_only=True)

    def state_dict(content: object) -> object:
        return content


__all__ = ["load", "state_dict"]
