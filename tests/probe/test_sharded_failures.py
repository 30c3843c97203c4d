"""A rank that fails in the middle of a pass over a sharded module is an error on all of them."""

import pytest
import torch
import torch.distributed as dist
from support.ranks import Heard, in_two_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_linf.probe import Landscape

pytestmark = pytest.mark.slow  # each test forks two processes


class Failing(nn.Module):
    """Its second layer fails on rank 1 in the call of a given number."""

    def __init__(self, error=None, in_backward=False):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)
        self.error, self.in_backward, self.is_armed = error, in_backward, False

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        if self.is_armed and dist.get_rank() == 1:
            if not self.in_backward:
                raise self.error
            hidden.register_hook(self.fail)
        return self.second(hidden)

    def fail(self, grad):
        raise self.error


def loss(module, x):
    return module(x).square().mean()


def make(**options):
    torch.manual_seed(0)
    module = Failing(**options).double()
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    return module, torch.randn(3, 4).double()


def outcome(work):
    try:
        return work()
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("wrong"), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_an_error_between_two_gathers_is_one_on_both_ranks(tmp_path, error, in_backward):
    def on_rank(rank):
        module, x = make(error=error, in_backward=in_backward)

        def probe():
            with Landscape(module, [x], loss=loss) as landscape:
                return landscape.gradient().sum().item()

        with Heard() as heard:
            first = outcome(probe)
            module.is_armed = True
            failed = outcome(probe)
            module.is_armed = False
            return first, failed, outcome(probe), heard

    results = in_two_processes(on_rank, tmp_path)
    for rank, (first, failed, after, heard) in enumerate(results):
        assert first == after  # both ranks go on
        assert isinstance(first, float)
        if isinstance(error, ValueError):
            expected = ("ValueError", "wrong") if rank else ("ProbeError", "probe: another rank fa")
            assert (failed[0], failed[1][:22]) == expected
            assert len(heard) == rank
        else:
            assert failed[0] == "ProbeMemoryError"


def test_a_parameter_that_the_loss_changes_is_refused(tmp_path):
    class Clipped(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.data.clamp_(-0.1, 0.1)
            return super().forward(x)

    def on_rank(rank):
        module = Clipped(4, 4)
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        with Landscape(module, [torch.randn(3, 4)], loss=loss) as landscape:
            return outcome(landscape.gradient)

    for kind, message in in_two_processes(on_rank, tmp_path):
        assert kind == "ProbeError"
        assert "does not change sharded parameters, but clamp_ does. Use whole_par" in message


def test_heads_counted_by_ranks_are_explained(tmp_path):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.num_heads = nn.Linear(4, 8), nn.Linear(8, 4), 4

        def forward(self, x):
            heads = self.inner(x).view(len(x), self.num_heads, 2)
            return self.outer(torch.tanh(heads).flatten(1))

    def on_rank(rank):
        module = Heads()
        mesh = init_device_mesh("cpu", (2,))
        plan = {"inner": ColwiseParallel(), "outer": RowwiseParallel()}
        parallelize_module(module, mesh, plan).num_heads = 2
        module(torch.randn(3, 4))
        with Landscape(module, [torch.randn(3, 4)], loss=loss) as landscape:
            return outcome(landscape.gradient)

    for kind, message in in_two_processes(on_rank, tmp_path):
        assert kind == "ProbeError"
        assert "expected a module that runs with whole parameters as on one device" in message
        assert "view(batch, length, -1, head_dim)" in message


def test_heads_counted_by_ranks_that_happen_to_fit_are_refused(tmp_path):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.num_heads = nn.Linear(4, 8), nn.Linear(8, 4), 4

        def forward(self, x):  # (batch, length, 4): with whole weights length is twice as large
            heads = self.inner(x).view(len(x), -1, self.num_heads, 2).transpose(1, 2)
            mixed = (heads @ heads.mT).softmax(-1) @ heads
            return self.outer(mixed.transpose(1, 2).reshape(len(x), x.shape[1], -1))

    def on_rank(rank):
        torch.manual_seed(0)
        module, x = Attention(), torch.randn(3, 5, 4)
        mesh = init_device_mesh("cpu", (2,))
        plan = {"inner": ColwiseParallel(), "outer": RowwiseParallel()}
        parallelize_module(module, mesh, plan).num_heads = 2
        with Landscape(module, [x], loss=loss) as landscape:
            refused = outcome(landscape.check)
        return refused

    for kind, message in in_two_processes(on_rank, tmp_path):
        assert kind == "RefusedLossError"
        assert "that the module has on the shards of tensor parallelism" in message


def test_a_map_of_whole_vectors_is_refused(tmp_path):
    class Doubling:
        def apply(self, vector):
            return 2 * vector

        apply_transpose = apply

    def on_rank(rank):
        module, x = make()
        doubling = Doubling()
        return outcome(lambda: Landscape(module, [x], loss=loss, reparameterization=doubling))

    for kind, message in in_two_processes(on_rank, tmp_path):
        assert kind == "ProbeError"
        assert "Use whole_parameters=True" in message


def test_the_check_of_a_loss_finds_on_both_ranks_what_it_finds_on_one_device(tmp_path):
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad * ctx.saved_tensors[0].detach()  # its own derivative is lost

    def rounded(module, x):
        return Rounded.apply(module(x)).mean()

    def detached(module, x):
        output = module(x)
        return (output * output.detach()).mean()

    def padded(module, tokens):
        return module(tokens).square().mean()

    def on_rank(rank):
        results = []
        for function in (loss, rounded, detached):
            module, x = make()
            with Landscape(module, [x], loss=function) as landscape:
                results.append(outcome(landscape.check))
        embedding = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 2))
        fully_shard(embedding, mesh=init_device_mesh("cpu", (2,)))
        with Landscape(embedding, [torch.arange(5)], loss=padded) as landscape:
            results.append(outcome(landscape.check))
        return results

    first, second = in_two_processes(on_rank, tmp_path)
    assert first == second
    plain, custom, remark, padding = first
    assert plain is None
    assert padding is None
    assert custom[0] == "RefusedLossError"
    assert "something that depends on the parameters is detached" in remark
