"""Losses, gradients and products without whole parameters are those of one process."""

import weakref

import pytest
import torch
import torch.distributed as dist
from support import sharded_modules
from support.ranks import in_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from lightning_linf.distributed.stretches import StretchExchange
from lightning_linf.probe import Landscape

pytestmark = [
    pytest.mark.slow,  # each test forks processes
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found a non-scalar tensor with numel=1:UserWarning"),
]


def sum_over_ranks(tensor):
    dist.all_reduce(tensor)
    return tensor


def joined(shard, shards):
    """Join the shards (..., local) of all ranks to whole vectors (..., d)."""
    if shards is None:
        return shard
    whole, first = shard.new_zeros(*shard.shape[:-1], shards.num_params), 0
    for numbers in shards.numbers():
        whole[..., numbers.start : numbers.stop] = shard[..., first : first + len(numbers)]
        first += len(numbers)
    return sum_over_ranks(whole)


def shard_of(whole, shards):
    if shards is None:
        return whole
    return torch.cat([whole[..., n.start : n.stop] for n in shards.numbers()], dim=-1)


def measure(module, batches, **options):
    """Give all that a landscape computes, whole, and the sum of what it tells of each batch."""
    with Landscape(module, batches, loss=sharded_modules.loss, **options) as landscape:
        vector = landscape.parameters
        generator = torch.Generator().manual_seed(1)
        whole = torch.randn(2, vector.num_params, generator=generator, dtype=torch.float64)
        vectors = shard_of(whole.to(vector.dtype), vector.shards)
        assert vectors.shape[-1] == vector.num_local
        assert vector.zeros(3).shape == (3, vector.num_local)
        numbers = {
            "gradient": landscape.gradient(),
            "away": landscape.gradient(0.01 * vectors[0]),
            "products": landscape.hvp(vectors),
        }
        first_half = landscape.first_half()
        if first_half is not None:
            numbers["halves"] = landscape.hvp_of_halves(vectors, first_half)
        # the last one counts the weights: that of a batch alone is 1
        along, squares = whole.new_zeros(3), whole.new_zeros(vector.num_params)

        def add(curvatures, weight):
            along.add_(weight * torch.cat([curvatures.square(), torch.ones(1)]))

        def add_square(gradient, weight):
            whole_gradient = gradient if vector.shards is None else joined(gradient, vector.shards)
            squares.add_(weight * whole_gradient.square())

        landscape.curvatures(vectors, add)
        landscape.each_gradient(add_square)
        numbers = {name: joined(value, vector.shards) for name, value in numbers.items()}
        numbers["losses"] = torch.tensor([landscape.loss(), landscape.loss(0.01 * vectors[0])])
        if options and vector.shards is None:
            along = sum_over_ranks(along)
        if options and vector.shards is None:
            squares = sum_over_ranks(squares)
    numbers["curvatures of batches"] = along[:2] / along[2]
    numbers["squares of batches"] = squares
    return numbers


def of_ranks(function, tmp_path, num_ranks):
    results = in_processes(function, tmp_path, num_ranks)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def assert_same(results, exact, tolerance):
    for result in results:
        assert result.keys() == exact.keys()
        for name, value in result.items():
            assert value.shape == exact[name].shape, name
            error = (value.double() - exact[name]).norm() / exact[name].norm()
            assert error < tolerance, f"{name}: {error}"


def whole(tensor):
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "placements") else tensor).clone()


def hooks_of(module):
    parts = [*module.modules()]
    return [[*part._forward_pre_hooks, *part._forward_hooks, *vars(part)] for part in parts]


def shard(module, mesh, **options):
    whole = (sharded_modules.Tied, sharded_modules.Shared, torch.nn.MultiheadAttention)
    for part in module.modules():
        is_leaf = not list(part.children()) and list(part.parameters())
        if is_leaf and not isinstance(module, whole):  # what is tied must be sharded together
            fully_shard(part, mesh=mesh, **options)
    fully_shard(module, mesh=mesh, **options)
    sharded_modules.tell_methods(module)


POLICIES = {
    "frozen": {"reshard_after_forward": False},
    "checkpointed": {"mp_policy": MixedPrecisionPolicy(torch.bfloat16)},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fully_sharded_modules_have_the_numbers_of_whole_ones(tmp_path, dtype):
    def on_rank(rank):
        mesh, results = init_device_mesh("cpu", (2,)), {}
        for name in sharded_modules.MODULES:
            module, x = sharded_modules.make(name, dtype)
            shard(module, mesh, **POLICIES.get(name, {}))
            hooks = hooks_of(module)
            before = [p.to_local().clone() for p in module.parameters()]
            batches = [x[:3]] if rank == 0 else [x[3:]]
            results[name] = measure(module, batches, reduce=sum_over_ranks)
            assert hooks_of(module) == hooks
            after = [p.to_local() for p in module.parameters()]
            assert all(map(torch.equal, before, after))
        return results

    results = of_ranks(on_rank, tmp_path, 2)
    for name in sharded_modules.MODULES:
        module, x = sharded_modules.make(name)
        exact = measure(module, [x[:3], x[3:]])
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        assert_same([result[name] for result in results], exact, tolerance)


class Net(nn.Module):
    """One that tensor parallelism splits, in sequence, by columns and by rows."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.query, self.value, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 6)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        hidden = self.norm(x)
        query, value = (
            part(hidden).view(*x.shape[:2], -1, 2).transpose(1, 2)
            for part in (self.query, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(query, value, value)
        hidden = x + self.out(attended.transpose(1, 2).flatten(2))
        return self.gain * self.head(hidden)


def net():
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5)
    return Net().double(), torch.randn(8, 4, 6, generator=generator).double()


def split(module, mesh):
    plan = {
        "norm": SequenceParallel(),
        "query": ColwiseParallel(input_layouts=Shard(1)),
        "value": ColwiseParallel(input_layouts=Shard(1)),
        "out": RowwiseParallel(output_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(
        module,
        mesh,
        {
            "norm": PrepareModuleInput(
                input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),)
            )
        },
    )
    parallelize_module(module, mesh, plan)


def prepare(kind, module, rank):
    """Shard over 4 ranks; give the number of the rank's batches among different ones."""
    if kind == "tensor parallel":
        split(module, init_device_mesh("cpu", (4,), mesh_dim_names=("tp",)))
        return 0
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    if kind == "hybrid":
        fully_shard(module.head, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return rank
    split(module, mesh["inner"])
    fully_shard(module.out, mesh=mesh["outer"])
    fully_shard(module, mesh=mesh["outer"])
    return rank // 2


KINDS = {"tensor parallel": 1, "two dimensions": 2, "hybrid": 4}  # numbers of different batches


@pytest.mark.parametrize("whole_parameters", [False, True])
def test_other_meshes_have_the_numbers_of_one_process(tmp_path, whole_parameters):
    _, x = net()

    def on_rank(rank):
        results = {}
        for kind, count in KINDS.items():
            module, _ = net()
            batches = [[part] for part in x.chunk(count)]
            ours = batches[prepare(kind, module, rank)]
            module(ours[0])  # its own hooks work, before and after
            before = [whole(p) for p in module.parameters()]
            hooks = hooks_of(module)
            options = {"reduce": sum_over_ranks, "whole_parameters": whole_parameters}
            results[kind] = measure(module, ours, **options)
            assert hooks_of(module) == hooks
            module(ours[0])
            assert all(map(torch.equal, before, [whole(p) for p in module.parameters()]))
        return results

    results = of_ranks(on_rank, tmp_path, 4)
    for kind, count in KINDS.items():
        exact = measure(net()[0], list(x.chunk(count)))
        assert_same([result[kind] for result in results], exact, 1e-12)


def test_ranks_may_have_unequal_numbers_of_batches(tmp_path):
    def on_rank(rank):
        module, x = sharded_modules.make("tied")
        shard(module, init_device_mesh("cpu", (2,)))
        batches = [x[:1], x[1:4], x[4:6]] if rank == 0 else [x[6:]]
        numbers = measure(module, batches, reduce=sum_over_ranks)
        del numbers["halves"]  # on one process others are together
        return numbers

    results = of_ranks(on_rank, tmp_path, 2)
    module, x = sharded_modules.make("tied")
    exact = measure(module, [x[:1], x[1:4], x[4:6], x[6:]])
    del exact["halves"]
    assert_same(results, exact, 1e-12)


def test_a_pass_holds_one_parameter_whole_or_two(tmp_path):
    """Of those that live at one time, with the graph of the gradient kept between products."""
    width, num_layers = 16, 6

    def on_rank(rank):
        module = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(num_layers)))
        shard(module, init_device_mesh("cpu", (2,)))
        living, most = [0], [0]
        join = StretchExchange.join

        def counted_join(self, stretch, size):
            whole = join(self, stretch, size)
            living[0] += 1
            most[0] = max(most[0], living[0])
            weakref.finalize(whole.untyped_storage(), lambda: living.__setitem__(0, living[0] - 1))
            return whole

        StretchExchange.join = counted_join
        x = torch.randn(4, width)
        with Landscape(module, [x], loss=lambda m, x: m(x).tanh().square().mean()) as landscape:
            gradient = landscape.gradient()
            kept = living[0]
            landscape.hvp(gradient)
            landscape.curvatures(gradient[None], lambda *_: None)
            return kept, most[0], living[0]

    for kept, most, left in of_ranks(on_rank, tmp_path, 2):
        assert kept <= 1  # the one gathered last
        assert most <= 3  # and a vector that a product gathers beside it
        assert left <= 1


def test_whole_products_of_parameters_do_not_pile_up(tmp_path):
    """A parameter is used forward and backward, and autograd would add both up in the end."""
    width, num_layers = 64, 24

    def on_rank(rank):
        module = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(num_layers)))
        shard(module, init_device_mesh("cpu", (2,)))
        x, layer = torch.randn(2, width), 4 * width**2
        with Landscape(module, [x], loss=lambda m, x: m(x).tanh().square().mean()) as landscape:
            memory = landscape.memory(num_probes=4, num_partitions=2)
            return memory.product / layer, memory.graph / layer

    for product, graph in of_ranks(on_rank, tmp_path, 2):
        assert product < 6  # of 24 layers, those that are whole meanwhile
        assert graph < num_layers / 2 + 6  # with this rank's half of the parameters


def test_training_is_the_same_to_the_last_bit_with_a_landscape_between_steps(tmp_path):
    def visit(module, batch):
        with Landscape(module, [batch], loss=sharded_modules.loss) as landscape:
            landscape.hvp(landscape.gradient())

    def train(kind, rank, visits):
        module, x = net()
        ours = x.chunk(KINDS[kind])[prepare(kind, module, rank)]
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, foreach=False)
        for _ in range(2):
            optimizer.zero_grad()
            module(ours).square().mean().backward()
            if visits:  # where there are gradients, and whole parameters are left
                visit(module, ours)
            optimizer.step()
            if visits:
                visit(module, ours)
        return [whole(p) for p in module.parameters()]

    def on_rank(rank):
        return [
            all(map(torch.equal, train(kind, rank, True), train(kind, rank, False)))
            for kind in KINDS
        ]

    for are_same in of_ranks(on_rank, tmp_path, 4):
        assert are_same == [True] * len(KINDS)


def test_losses_and_inputs_that_are_sharded_are_those_of_one_process(tmp_path):
    def loss(module, batch):
        x, target = batch
        return nn.functional.cross_entropy(module(x).flatten(0, 1), target.flatten())

    def measure_loss(module, batch, **options):
        with Landscape(module, [batch], loss=loss, **options) as landscape:
            value, gradient = landscape.loss(), landscape.gradient()
            return torch.tensor(value), joined(gradient, landscape.parameters.shards)

    module, x = net()
    target = torch.randint(6, x.shape[:2], generator=torch.Generator().manual_seed(1))

    def on_rank(rank):
        mesh = init_device_mesh("cpu", (2,))
        plan = {"head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)}
        parallelize_module(module, mesh, plan)
        sharded = distribute_tensor(x, mesh, [Shard(0)])
        with loss_parallel():
            own = loss(module, (x, target)).full_tensor().detach()
            return own, *measure_loss(module, (sharded, target))

    exact = measure_loss(module, (x, target))
    for own, *ours in of_ranks(on_rank, tmp_path, 2):
        torch.testing.assert_close(own, exact[0].double())
        torch.testing.assert_close(tuple(ours), exact)
