"""A multi-layer perceptron."""

import torch.nn as nn

from dassl.utils import check_availability

from .build import HEAD_REGISTRY

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """A multilayer perceptron with linear map, batch normalisation, activation and dropout for each hidden width.

    Args:
        in_features: width of the input.
        hidden_layers: widths, or a single one.
        activation: "relu" or "leaky_relu".
        bn: whether there are batch normalisations.
        dropout: probability; 0: no dropout layers.

    Raises:
        ValueError: no hidden layer, or another activation.
    """

    def __init__(self, in_features=2048, hidden_layers=(), activation="relu", bn=True, dropout=0.0):
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise ValueError("an mlp head needs hidden_layers (MODEL.HEAD.HIDDEN_LAYERS): give at least one width")
        check_availability(activation, list(_ACTIVATIONS))
        layers = []
        for width in widths:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(_ACTIVATIONS[activation](inplace=True))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.mlp = nn.Sequential(*layers)
        self.out_features = in_features

    def forward(self, x):
        """Return float [B, out_features] for x float [B, in_features]."""
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs):
    """Build an `MLP`."""
    return MLP(**kwargs)
