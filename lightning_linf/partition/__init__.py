"""Partitions: splits of a module's parameters into blocks, such as rows or attention heads."""

from lightning_linf.partition.matrices import hidden_matrices as hidden_matrices
from lightning_linf.partition.partition import Partition as Partition
