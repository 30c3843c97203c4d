"""What may change between two steps, and a comparison with an optimizer that keeps nothing."""

import copy

import torch
from support.blockwise import ROUNDING, Net, set_gradients
from torch import nn

from lightning_linf.optim import AdaSGD, BlockwiseAdam, Signum
from lightning_linf.partition import Partition

OPTIMIZERS = {
    **{
        name: lambda net, name=name: BlockwiseAdam(
            net.named_parameters(), 0.01, weight_decay=0.1, partition=Partition.of(net, name)
        )
        for name in ("row", "column")
    },
    **{
        name: lambda net, name=name: BlockwiseAdam(
            net.parameters(), 0.01, weight_decay=0.1, partition=name
        )
        for name in ("coordinate", "tensor")
    },
    "AdaSGD": lambda net: AdaSGD(net.parameters(), 0.01, weight_decay=0.1),
    "Signum": lambda net: Signum(net.parameters(), 0.01, weight_decay=0.1),
}


def no_gradient(net, optimizer):
    net.head.weight.grad = None


def another_group(net, optimizer):
    if not isinstance(getattr(optimizer, "partition", None), Partition):  # which has all it has
        net.more = nn.Parameter(torch.ones(3).to(net.head.weight))
        net.more.grad = torch.full_like(net.more, 2.0)
        optimizer.add_param_group({"params": [net.more], "lr": 0.5})


def loaded_state(net, optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry["exp_avg"] *= 3
        if "step" in entry:
            entry["step"] += 5
    optimizer.load_state_dict(state)


def numbers(net, optimizer):
    for group in optimizer.param_groups:
        group.update(lr=0.3, weight_decay=0.2, maximize=True)
        if "betas" in group:
            group.update(betas=(0.5, 0.7), eps=1e-3, eps_inside=True)
        else:
            group.update(momentum=0.3)


def without_momentum(net, optimizer):
    for group in optimizer.param_groups:
        group.update({"betas": (0.0, 0.9)} if "betas" in group else {"momentum": 0.0})


def rate_in_a_tensor(net, optimizer):
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.3, dtype=torch.float64)


def no_form_but_the_plain(net, optimizer):
    for group in optimizer.param_groups:
        group["foreach"] = False


def counts_where_kernels_read_them(net, optimizer):
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
    for state in optimizer.state.values():
        for key in state.keys() & {"step", "exp_avg_sq_step"}:
            state[key] = state[key].to(net.head.weight.device)


def another_parameter_with_its_state(net, optimizer):
    old, params = net.head.weight, optimizer.param_groups[0]["params"]
    new = net.head.weight = nn.Parameter(old.detach().clone())
    new.grad = old.grad
    optimizer.state[new] = optimizer.state.pop(old)
    params[next(i for i, p in enumerate(params) if p is old)] = new


def other_memory(net, optimizer):
    for p in net.parameters():
        p.data = p.data.clone()


def other_order_in_memory(net, optimizer):
    p = net.head.weight
    p.data = p.data.t().contiguous().t()


def gradients_in_another_order(net, optimizer):
    net.head.weight.grad = net.head.weight.grad.t().contiguous().t()


def other_state(net, optimizer):
    for state in optimizer.state.values():
        state["exp_avg"] = 2 * state["exp_avg"]


def state_in_other_memory(net, optimizer):
    for state in optimizer.state.values():
        state["exp_avg"].data = 2 * state["exp_avg"]


def other_counts(net, optimizer):
    for state in list(optimizer.state.values())[:3]:
        if "step" in state:
            state["step"].fill_(7)


def no_state(net, optimizer):
    optimizer.state.clear()


EVENTS = [
    no_gradient,
    another_group,
    loaded_state,
    numbers,
    without_momentum,
    rate_in_a_tensor,
    no_form_but_the_plain,
    counts_where_kernels_read_them,
    another_parameter_with_its_state,
    other_memory,
    other_order_in_memory,
    gradients_in_another_order,
    other_state,
    state_in_other_memory,
    other_counts,
    no_state,
]


def assert_follows_one_that_keeps_nothing(make, event, device):
    """Make four steps, with the event after the second, beside plain ones prepared each time."""
    net = Net().double().to(device)
    twin = copy.deepcopy(net)
    ours, theirs = make(net), make(twin)
    for group in theirs.param_groups:
        group["foreach"] = False
    for step in range(4):
        for each in (net, twin):
            torch.manual_seed(step)
            set_gradients(each.parameters())
        if step == 2:
            event(net, ours)
            event(twin, theirs)
            for group in theirs.param_groups:
                group["foreach"] = False
        theirs._kept = None
        ours.step()
        theirs.step()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, **ROUNDING)
            for key, value in theirs.state[q].items():
                torch.testing.assert_close(ours.state[p][key], value, **ROUNDING)
