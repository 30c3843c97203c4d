"""Triton kernels for GPUs, one a file, each beside a form in plain torch that says the same.

The plain form stands where the work belongs, in ``functional`` or ``optim``. It is the reference
that the kernel is tested against, and what runs wherever :func:`runs_kernels` says no.
"""

from lightning_linf.kernels.choice import runs_kernels as runs_kernels
