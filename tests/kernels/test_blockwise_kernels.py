"""Steps by kernels: against the definition, and against the plain forms in all that may vary."""

import copy

import pytest
import torch
from support.blockwise import (
    FLOAT32,
    PARTITIONS,
    ROUNDING,
    Net,
    Reference,
    labels_of,
    set_gradients,
)
from torch import nn

from lightning_linf.optim import AdaSGD, BlockwiseAdam, Signum
from lightning_linf.optim.blockwise import step as steps

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy

OPTIONS = {
    "defaults": {},
    "decay": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1},
    "ascent inside": {"maximize": True, "lr": 0.01, "eps_inside": True, "eps": 1e-2},
    "no momentum": {"eps": 0.1, "betas": (0.0, 0.5), "weight_decay": 0.3},
}


@pytest.fixture
def only_kernels(monkeypatch):
    """Fail where a step would take the plain form."""

    def refuse(inputs):
        raise AssertionError("a step without kernels")

    monkeypatch.setattr(steps, "single_tensor_step", refuse)
    monkeypatch.setattr(steps, "cpu_form", refuse)


def stepped(make, net, num_steps=3, device="cpu", gradients=set_gradients, **options):
    """Make steps of a copy of a network, and give it with its optimizer."""
    net = copy.deepcopy(net).to(device)
    optimizer = make(net, **options)
    torch.manual_seed(1)
    for _ in range(num_steps):
        gradients(net.parameters())
        optimizer.step()
    return net, optimizer


@pytest.mark.usefixtures("only_kernels")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "by_function"])
def test_every_step_is_that_of_the_definition(name, options, device):
    net = Net().double().to(device)
    partition, params = PARTITIONS[name](net), list(net.parameters())
    chosen = OPTIONS[options]
    optimizer = BlockwiseAdam(net.named_parameters(), partition=partition, **chosen)
    reference = Reference(params, labels_of(partition), [chosen] * len(params))
    for step in range(3):
        set_gradients(params)
        if step == 1:  # neither in the mean of its block, nor in the counts
            params[2].grad = params[5].grad = None
        optimizer.step()
        reference.step([p.grad for p in params])
        reference.assert_equals(params, **ROUNDING)


class Large(nn.Module):
    """Rows, columns and tensors of several tiles and programs, and sizes that fill no tile."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(20_001, 2)
        self.tall = nn.Linear(32, 300)
        self.none = nn.Parameter(torch.empty(0, 3))


def assert_same(make, net, device, gradients=set_gradients, tolerance=None):
    (ours, first), (theirs, second) = (
        stepped(make, net, device=device, gradients=gradients, foreach=foreach)
        for foreach in (None, False)
    )
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, equal_nan=True, **(tolerance or FLOAT32))
        assert first.state[p].keys() == second.state[q].keys()
        for key, value in first.state[p].items():
            expected = second.state[q][key]
            assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
            chosen = FLOAT32 if value.dtype == torch.float32 else tolerance or FLOAT32
            torch.testing.assert_close(value, expected, equal_nan=True, **chosen)


def blockwise(name, **settings):
    def make(net, **options):
        partition = PARTITIONS[name](net)
        return BlockwiseAdam(
            net.named_parameters(), lr=0.01, weight_decay=0.1, partition=partition, **settings,
            **options,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("name", ["coordinate", "row", "column", "tensor", "global"])
def test_tensors_of_many_tiles_step_as_in_the_plain_form(name, device):
    assert_same(blockwise(name), Large(), device)


# Triton's interpreter cuts float32 off to bfloat16 where a GPU rounds.
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.gpu), torch.float16]
)
@pytest.mark.parametrize("name", ["coordinate", "column", "global"])
def test_half_precision_rounds_where_the_plain_form_does(name, dtype, device):
    eps = torch.finfo(dtype).eps  # one rounding of a sum that lies between two numbers
    assert_same(blockwise(name), Net().to(dtype), device, tolerance={"rtol": eps, "atol": eps / 64})


def test_counts_and_learning_rates_are_read_where_they_lie(device):
    def make(net, **options):
        lr = torch.tensor(0.01, device=device)
        return AdaSGD(net.parameters(), lr=lr, capturable=True, weight_decay=0.1, **options)

    assert_same(make, Net(), device)
    coordinates = blockwise("coordinate", capturable=True)
    assert_same(coordinates, Net(), device)


def test_groups_have_options_of_their_own(device):
    def make(net, **options):
        first, *rest = net.parameters()
        groups = [{"params": [first], "lr": 0.5, "maximize": True}, {"params": rest}]
        return AdaSGD(groups, lr=0.01, weight_decay=0.1, **options)

    assert_same(make, Net(), device)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_where_it_goes_in_the_plain_form(value, device):
    def gradients(params):
        params = list(params)
        set_gradients(params)
        params[0].grad[3, 1] = value

    for name in ("row", "coordinate"):
        assert_same(blockwise(name), Net(), device, gradients)
    assert_same(signum, Net(), device, gradients)


def signum(net, **options):
    return Signum(net.parameters(), lr=0.01, weight_decay=0.1, **options)


BFLOAT16 = {"rtol": 2 * torch.finfo(torch.bfloat16).eps, "atol": 1e-3}


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, FLOAT32),
        (torch.float64, ROUNDING),
        pytest.param(torch.bfloat16, BFLOAT16, marks=pytest.mark.gpu),  # as above
    ],
)
def test_signum_steps_as_in_the_plain_form(dtype, tolerance, device):
    assert_same(signum, Large().to(dtype), device, tolerance=tolerance)


def test_memory_layouts_do_not_matter(device):
    def gradients(params):
        params = list(params)
        set_gradients(params)
        for p in params:
            if p.ndim == 2:
                p.grad = p.grad.t().contiguous().t()
        params[-1].grad = torch.ones((), device=device).expand(1)

    net = Net()
    net.conv.to(memory_format=torch.channels_last)
    for name in ("tensor", "row"):
        assert_same(blockwise(name), net, device, gradients)
    assert_same(signum, net, device, gradients)


def test_a_step_has_the_same_bits_every_time(device):
    net = Large()
    first, second = (stepped(blockwise("global"), net, device=device)[0] for _ in range(2))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["coordinate", "row", "column", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_that_makes_its_own_gradients_replays_the_step(name, dtype):
    """Gradients then have other addresses than in the steps before the capture."""
    nets = [Large().to("cuda", dtype) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    lr = torch.tensor(0.01, device="cuda")
    captured, eager = (
        BlockwiseAdam(
            net.named_parameters(), lr=lr, partition=PARTITIONS[name](net), capturable=True
        )
        for net in nets
    )

    def train(net, optimizer):
        optimizer.zero_grad(set_to_none=True)
        sum(p.square().sum() for p in net.parameters()).backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        train(nets[0], captured)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    captured.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        train(nets[0], captured)
    lr.fill_(0.02)  # read at each replay
    for _ in range(3):
        graph.replay()
    lr.fill_(0.01)
    train(nets[1], eager)
    lr.fill_(0.02)
    for _ in range(3):
        train(nets[1], eager)
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(p, q)  # the sums have a fixed order


@pytest.mark.gpu
@pytest.mark.parametrize("make", [blockwise("row"), blockwise("global"), signum])
def test_a_gradient_scaler_unscales_before_the_step_and_leaves_out_overflows(make):
    net = Net().cuda()
    twin = copy.deepcopy(net)
    ours, theirs = make(net), make(twin)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    for step in range(3):
        set_gradients(twin.parameters())
        scaler.scale(torch.ones((), device="cuda"))
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            p.grad = q.grad * scaler.get_scale()
        if step == 1:
            next(net.parameters()).grad[0, 0] = torch.inf
        else:
            theirs.step()
        scaler.step(ours)
        scaler.update()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **FLOAT32)
