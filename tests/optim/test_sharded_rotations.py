"""Rotated optimizers exchange shards: their steps, memory and messages on two and four ranks."""

import pytest
import torch
import torch.distributed as dist
from support.ranks import assert_close, in_processes, in_two_processes, weights
from support.vector_count import counted_vectors
from torch import nn
from torch.optim import SGD, AdamW

from lightning_linf import Permutation, Rotation, Scaling
from lightning_linf.functional import sharded_rotation
from lightning_linf.optim import Reparameterized

pytestmark = pytest.mark.slow  # each test forks processes

NUM_STEPS = 3
MAPS = {
    "global": Rotation(),
    "weak": Rotation(strength=0.4, seed=3),
    "tensor": Rotation("tensor"),
    "row": Rotation("row"),
    "column": Rotation("column"),
    "selected": Rotation(only="weight"),
    "permutation": Permutation(),
    "product": Scaling(0.5) @ Rotation("column") @ Permutation(only="weight"),
}


class Layers(nn.Module):
    """Convolutions, rows that do not divide by the ranks, and a tensor of one entry."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 14), nn.Linear(14, 9), nn.Linear(9, 3)
        self.norm, self.gain = nn.LayerNorm(9), nn.Parameter(torch.ones(1))
        self.conv = nn.Conv1d(1, 3, 3, padding=1, groups=1)

    def forward(self, x):
        hidden = self.norm(self.b(torch.tanh(self.a(x))))
        return self.c(self.gain * self.conv(hidden[:, None]).mean(dim=1))


def layers():
    torch.manual_seed(3)
    return Layers().double()


def data():
    generator = torch.Generator().manual_seed(5)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(8, 6, **draw), torch.randn(8, 3, **draw)


def place(module, kind):
    """Lay a module out on all ranks. Gives how many shares of the batch there are."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import parallel

    num_ranks = dist.get_world_size()
    if kind == "shards":
        fully_shard(module, mesh=init_device_mesh("cpu", (num_ranks,)))
        return num_ranks
    if kind == "some shards":  # the rest is whole on all ranks
        fully_shard(module.a, mesh=init_device_mesh("cpu", (num_ranks,)))
        return 1
    mesh = init_device_mesh("cpu", (2, num_ranks // 2), mesh_dim_names=("outer", "inner"))
    if kind == "replicas":
        fully_shard(module, mesh=mesh)
        return num_ranks
    plan = {"a": parallel.ColwiseParallel(), "b": parallel.RowwiseParallel()}
    parallel.parallelize_module(module, mesh["inner"], plan)
    if kind == "tensor parallel":
        return 1
    if kind == "tensor parallel and some shards":  # each over another dimension of the mesh
        fully_shard(module.c, mesh=mesh["outer"])
        return 1
    fully_shard(module, mesh=mesh["outer"])
    return 2


def train(module, reparameterization, share=0, num_shares=1, num_steps=NUM_STEPS, optimizer=None):
    x, y = (tensor[share::num_shares] for tensor in data())
    optimizer = optimizer or Reparameterized(
        module.named_parameters(), lambda p: AdamW(p, lr=0.01), reparameterization
    )
    for _ in range(num_steps):
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
    return optimizer


KINDS = {
    2: ["shards", "some shards"],
    4: [
        *("shards", "replicas", "tensor parallel", "tensor parallel and shards"),
        "tensor parallel and some shards",
    ],
}


@pytest.mark.filterwarnings("ignore:.*sequential all_gather.*")
@pytest.mark.parametrize("num_ranks", KINDS)
def test_training_is_that_of_one_process(tmp_path, monkeypatch, num_ranks):
    monkeypatch.setattr(sharded_rotation, "_FEW", 4)  # so that vectors of a small net are split

    def on_rank(rank):
        found = {}
        for kind in KINDS[num_ranks]:
            for name, reparameterization in MAPS.items():
                module = layers()
                num_shares = place(module, kind)
                train(module, reparameterization, rank * num_shares // num_ranks, num_shares)
                found[kind, name] = weights(module)
        return found

    results = in_processes(on_rank, tmp_path, num_ranks)
    for name, reparameterization in MAPS.items():
        module = layers()
        train(module, reparameterization)
        for kind in KINDS[num_ranks]:
            for result in results:
                assert_close(result[kind, name], weights(module), rtol=1e-9, atol=1e-9)


WIDTH = 512


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_step_needs_memory_for_a_few_shards(tmp_path, num_ranks):
    num_params = sum(p.numel() for p in wide().parameters())

    def on_rank(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        module = fully_shard(wide(), mesh=init_device_mesh("cpu", (num_ranks,)))
        optimizer = Reparameterized(module.parameters(), lambda p: SGD(p, lr=0.1), Rotation())
        for p in module.parameters():
            p.grad = p.detach().clone()
        optimizer.step()
        with counted_vectors(num_params, {}) as count:
            optimizer.step()
        sent = []
        send = dist.all_to_all_single

        def counted(output, tensor, received, counts, **options):
            sent.append(len(tensor) - counts[rank])
            return send(output, tensor, received, counts, **options)

        dist.all_to_all_single = counted
        optimizer.step()
        return count.peak * num_ranks, len(sent), sum(sent) * num_ranks / num_params

    for shards, num_messages, sent in in_processes(on_rank, tmp_path, num_ranks):
        assert 3.5 < shards < 4.8  # former phi, gradient, what is sent, and what comes
        assert num_messages in (24, 27)  # in three products; on two ranks one brings nothing
        assert sent < 24 * (num_ranks - 1) / num_ranks


def test_a_step_takes_no_gathering(tmp_path):
    def on_rank(rank):
        module = layers()
        place(module, "shards")
        optimizer = train(module, Rotation())
        calls = []
        for name in ("all_gather", "all_gather_into_tensor", "all_reduce", "all_gather_object"):
            function = getattr(dist, name)
            setattr(dist, name, lambda *a, f=function, n=name, **k: calls.append(n) or f(*a, **k))
        optimizer.step()
        return calls

    assert in_two_processes(on_rank, tmp_path) == [[], []]


@pytest.mark.parametrize("name", ["global", "product"])
def test_training_goes_on_on_another_number_of_ranks(tmp_path, monkeypatch, name):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    monkeypatch.setattr(sharded_rotation, "_FEW", 4)

    def steps(num_ranks, load):
        def on_rank(rank):
            module = layers()
            place(module, "shards")
            optimizer = train(module, MAPS[name], rank, num_ranks, num_steps=0)
            if load:
                states = get_state_dict(module, optimizer)
                checkpoint.load(dict(zip("mo", states, strict=True)), checkpoint_id=tmp_path / "c")
                set_state_dict(
                    module, optimizer, model_state_dict=states[0], optim_state_dict=states[1]
                )
            train(module, None, rank, num_ranks, optimizer=optimizer)
            if not load:
                states = get_state_dict(module, optimizer)
                checkpoint.save(dict(zip("mo", states, strict=True)), checkpoint_id=tmp_path / "c")
            return weights(module)

        folder = tmp_path / f"{num_ranks} {load}"
        folder.mkdir()
        return in_processes(on_rank, folder, num_ranks)

    steps(2, load=False)
    module = layers()
    train(module, MAPS[name], num_steps=2 * NUM_STEPS)
    for result in steps(4, load=True):
        assert_close(result, weights(module), rtol=1e-9, atol=1e-9)


def test_shards_that_leave_out_entries_are_refused_on_all_ranks(tmp_path):
    def on_rank(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard

        mesh = init_device_mesh("cpu", (2,))
        p = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Shard(0)]))
        chunk = type(p).__create_chunk_list__
        type(p).__create_chunk_list__ = lambda p: [c for c in chunk(p) if rank == 0]
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # its text is compared below
            Reparameterized([p], lambda q: SGD(q, lr=0.1), Rotation())
        return str(caught.value)

    for said in in_two_processes(on_rank, tmp_path):
        assert "expected every entry of a parameter in one shard" in said
        assert "shape (6,) with the placements (Shard(dim=0),). Shard it by" in said
