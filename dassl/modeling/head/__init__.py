"""Heads: layers between a backbone and a classifier."""

from .build import HEAD_REGISTRY, build_head
from .mlp import MLP, mlp
