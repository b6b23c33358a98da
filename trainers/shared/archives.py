"""The functions of `dassl.archives`, with substitutes for the original Dassl, which does not have them."""

import torch

try:
    from dassl.archives import load, state_dict
except ImportError:

    def load(path: str) -> object:
        """Load a file like CoOp: OpenAI's archives by TorchScript, which runs their code, others without pickles."""
        try:
            return torch.jit.load(path, map_location="cpu").state_dict()
        except RuntimeError:
            return torch.load(path, map_location="cpu", weights_only=True)

    def state_dict(content: object) -> object:
        return content


__all__ = ["load", "state_dict"]
