"""Blockwise Adam, and how it finds the blocks of its parameters."""

from lightning_linf.optim.blockwise.blockwise_adam import BlockwiseAdam as BlockwiseAdam
