"""A fork whose child can use PyTorch."""

import os

import torch


def fork() -> int:
    """Fork as `os.fork` does; in the child, make PyTorch's pool of threads anew.

    The pool does not survive a fork. PyTorch replaces it at its next use, and fails with "Invalid thread pool!" where
    two threads, such as the main one and one of `backward`, use it for the first time at the same moment.
    """
    child = os.fork()
    if not child:
        torch.set_num_threads(torch.get_num_threads())
    return child
