"""Sharded tensors and what ranks tell each other: one process's view of many."""
