"""Splits of a module's parameters into blocks: by coordinate, row, head, tensor and more."""

from lightning_linf.partition.partition import Partition as Partition
