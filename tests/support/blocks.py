"""Blocks of a partition as labels that loops over single entries give."""

import itertools

import torch


def labels(module, key):
    """Number all entries by ``key(parameter's name, index)``, in order of appearance."""
    seen = {}
    return torch.tensor(
        [
            seen.setdefault(key(name, index), len(seen))
            for name, p in module.named_parameters()
            if p.requires_grad
            for index in itertools.product(*map(range, p.shape))
        ]
    )


def numbers(partition):
    return partition.expand(torch.arange(partition.num_blocks))


def assert_blocks(partition, module, key):
    expected = labels(module, key)
    assert torch.equal(numbers(partition), expected)
    assert partition.num_params == len(expected)
    assert partition.num_blocks == int(expected.max()) + 1
    values = torch.randint(-1000, 1000, (2, len(expected)))
    sums = torch.zeros(2, partition.num_blocks, dtype=torch.int64)
    for entry, label in enumerate(expected.tolist()):
        sums[:, label] += values[:, entry]
    assert torch.equal(partition.block_sum(values), sums)


def by_weight(weight):
    """Lift a key of the index in a tensor of two or more dimensions to all parameters."""
    return lambda name, index: (name, weight(*index) if len(index) > 1 else None)


def by_weight_and_entry(weight):
    return lambda name, index: (name, weight(*index) if len(index) > 1 else index)
