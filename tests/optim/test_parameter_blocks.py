"""Parameters, named or not and in one group or several, find their blocks, or are refused."""

import math

import pytest
import torch
from support.blockwise import (
    FORMS,
    PARTITIONS,
    Net,
    Reference,
    assert_follows,
    labels_of,
    set_gradients,
)
from torch import nn

from lightning_linf.optim import AdaSGD, BlockwiseAdam
from lightning_linf.partition import Partition


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("name", ["coordinate", "tensor", "global"])
def test_named_partitions_need_no_module(name, foreach):
    net = Net().double()
    params = list(net.parameters())
    optimizer = BlockwiseAdam(params, partition=name, foreach=foreach)
    reference = Reference(params, labels_of(Partition.of(net, name)), [{}] * len(params))
    assert_follows(optimizer, params, reference, num_steps=10)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("name", ["head", "module", "global"])
def test_blocks_span_groups_that_differ_in_all_but_their_rate(name, foreach):
    net = Net().double()
    partition = PARTITIONS[name](net)
    decayed = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.5, 0.99)}
    others = {"lr": 0.03, "betas": (0.9, 0.99), "maximize": True}
    named = dict(net.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named.items() if p.ndim > 1], **decayed},
        {"params": [(n, p) for n, p in named.items() if p.ndim <= 1], **others},
    ]
    optimizer = BlockwiseAdam(groups, partition=partition, foreach=foreach)
    options = [decayed if p.ndim > 1 else others for p in named.values()]
    params = list(named.values())
    assert_follows(optimizer, params, Reference(params, labels_of(partition), options))


def test_order_of_named_parameters_does_not_matter():
    net = Net().double()
    partition, params = PARTITIONS["head"](net), list(net.parameters())
    optimizer = BlockwiseAdam(reversed(list(net.named_parameters())), partition=partition)
    reference = Reference(params, labels_of(partition), [{}] * len(params))
    assert_follows(optimizer, params, reference, num_steps=5)


def test_unnamed_parameters_are_matched_in_order():
    net = Net().double()
    partition, params = PARTITIONS["head"](net), list(net.parameters())
    reference = Reference(params, labels_of(partition), [{}] * len(params))
    optimizer = BlockwiseAdam(params, partition=partition)
    assert_follows(optimizer, params, reference, num_steps=5)


@pytest.mark.parametrize("name", ["coordinate", "tensor", "global"])
def test_parameter_groups_can_be_added_under_a_name(name):
    net = Net().double()
    params = list(net.parameters())
    optimizer = BlockwiseAdam(params[:3], lr=0.01, partition=name)
    optimizer.add_param_group({"params": params[3:], "lr": 0.02})
    labels = labels_of(Partition.of(net, name))
    options = [{"lr": 0.01}] * 3 + [{"lr": 0.02}] * (len(params) - 3)
    assert_follows(optimizer, params, Reference(params, labels, options), num_steps=5)


@pytest.mark.parametrize("name", ["coordinate", "tensor", "global"])
def test_parameters_may_be_put_into_the_groups_directly(name):
    net = Net().double()
    params = list(net.parameters())
    placeholders = [nn.Parameter(torch.empty_like(p, device="meta")) for p in params]
    optimizer = BlockwiseAdam(placeholders, lr=0.02, partition=name)
    (group,) = optimizer.param_groups  # as libraries do that shard parameters, or unfreeze them
    group["params"] = params[:3]
    optimizer.param_groups.append({**group, "params": params[3:5], "lr": 0.01})
    group["params"] = group["params"] + params[5:]
    order = [*params[:3], *params[5:], *params[3:5]]
    labels = dict(zip(params, labels_of(Partition.of(net, name)), strict=True))
    options = [{"lr": 0.02}] * (len(params) - 2) + [{"lr": 0.01}] * 2
    reference = Reference(order, [labels[p] for p in order], options)
    assert_follows(optimizer, order, reference, num_steps=3)
    optimizer.param_groups[1]["params"].append(group["params"].pop())
    reference.options[len(params) - 3] = reference.options[-1]
    assert_follows(optimizer, order, reference, num_steps=3)


def test_parameter_groups_are_not_added_to_a_partition():
    net = Net()
    optimizer = BlockwiseAdam(net.named_parameters(), partition=PARTITIONS["head"](net))
    group = {"params": [("extra", nn.Parameter(torch.ones(2)))]}
    with pytest.raises(ValueError, match=r"expected parameters of Partition.* got extra"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    set_gradients(net.parameters())
    optimizer.step()


@pytest.mark.parametrize("option", [{"betas": (0.9, 0.5)}, {"eps": 1.0}, {"eps_inside": True}])
def test_groups_that_share_a_block_must_agree(option):
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [p]}, {"params": [q], **option}]
    with pytest.raises(ValueError, match=r"AdaSGD: expected parameter groups 0 and 1, .* agree"):
        AdaSGD(groups)
    BlockwiseAdam(groups)  # they share none
    optimizer = AdaSGD([{"params": [p]}, {"params": [q]}])
    optimizer.param_groups[1].update(option)
    with pytest.raises(ValueError, match="agree in beta2, eps"):
        optimizer.step()
    with pytest.raises(ValueError, match="agree in beta2, eps"):
        AdaSGD([p]).add_param_group(groups[1])


def ones(*shape, **kwargs):
    return nn.Parameter(torch.ones(*shape, **kwargs))


def linear():
    return nn.Linear(2, 2)


def flattened():
    p = ones(0)  # the part of a rank that has nothing of it
    p._fsdp_flattened = True  # as FullyShardedDataParallel marks what it flattens
    return p


MISUSE = {
    "lr": (lambda: BlockwiseAdam([ones(2)], lr=-1.0), "`lr` to be a finite number >= 0, got -1.0"),
    "lr nan": (lambda: BlockwiseAdam([ones(2)], lr=math.nan), "`lr` to be a finite number"),
    "lr tensor": (lambda: AdaSGD([ones(2)], lr=torch.ones(2)), "AdaSGD: expected `lr`"),
    "lr text": (lambda: BlockwiseAdam([ones(2)], lr="1"), "`lr` to be a finite number"),
    "group": (lambda: BlockwiseAdam([{"params": [ones(2)], "lr": -1}]), "`lr` to be a finite"),
    "eps": (lambda: BlockwiseAdam([ones(2)], eps=-1e-8), "`eps` to be a finite number"),
    "decay": (lambda: BlockwiseAdam([ones(2)], weight_decay=-1), "`weight_decay` to be a finite"),
    "beta1": (lambda: BlockwiseAdam([ones(2)], betas=(1.0, 0.9)), r"`betas\[0\]` .* in \[0, 1\)"),
    "beta2": (lambda: BlockwiseAdam([ones(2)], betas=(0.9, -0.1)), r"`betas\[1\]` .* got -0.1"),
    "row": (
        lambda: BlockwiseAdam([ones(2)], partition="row"),
        r"got 'row'. Build Partition.of\(module, 'row'\)",
    ),
    "head": (lambda: BlockwiseAdam([ones(2)], partition="head"), "Build Partition.of"),
    "name": (lambda: BlockwiseAdam([ones(2)], partition="rows"), "'global' or a Partition, got"),
    "type": (lambda: BlockwiseAdam([ones(2)], partition=None), "a Partition, got None"),
    "complex": (
        lambda: BlockwiseAdam([ones(2, dtype=torch.complex64)]),
        "real parameters in their own shapes, got torch.complex64. Optimize its real",
    ),
    "flattened": (
        lambda: BlockwiseAdam([flattened()]),
        "got one flattened by FullyShardedDataParallel. Shard it by fully_shard",
    ),
    "three betas": (
        lambda: BlockwiseAdam([ones(2)], betas=(0.9, 0.99, 0.999)),
        r"expected two `betas`, got \(0.9, 0.99, 0.999\). Give the decay of the mean gradient and",
    ),
    "one beta": (lambda: AdaSGD([ones(2)], betas=0.9), "AdaSGD: expected two `betas`, got 0.9"),
    "lazy": (
        lambda: BlockwiseAdam(nn.LazyLinear(2).parameters()),
        "got a lazy one. Run the module",
    ),
    "order": (
        lambda: BlockwiseAdam([ones(2)], partition=Partition.of(linear(), "tensor")),
        "expected the 2 parameters of .* got 1 without names.* Pass model.named_parameters",
    ),
    "missing": (
        lambda: BlockwiseAdam([("bias", ones(2))], partition=Partition.of(linear(), "tensor")),
        "got all but weight. Build the Partition with `parameters=`",
    ),
    "unknown": (
        lambda: BlockwiseAdam([("b", ones(2))], partition=Partition.of(linear(), "tensor")),
        r"got b of shape \(2,\), which is not in it. Build the Partition from the module",
    ),
    "shape": (
        lambda: BlockwiseAdam([("bias", ones(3))], partition=Partition.of(linear(), "tensor")),
        r"got bias of shape \(3,\), which has \(2,\) there",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_with_a_remedy(name):
    call, message = MISUSE[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"BlockwiseAdam: expected dense gradients, .* SparseAdam"):
        BlockwiseAdam(embedding.parameters()).step()


def test_frozen_parameters_need_no_place_in_the_partition():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    rows = Partition.of(module, "row")
    optimizer = BlockwiseAdam(module.named_parameters(), partition=rows)
    before = module[0].weight.clone()
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    assert torch.equal(module[0].weight, before)
    assert optimizer.state[module[1].weight]["exp_avg_sq"].shape == (2,)
    module[0].requires_grad_()  # thawed, it is one block
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    assert optimizer.state[module[0].weight]["exp_avg_sq"].shape == (1,)
