"""Dassl: the training engine. Same public API as KaiyangZhou/Dassl.pytorch, written anew for today's PyTorch.

Nothing in here imports clip, trainers or datasets: those build on this package, never the other way round.
"""

__version__ = "1.0.0"
