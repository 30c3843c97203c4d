"""Partitions: splits of a module's parameters into blocks, such as rows or attention heads."""

from lightning_linf.partition.partition import Partition as Partition
