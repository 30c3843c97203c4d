"""How a rank ends."""

import atexit
import os
import sys

import torch


def end_rank() -> None:
    """End this process, if it is one of several ranks, before Python takes itself apart.

    A thread of gloo frees the tensors of the last collective, and needs the interpreter for that.
    On a busy machine it does so late; where Python is already ending, torch aborts the process
    (seen with 2.13), and torchrun on the other machines waits five minutes for this one.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit._run_exitfuncs()  # files, loggers and process groups are closed as ever
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
