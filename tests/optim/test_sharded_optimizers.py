"""On shards, every optimizer and rotation makes the steps of one process with whole tensors."""

from functools import cache

import pytest
import torch
import torch.distributed as dist
from support.ranks import assert_close, in_processes, in_two_processes, weights
from support.sharded_net import data, net
from torch import nn
from torch.distributed.checkpoint import state_dict as checkpoints
from torch.optim import SGD, AdamW

from lightning_linf import Partition, Permutation, Rotation, Scaling
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.swap import carry_state

pytestmark = pytest.mark.slow  # each test, or all of one fixture, forks processes
NUM_STEPS = 20


def blockwise(partition, **options):
    def make(module):
        return BlockwiseAdam(
            module.named_parameters(), lr=0.01, weight_decay=0.1, partition=partition(module),
            **options,
        )  # fmt: skip

    return make


def thirds(name, p):
    return (torch.arange(p.numel()) % 3).view(p.shape) if p.ndim == 2 else "vectors"


PARTITIONS = {
    **{name: lambda module, name=name: name for name in ("coordinate", "tensor", "global")},
    **{
        name: lambda module, name=name: Partition.of(module, name)
        for name in ("row", "column", "head", "module")
    },
    "by_regex": lambda module: Partition.by_regex(module, r"^([a-z]+)"),
    "by_function": lambda module: Partition.by_function(module, thirds),
}


def reparameterized(reparameterization, factory=None):
    def make(module):
        return Reparameterized(
            module.named_parameters(),
            factory or (lambda p: AdamW(p, lr=0.01, weight_decay=0.1)),
            reparameterization,
        )

    return make


def sgd(params):
    return SGD(params, lr=0.02, momentum=0.9)


OPTIMIZERS = {
    "adamw": lambda module: AdamW(module.named_parameters(), lr=0.01),
    **{f"blockwise {name}": blockwise(p) for name, p in PARTITIONS.items()},
    **{
        f"blockwise {name}, plain": blockwise(PARTITIONS[name], foreach=False)
        for name in ("coordinate", "global", "head")
    },
    "blockwise row, maximize": blockwise(PARTITIONS["row"], maximize=True, eps_inside=True),
    "adasgd": lambda module: AdaSGD(module.parameters(), lr=0.01),
    "signum": lambda module: Signum(module.parameters(), lr=0.01, weight_decay=0.1),
    "signum, plain": lambda module: Signum(module.parameters(), lr=0.01, foreach=False),
    **{f"adamw, {scope}": reparameterized(Rotation(scope)) for scope in ("tensor", "row")},
    **{f"adamw, {scope}": reparameterized(Rotation(scope)) for scope in ("column", "global")},
    "adamw, partly": reparameterized(Rotation(only="attention", strength=0.5)),
    "adamw, permuted": reparameterized(Permutation()),
    "adamw, scaled": reparameterized(Scaling(2.0) @ Rotation()),
    "sgd, global": reparameterized(Rotation(), sgd),
    "blockwise tensor, global": reparameterized(
        Rotation(), lambda p: BlockwiseAdam(p, lr=0.01, partition="tensor")
    ),
    "blockwise coordinate, row": reparameterized(
        Rotation("row"), lambda p: BlockwiseAdam(p, lr=0.01, partition="coordinate")
    ),
    "signum, tensor": reparameterized(Rotation("tensor"), lambda p: Signum(p, lr=0.01)),
}


def shard(module, *, parts=("attention", "")):
    """Shard the named parts of a module over all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name in parts:
        fully_shard(module.get_submodule(name), mesh=mesh)
    return module


def train(module, optimizer, num_steps=NUM_STEPS, rank=0, num_ranks=1, forward=None):
    """Make steps on this rank's share of the batch."""
    x, y = (tensor[rank::num_ranks] for tensor in data())
    for _ in range(num_steps):
        optimizer.zero_grad()
        ((forward or module)(x) - y).square().mean().backward()
        if num_ranks > 1 and forward is None:
            for p in module.parameters():
                if p.grad is not None and not hasattr(p, "placements"):  # which nobody else sums
                    dist.all_reduce(p.grad)
                    p.grad /= num_ranks
        optimizer.step()


@cache
def trained_alone(make):
    """Weights after training in one process."""
    module = net()
    train(module, make(module))
    return weights(module)


def on_ddp(module):
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)


STRATEGIES = {  # what is done to a module, how it is called, and which optimizers are tried
    "fsdp2": (shard, None, list(OPTIMIZERS)),
    "partly fsdp2": (
        lambda module: shard(module, parts=["attention"]),
        None,
        [
            *(f"blockwise {name}" for name in ("coordinate", "row", "global", "by_regex")),
            *("blockwise global, plain", "signum, plain", "adamw, row", "adamw, global"),
        ],
    ),
    "ddp": (lambda module: module, on_ddp, list(OPTIMIZERS)),
}


@pytest.fixture(scope="module")
def trained_on_ranks(tmp_path_factory):
    """Weights on both ranks, by strategy and optimizer."""

    def on_rank(rank):
        found = {}
        for strategy, (prepare, wrap, names) in STRATEGIES.items():
            for name in names:
                module = prepare(net())
                forward = wrap and wrap(module)
                optimizer = OPTIMIZERS[name](module)
                train(module, optimizer, rank=rank, num_ranks=2, forward=forward)
                found[strategy, name] = weights(module)
        return found

    return in_two_processes(on_rank, tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(
    ("strategy", "name"),
    [(strategy, name) for strategy, (*_, names) in STRATEGIES.items() for name in names],
)
def test_steps_on_two_ranks_are_those_of_one_process(trained_on_ranks, strategy, name):
    expected = trained_alone(OPTIMIZERS[name])
    before = dict(net().named_parameters())
    for result in trained_on_ranks:
        ours = result[strategy, name]
        assert_close(ours, expected)
        assert torch.equal(ours["frozen"], before["frozen"])
        if not isinstance(OPTIMIZERS[name](net()), Reparameterized):
            assert torch.equal(ours["unused"], before["unused"])
        assert not torch.equal(ours["gain"], before["gain"])


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_a_rotation_does_not_change_sgd(trained_on_ranks, strategy):
    plain = trained_alone(lambda module: sgd(module.parameters()))
    for result in trained_on_ranks:
        assert_close(result[strategy, "sgd, global"], plain)
        assert not torch.allclose(
            result[strategy, "adamw, global"]["inner.weight"],
            result[strategy, "adamw"]["inner.weight"],
            rtol=1e-3,
        )


def test_steps_on_shards_are_prepared_once_and_again_for_other_tensors(tmp_path):
    names = ["blockwise coordinate", "blockwise row", "adasgd", "signum"]

    def on_rank(rank):
        found = {}
        for name in names:
            modules = [shard(net()) for _ in range(2)]
            ours, theirs = optimizers = [OPTIMIZERS[name](module) for module in modules]
            prepared, prepare = [], ours._prepare
            ours._prepare = lambda done=prepared, prepare=prepare: done.append(0) or prepare()
            counts = []
            for step in range(3):
                if step == 2:
                    for optimizer in optimizers:
                        for state in optimizer.state.values():
                            state["exp_avg"] = 2 * state["exp_avg"]
                for module, optimizer in zip(modules, optimizers, strict=True):
                    theirs._kept = None
                    train(module, optimizer, 1, rank, 2)
                counts.append(len(prepared))
            found[name] = counts, *map(weights, modules)
        return found

    for result in in_two_processes(on_rank, tmp_path):
        for counts, ours, theirs in result.values():
            assert counts == [1, 1, 2]
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_rank_keeps_its_share_of_the_state_and_sends_one_tensor_a_step(tmp_path):
    names = ["blockwise coordinate", "blockwise row", "adasgd", "signum", "adamw, global"]

    def on_rank(rank):
        sent = []
        all_reduce = dist.all_reduce

        def counted(tensor, *args, **options):
            sent.append(tensor.numel())
            return all_reduce(tensor, *args, **options)

        shapes = {}
        for name in names:
            module = shard(net())
            optimizer = OPTIMIZERS[name](module)
            train(module, optimizer, 1, rank, 2)
            sent.clear()
            dist.all_reduce = counted
            optimizer.step()
            dist.all_reduce = all_reduce
            state = optimizer.state[module.outer.weight]
            shapes[name] = (
                list(sent),
                {
                    key: tuple((v.to_local() if hasattr(v, "placements") else v).shape)
                    for key, v in state.items()
                    if v.ndim > 0
                },
            )
        return shapes

    rows = [(2, 6), (1, 6)]  # of outer.weight, (3, 6)
    for ours, shapes in zip(rows, in_two_processes(on_rank, tmp_path), strict=True):
        # One number for each block of more than one entry, from each tensor.
        assert shapes["blockwise coordinate"] == ([], {"exp_avg": ours, "exp_avg_sq": ours})
        row_blocks = 6 + 4 * 6 + 3
        assert shapes["blockwise row"] == ([row_blocks], {"exp_avg": ours, "exp_avg_sq": (3,)})
        assert shapes["adasgd"] == ([15], {"exp_avg": ours})  # tensors with a gradient
        assert shapes["signum"] == ([], {"exp_avg": ours})
        phi = {"phi.exp_avg": ours, "phi.exp_avg_sq": ours}
        assert shapes["adamw, global"] == ([], phi)


SAVED = [f"blockwise {name}" for name in ("coordinate", "row", "global", "by_function")]
SAVED += ["signum", "adamw, global", "blockwise tensor, global", "blockwise coordinate, row"]


def save(module, optimizer, path, full):
    options = checkpoints.StateDictOptions(full_state_dict=full, cpu_offload=True)
    state = {
        "module": checkpoints.get_model_state_dict(module, options=options),
        "optimizer": checkpoints.get_optimizer_state_dict(module, optimizer, options=options),
    }
    if not full:
        torch.distributed.checkpoint.save(state, checkpoint_id=path)
    elif not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(state, path)


def load(module, optimizer, path, full):
    if full:
        state = torch.load(path, weights_only=True)
        options = checkpoints.StateDictOptions(
            full_state_dict=True, broadcast_from_rank0=dist.is_initialized()
        )
    else:
        options = checkpoints.StateDictOptions()
        state = {
            "module": checkpoints.get_model_state_dict(module),
            "optimizer": checkpoints.get_optimizer_state_dict(module, optimizer),
        }
        torch.distributed.checkpoint.load(state, checkpoint_id=path)
    checkpoints.set_model_state_dict(module, state["module"], options=options)
    checkpoints.set_optimizer_state_dict(module, optimizer, state["optimizer"], options=options)


def without_unused():
    """As torch asks of a state, which a parameter without gradient does not have."""
    module = net()
    del module.unused
    return module


def test_states_go_to_files_and_back_and_between_numbers_of_processes(tmp_path):
    expected = {}
    for name in SAVED:
        module = without_unused()
        optimizer = OPTIMIZERS[name](module)
        train(module, optimizer, 5)
        save(module, optimizer, tmp_path / f"one {name}", full=True)
        train(module, optimizer, 5)
        expected[name] = weights(module)

    def resumed(name, path, full, rank):
        module = shard(without_unused())
        optimizer = OPTIMIZERS[name](module)
        dist.barrier()
        load(module, optimizer, path, full)
        train(module, optimizer, 5, rank, 2)
        return weights(module)

    def on_rank(rank):
        found = {}
        for name in SAVED:
            module = shard(without_unused())
            optimizer = OPTIMIZERS[name](module)
            train(module, optimizer, 5, rank, 2)
            whole, parts = tmp_path / f"two {name}", tmp_path / f"parts {name}"
            save(module, optimizer, whole, full=True)
            save(module, optimizer, parts, full=False)
            train(module, optimizer, 5, rank, 2)
            found[name] = [
                weights(module),
                resumed(name, whole, True, rank),
                resumed(name, parts, False, rank),
                resumed(name, tmp_path / f"one {name}", True, rank),
            ]
        return found

    results = in_two_processes(on_rank, tmp_path)
    for name in SAVED:
        for result in results:
            in_one_go, whole, parts, of_one = result[name]
            assert_close(in_one_go, expected[name])
            assert_close(whole, in_one_go, rtol=0, atol=0)
            assert_close(parts, in_one_go, rtol=0, atol=0)
            assert_close(of_one, expected[name])
        module = without_unused()
        optimizer = OPTIMIZERS[name](module)
        load(module, optimizer, tmp_path / f"two {name}", full=True)
        train(module, optimizer, 5)
        assert_close(weights(module), expected[name])


CARRIED = [
    ("adamw", "blockwise row"),
    ("blockwise coordinate", "adamw"),
    ("blockwise column", "blockwise head"),
    ("blockwise by_function", "blockwise by_function"),
    ("adamw", "adamw, global"),
    ("adamw, tensor", "blockwise global"),
    ("blockwise tensor, global", "signum"),
    ("sgd, global", "sgd, global"),
]


def test_moments_are_carried_over_on_shards_as_in_one_process(tmp_path):
    def run(module, rank, num_ranks):
        found = {}
        for former, latter in CARRIED:
            each = module()
            old, new = OPTIMIZERS[former](each), OPTIMIZERS[latter](each)
            train(each, old, 5, rank, num_ranks)
            said = carry_state(old, new)
            train(each, new, 5, rank, num_ranks)
            found[former, latter] = said, weights(each)
        return found

    results = in_two_processes(lambda rank: run(lambda: shard(net()), rank, 2), tmp_path)
    expected = run(net, 0, 1)
    for result in results:
        for pair, (said, after) in expected.items():
            assert result[pair][0] == said
            assert_close(result[pair][1], after)


def test_flat_parameters_and_whole_states_of_sharded_ones_are_refused(tmp_path):
    def refusal(call):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # its text is compared below
            call()
        return str(caught.value)

    def on_rank(rank):
        from torch.distributed.fsdp import FullyShardedDataParallel

        module = net()
        saved = {}
        for name in ("blockwise tensor", "blockwise coordinate"):
            optimizer = OPTIMIZERS[name](module)
            train(module, optimizer, 1)
            saved[name] = optimizer.state_dict()
        said = [
            refusal(lambda name=name: OPTIMIZERS[name](shard(net())).load_state_dict(saved[name]))
            for name in saved
        ]
        flat = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
        flat = FullyShardedDataParallel(flat, use_orig_params=True, device_id=torch.device("cpu"))
        said.append(refusal(lambda: BlockwiseAdam(flat.parameters())))
        said.append(refusal(lambda: Reparameterized(flat.parameters(), sgd, Rotation())))
        return said

    for *of_states, blockwise_adam, rotated in in_two_processes(on_rank, tmp_path):
        assert all("sharded as its parameters" in each for each in of_states)
        assert "got one flattened by FullyShardedDataParallel. Shard" in blockwise_adam
        assert "got one flattened by FullyShardedDataParallel. Shard" in rotated


def step_by_hand(module, optimizer, value=None):
    """Step along gradients that are the same on all ranks, but for an entry of one of them.

    They differ within rows: a rotation of equal numbers has zeros, up to rounding, which Adam takes
    for gradients.
    """
    for number, p in enumerate(module.parameters()):
        p.grad = p.detach() + 0.1 * (number + 1)
    if value is not None:
        module.inner.bias.grad.to_local()[0] = value
    optimizer.step()


def parts(state):
    """Every tensor of a state, of sharded ones this rank's part."""
    tensors = [value for entry in state["state"].values() for value in entry.values()]
    return [each.to_local() if hasattr(each, "placements") else each for each in tensors]


def test_states_sharded_otherwise_are_refused_and_leave_the_optimizer_as_it_was(tmp_path):
    names = ["blockwise row", "blockwise coordinate", "signum", "adamw, row"]

    def on_rank(rank):
        from torch.distributed.tensor import Replicate

        found = {}
        for name in names:
            module = shard(net())
            optimizer = OPTIMIZERS[name](module)
            step_by_hand(module, optimizer)
            state = optimizer.state_dict()
            before = [part.clone() for part in parts(state)]
            entries = {index: dict(entry) for index, entry in state["state"].items()}
            (key,) = [key for key in entries[0] if key.endswith("exp_avg")]
            entries[0][key] = entries[0][key].redistribute(placements=[Replicate()])
            with pytest.raises(ValueError, match="sharded as its parameters are") as caught:
                optimizer.load_state_dict({**state, "state": entries})
            after = parts(optimizer.state_dict())
            found[name] = str(caught.value), list(map(torch.equal, after, before))
        return found

    for result in in_two_processes(on_rank, tmp_path):
        for said, is_same in result.values():
            assert all(is_same)
            assert "Replicate()" in said
            assert "for parameter 0" in said


def test_sharded_parameters_may_be_cast_after_the_optimizer_was_made(tmp_path):
    names = ["adamw, row", "adamw, global", "blockwise tensor, global", "blockwise row", "signum"]

    def run(make):
        found = {}
        for name in names:
            module = make().float()
            optimizer = OPTIMIZERS[name](module)
            module.double()
            saved = OPTIMIZERS[name](module)
            step_by_hand(module, saved)
            optimizer.load_state_dict(saved.state_dict())
            for _ in range(2):
                step_by_hand(module, optimizer)
            found[name] = weights(module)
        return found

    expected = run(net)
    for result in in_two_processes(lambda rank: run(lambda: shard(net())), tmp_path):
        for name in names:
            assert_close(result[name], expected[name])
            assert {value.dtype for value in result[name].values()} == {torch.float64}


def test_signum_shows_a_nan_on_the_rank_that_has_it(tmp_path):
    def on_rank(rank):
        found = []
        for name in ("signum", "signum, plain"):
            module = shard(net())
            step_by_hand(module, OPTIMIZERS[name](module), torch.nan if rank else 1.0)
            found.append(weights(module)["inner.bias"].isnan().tolist())
        return found

    for result in in_two_processes(on_rank, tmp_path):
        assert result == [[False, False, False, True, False, False]] * 2


class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.norm = nn.LayerNorm(5)

    def forward(self, x):
        return self.c(self.norm(self.b(torch.tanh(self.a(x)))))


def on_mesh(module, kind):
    """Lay a module out on 2 x 2 ranks. Gives how many shares of the batch there are."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import parallel

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    if kind == "replicas of shards":
        fully_shard(module, mesh=mesh)
        return 4
    plan = {"a": parallel.ColwiseParallel(), "b": parallel.RowwiseParallel()}
    parallel.parallelize_module(module, mesh["inner"], plan)
    if kind == "tensor parallel":
        return 1
    fully_shard(module, mesh=mesh["outer"])
    return 2


MESHES = ["replicas of shards", "tensor parallel", "tensor parallel and sharded"]
ON_MESHES = [f"blockwise {name}" for name in ("coordinate", "row", "column", "global")]
ON_MESHES += ["blockwise by_function", "signum", "adamw, row", "blockwise tensor, global"]


@pytest.mark.filterwarnings("ignore:.*sequential all_gather.*")
def test_steps_on_meshes_of_two_dimensions_are_those_of_one_process(tmp_path):
    def maps():
        torch.manual_seed(3)
        return Maps().double()

    def on_rank(rank):
        found = {}
        for kind in MESHES:
            for name in ON_MESHES:
                module = maps()
                num_shares = on_mesh(module, kind)
                optimizer = OPTIMIZERS[name](module)
                share = rank * num_shares // 4
                x, y = (tensor[share::num_shares] for tensor in data())
                for _ in range(5):
                    optimizer.zero_grad()
                    (module(x) - y).square().mean().backward()
                    optimizer.step()
                found[kind, name] = weights(module)
        return found

    results = in_processes(on_rank, tmp_path, 4)
    for name in ON_MESHES:
        module = maps()
        train(module, OPTIMIZERS[name](module), 5)
        for kind in MESHES:
            for result in results:
                assert_close(result[kind, name], weights(module))
