"""Blockwise Adam against its definition, entry by entry, and against AdamW at one end."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from lightning_linf.optim import AdaSGD, BlockwiseAdam
from lightning_linf.partition import Partition

ROUNDING = {"rtol": 1e-12, "atol": 1e-13}  # of float64, over 50 steps
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
FORMS = [None, False, True]  # of foreach: the fused or plain form, the plain one, many at a time


class Net(nn.Module):
    """Attention, grouped convolution, an embedding and a linear map: 120 parameters."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.conv = nn.Conv2d(2, 4, (3, 1), groups=2)
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 2)
        self.norm = nn.LayerNorm((1,))


def thirds(name, p):
    """Three blocks of uneven sizes in no order, for tensors that have so many entries."""
    index = torch.arange(p.numel()) ** 2 % 3
    return index.view(p.shape) if p.numel() > 3 else name


PARTITIONS = {
    "coordinate": lambda net: Partition.of(net, "coordinate"),
    "row": lambda net: Partition.of(net, "row"),
    "column": lambda net: Partition.of(net, "column"),
    "head": lambda net: Partition.of(net, "head"),
    "tensor": lambda net: Partition.of(net, "tensor"),
    "module": lambda net: Partition.of(net, "module"),
    "global": lambda net: Partition.of(net, "global"),
    "by_regex": lambda net: Partition.by_regex(net, "weight|bias"),
    "by_function": lambda net: Partition.by_function(net, thirds),
}
OPTIONS = {
    "defaults": {},
    "decay": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1},
    "ascent": {"maximize": True, "weight_decay": 0.3, "lr": 0.01},
    "eps inside": {"eps_inside": True, "eps": 1e-2},
    "large eps": {"eps": 0.1, "betas": (0.0, 0.5)},
}


class Reference:
    """Blockwise Adam with explicit loops over blocks and entries, in Python numbers."""

    def __init__(self, tensors, labels, options):
        self.entries = [t.detach().double().flatten().tolist() for t in tensors]
        self.labels = [label.flatten().tolist() for label in labels]
        self.options = [dict(DEFAULTS, **each) for each in options]
        self.m = [[0.0] * len(entries) for entries in self.entries]
        self.steps = [0] * len(tensors)
        self.v = dict.fromkeys((b for label in self.labels for b in label), 0.0)
        self.v_steps = dict.fromkeys(self.v, 0)

    def step(self, grads):
        grads = [None if g is None else g.double().flatten().tolist() for g in grads]
        denominators = {}
        for block in self.v:
            squares = []
            for label, g, each in zip(self.labels, grads, self.options, strict=True):
                if g is not None:
                    squares += [g[i] ** 2 for i, b in enumerate(label) if b == block]
                    if block in label:
                        options = each
            if squares:
                beta2, eps = options["betas"][1], options["eps"]
                mean = math.fsum(squares) / len(squares)
                self.v[block] = beta2 * self.v[block] + (1 - beta2) * mean
                self.v_steps[block] += 1
                v_hat = self.v[block] / (1 - beta2 ** self.v_steps[block])
                if options["eps_inside"]:
                    denominators[block] = math.sqrt(v_hat + eps)
                else:
                    denominators[block] = math.sqrt(v_hat) + eps
        for t, g in enumerate(grads):
            if g is None:
                continue
            options, beta1 = self.options[t], self.options[t]["betas"][0]
            self.steps[t] += 1
            for i, block in enumerate(self.labels[t]):
                g_i = -g[i] if options["maximize"] else g[i]
                self.m[t][i] = beta1 * self.m[t][i] + (1 - beta1) * g_i
                m_hat = self.m[t][i] / (1 - beta1 ** self.steps[t])
                self.entries[t][i] *= 1 - options["lr"] * options["weight_decay"]
                self.entries[t][i] -= options["lr"] * m_hat / denominators[block]

    def assert_equals(self, tensors, **tolerance):
        for entries, t in zip(self.entries, tensors, strict=True):
            expected = torch.tensor(entries, dtype=torch.float64)
            torch.testing.assert_close(t.detach().double().flatten(), expected, **tolerance)


DEFAULTS = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "eps_inside": False,
    "maximize": False,
}  # fmt: skip


def labels_of(partition):
    label = partition.expand(torch.arange(partition.num_blocks))
    return label.split([shape.numel() for shape in partition.shapes])


def set_gradients(params, scale=1.0):
    """Random ones, of another size for each tensor and a few of them zero."""
    for index, p in enumerate(params):
        noise = torch.randn_like(p) * (torch.rand_like(p) > 0.1)
        p.grad = noise * scale * 10.0 ** (index % 4 - 2)


def assert_follows(optimizer, params, reference, num_steps=50, tolerance=ROUNDING):
    for _ in range(num_steps):
        set_gradients(params)
        optimizer.step()
        reference.step([p.grad for p in params])
        reference.assert_equals(params, **tolerance)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", PARTITIONS)
def test_every_step_is_that_of_the_definition(name, options, foreach):
    net = Net().double()
    partition, params = PARTITIONS[name](net), list(net.parameters())
    optimizer = BlockwiseAdam(
        net.named_parameters(), partition=partition, foreach=foreach, **OPTIONS[options]
    )
    reference = Reference(params, labels_of(partition), [OPTIONS[options]] * len(params))
    assert_follows(optimizer, params, reference, num_steps=50 if options == "decay" else 5)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("name", PARTITIONS)
def test_float32_follows_the_definition_to_its_rounding(name, foreach):
    net = Net()
    partition, params = PARTITIONS[name](net), list(net.parameters())
    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = BlockwiseAdam(
        net.named_parameters(), partition=partition, foreach=foreach, **options
    )
    reference = Reference(params, labels_of(partition), [options] * len(params))
    assert_follows(optimizer, params, reference, num_steps=5, tolerance=FLOAT32)


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


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("name", ["row", "head", "module", "global", "tensor"])
def test_parameters_without_gradient_stay_and_do_not_dilute_the_mean(name, foreach):
    net = Net().double()
    partition, params = PARTITIONS[name](net), list(net.parameters())
    optimizer = BlockwiseAdam(
        net.named_parameters(), partition=partition, foreach=foreach, weight_decay=0.1
    )
    reference = Reference(params, labels_of(partition), [{"weight_decay": 0.1}] * len(params))
    for step in range(20):
        set_gradients(params)
        for index, p in enumerate(params):
            if (index + step) % 3 == 0 or step < 2 or index == 4:  # none at all in the first steps
                p.grad = None
        optimizer.step()
        reference.step([p.grad for p in params])
        reference.assert_equals(params, **ROUNDING)
    assert "exp_avg" not in optimizer.state[params[4]]


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_entry_a_block_is_adamw(dtype, foreach):
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "maximize": True}
    ours, theirs = Net().to(dtype), None
    theirs = copy.deepcopy(ours)
    optimizer = BlockwiseAdam(ours.parameters(), partition="coordinate", foreach=foreach, **options)
    adamw = torch.optim.AdamW(theirs.parameters(), **options)
    for _ in range(50):
        set_gradients(ours.parameters())
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        adamw.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, **(ROUNDING if dtype == torch.float64 else FLOAT32))


def test_defaults_are_those_of_adamw_but_for_the_decay():
    p = nn.Parameter(torch.ones(2))
    ours, theirs = BlockwiseAdam([p]).defaults, torch.optim.AdamW([p]).defaults
    assert {k: ours[k] for k in ("lr", "betas", "eps")} == {
        k: theirs[k] for k in ("lr", "betas", "eps")
    }


@pytest.mark.parametrize("foreach", FORMS)
def test_one_block_is_adasgd_on_the_flat_vector(foreach):
    net = Net().double()
    flat = nn.Parameter(nn.utils.parameters_to_vector(net.parameters()).detach())
    options = {"lr": 0.01, "weight_decay": 0.1, "foreach": foreach}
    tensors, vector = AdaSGD(net.parameters(), **options), BlockwiseAdam([flat], **options)
    for _ in range(50):
        set_gradients(net.parameters())
        flat.grad = torch.cat([p.grad.flatten() for p in net.parameters()])
        tensors.step()
        vector.step()
        torch.testing.assert_close(
            nn.utils.parameters_to_vector(net.parameters()), flat, **ROUNDING
        )
    assert sum("exp_avg_sq" in state for state in tensors.state.values()) == 1


def test_a_rotation_inside_each_tensor_changes_nothing():
    sizes = (6, 11)
    rotations = [torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in sizes]
    original = [nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in sizes]
    rotated = [nn.Parameter(q @ p.detach()) for q, p in zip(rotations, original, strict=True)]
    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizers = BlockwiseAdam(original, **options), BlockwiseAdam(rotated, **options)
    for _ in range(50):
        set_gradients(original)
        for q, p, r in zip(rotations, original, rotated, strict=True):
            r.grad = q @ p.grad
        for optimizer in optimizers:
            optimizer.step()
    for q, p, r in zip(rotations, original, rotated, strict=True):
        torch.testing.assert_close(r, q @ p, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("name", ["row", "head", "by_function", "tensor", "coordinate"])
def test_memory_layouts_of_parameters_and_gradients_do_not_matter(name, foreach):
    net = Net().double()
    net.head.weight = nn.Parameter(net.head.weight.detach().t().contiguous().t())
    net.attention.in_proj_weight = nn.Parameter(torch.randn(4, 12, dtype=torch.float64).t())
    net.conv.to(memory_format=torch.channels_last)
    partition, params = PARTITIONS[name](net), list(net.parameters())
    optimizer = BlockwiseAdam(net.named_parameters(), partition=partition, foreach=foreach)
    reference = Reference(params, labels_of(partition), [{}] * len(params))
    for _ in range(5):
        set_gradients(params)
        for p in params[2:]:
            p.grad = p.grad.t().contiguous().t() if p.ndim == 2 else p.grad.contiguous()
        optimizer.step()
        reference.step([p.grad for p in params])
        reference.assert_equals(params, **ROUNDING)


@pytest.mark.parametrize("name", PARTITIONS)
def test_state_has_one_number_per_block(name):
    net = Net()
    partition = PARTITIONS[name](net)
    optimizer = BlockwiseAdam(net.named_parameters(), partition=partition)
    set_gradients(net.parameters())
    optimizer.step()
    states = optimizer.state.values()
    sizes = [state["exp_avg_sq"].numel() for state in states if "exp_avg_sq" in state]
    assert sum(sizes) == partition.num_blocks
    for p, state in optimizer.state.items():
        assert state["exp_avg"].shape == p.shape
        assert state["step"].device.type == "cpu"
        assert state["step"].dtype == torch.float32
        assert state["step"] == 1


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


def saved_by_torch(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["head", "global", "by_function", "coordinate"])
def test_loaded_state_continues_exactly(name, dtype, foreach):
    net = Net().to(dtype)
    partition = PARTITIONS[name](net)
    make = lambda net: BlockwiseAdam(  # noqa: E731  # twice the same
        net.named_parameters(), lr=0.01, partition=partition, foreach=foreach
    )
    optimizer = make(net)
    for _ in range(260):  # more than bfloat16 counts to
        set_gradients(net.parameters())
        optimizer.step()
        if dtype != torch.bfloat16 or foreach is not None:
            break
    other = copy.deepcopy(net)
    loaded = make(other)
    loaded.load_state_dict(saved_by_torch(optimizer.state_dict()))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert optimizer.state[p].keys() == loaded.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert loaded.state[q][key].dtype == value.dtype
            torch.testing.assert_close(loaded.state[q][key], value, rtol=0, atol=0)
            if key == "exp_avg_sq":
                assert value.dtype == torch.promote_types(dtype, torch.float32)
    for _ in range(3):
        set_gradients(net.parameters())
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        loaded.step()
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)


def test_hooks_around_loading_see_and_change_what_is_loaded():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    source, target = BlockwiseAdam([p]), BlockwiseAdam([p])
    set_gradients([p])
    source.step()
    seen = []

    def double(optimizer, state_dict):
        state = {0: {**state_dict["state"][0]}}
        state[0]["exp_avg_sq"] = 2 * state[0]["exp_avg_sq"]
        return {**state_dict, "state": state}

    target.register_load_state_dict_pre_hook(double)
    target.register_load_state_dict_post_hook(lambda o: seen.append(o.state[p]["exp_avg_sq"]))
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert torch.equal(seen[0], 2 * source.state[p]["exp_avg_sq"])
    assert seen[0].dtype == torch.float32


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_by_themselves(copied):
    net = Net()
    optimizer = BlockwiseAdam(net.named_parameters(), partition=PARTITIONS["head"](net))
    set_gradients(net.parameters())
    optimizer.step()
    before = [p.detach().clone() for p in net.parameters()]
    twin = copied(optimizer)
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    twin.step()
    assert all(map(torch.equal, before, net.parameters()))
    set_gradients(net.parameters())
    for p, q in zip(net.parameters(), twin.param_groups[0]["params"], strict=True):
        p.grad = torch.ones_like(p)
        assert not torch.equal(p, q)
    optimizer.step()
    for p, q in zip(net.parameters(), twin.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # the point of no_dist
@pytest.mark.parametrize("name", ["head", "global"])
def test_state_goes_through_distributed_checkpoint(name, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    net = Net()
    optimizer = BlockwiseAdam(net.named_parameters(), partition=PARTITIONS[name](net))
    set_gradients(net.parameters())
    optimizer.step()
    other = copy.deepcopy(net)
    loaded = BlockwiseAdam(other.named_parameters(), partition=PARTITIONS[name](other))
    state = get_optimizer_state_dict(net, optimizer)
    dcp.save(state, checkpoint_id=tmp_path / "state", no_dist=True)
    target = get_optimizer_state_dict(other, loaded)
    dcp.load(target, checkpoint_id=tmp_path / "state", no_dist=True)
    set_optimizer_state_dict(other, loaded, target)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert optimizer.state[p].keys() == loaded.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert torch.equal(loaded.state[q][key], value)


def test_training_resumed_by_lightning_ends_as_without_a_break(tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

        def training_step(self, batch, batch_idx):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            rows = Partition.of(self, "row")
            return BlockwiseAdam(self.named_parameters(), lr=0.05, partition=rows)

    def fit(module, num_steps, **kwargs):
        trainer = Trainer(
            max_steps=num_steps, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        data = torch.utils.data.DataLoader(torch.ones(8, 3), batch_size=2)
        with pytest.warns():  # of too few workers, and of a resumed epoch
            trainer.fit(module, data, **kwargs)
        return trainer

    whole, start, end = Module(), Module(), Module()
    start.load_state_dict(whole.state_dict())
    fit(whole, 8)
    fit(start, 4).save_checkpoint(tmp_path / "last.ckpt")
    fit(end, 8, ckpt_path=tmp_path / "last.ckpt")
    for p, q in zip(whole.parameters(), end.parameters(), strict=True):
        assert torch.equal(p, q)


def test_state_of_another_partition_is_refused_and_changes_nothing():
    net = Net()
    set_gradients(net.parameters())
    optimizers = {}
    for name in ("global", "tensor", "head"):
        partition = PARTITIONS[name](net)
        optimizers[name] = BlockwiseAdam(net.named_parameters(), partition=partition)
        optimizers[name].step()
    for name, optimizer in optimizers.items():
        for other, source in optimizers.items():
            if name == other:
                continue
            before = copy.deepcopy(optimizer.state_dict())
            with pytest.raises(ValueError, match=r"load_state_dict: expected .* same partition"):
                optimizer.load_state_dict(source.state_dict())
            after = optimizer.state_dict()
            torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("name", ["coordinate", "head", "by_function", "tensor", "global"])
def test_learning_rate_may_be_a_tensor_and_counts_be_capturable(name, foreach):
    nets = [Net().double() for _ in range(3)]
    settings = [{"lr": 0.01}, {"lr": torch.tensor(0.01, dtype=torch.float64)}]
    settings.append({**settings[1], "capturable": True})
    optimizers = []
    for net, options in zip(nets, settings, strict=True):
        net.load_state_dict(nets[0].state_dict())
        optimizers.append(
            BlockwiseAdam(
                net.named_parameters(),
                partition=PARTITIONS[name](net),
                foreach=foreach,
                weight_decay=0.1,
                **options,
            )
        )
    for _ in range(5):
        set_gradients(nets[0].parameters())
        for net, optimizer in zip(nets, optimizers, strict=True):
            for p, q in zip(net.parameters(), nets[0].parameters(), strict=True):
                p.grad = q.grad.clone()
            optimizer.step()
    for net, tolerance in zip(nets[1:], (ROUNDING, FLOAT32), strict=True):  # counts are float32
        for p, q in zip(net.parameters(), nets[0].parameters(), strict=True):
            torch.testing.assert_close(p, q, **tolerance)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("name", ["coordinate", "head", "by_function", "tensor", "global"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_steps_are_those_of_float32_but_for_the_rounding_of_tensors(
    name, dtype, foreach
):
    half = Net().to(dtype)
    single = copy.deepcopy(half).float()
    optimizers = [
        BlockwiseAdam(net.named_parameters(), partition=PARTITIONS[name](net), foreach=foreach)
        for net in (half, single)
    ]
    eps = torch.finfo(dtype).eps
    for _ in range(5):
        set_gradients(half.parameters())
        for p, q in zip(half.parameters(), single.parameters(), strict=True):
            q.grad = p.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(half.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(p.float(), q, rtol=5 * eps, atol=5 * eps * 1e-3)
        v, w = (o.state[t].get("exp_avg_sq") for o, t in zip(optimizers, (p, q), strict=True))
        torch.testing.assert_close(v, w, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("foreach", FORMS)
def test_mean_of_many_squares_keeps_the_precision_of_float32(foreach):
    p = nn.Parameter(torch.zeros(3_000_017))
    p.grad = torch.randn_like(p)
    optimizer = BlockwiseAdam([p], betas=(0.9, 0.0), foreach=foreach)
    optimizer.step()
    expected = p.grad.double().square().mean().float().view(1)
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], expected, rtol=5e-6, atol=0.0)
    torch.testing.assert_close(p.detach(), -1e-3 * p.grad / expected.sqrt(), rtol=1e-5, atol=0.0)


def test_blocks_without_any_gradient_but_zeros_stay_with_eps_and_are_nan_without():
    for foreach in FORMS:
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.zeros(3)
        BlockwiseAdam([p], foreach=foreach).step()
        assert torch.equal(p, torch.ones(3))
        BlockwiseAdam([p], eps=0.0, foreach=foreach).step()  # 0 / 0, as in AdamW
        assert p.isnan().all()


def test_closure_is_evaluated_with_gradients_and_returned():
    p = nn.Parameter(torch.ones(2))
    optimizer = BlockwiseAdam([p])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2.0
    assert (p < 1).all()


def test_schedulers_change_learning_rate_and_betas():
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = AdaSGD([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    reference = Reference([p], [torch.zeros(2, dtype=torch.int64)], [{}])
    for _ in range(9):
        group = optimizer.param_groups[0]
        reference.options[0].update(lr=group["lr"], betas=group["betas"])
        # Not only the latest: the bias correction uses today's beta1 for all steps, as in torch.
        set_gradients([p])
        optimizer.step()
        reference.step([p.grad])
        scheduler.step()
        reference.assert_equals([p], **ROUNDING)


@pytest.mark.parametrize("name", ["coordinate", "tensor", "global"])
def test_parameter_groups_can_be_added_under_a_name(name):
    net = Net().double()
    params = list(net.parameters())
    optimizer = BlockwiseAdam(params[:3], lr=0.01, partition=name)
    optimizer.add_param_group({"params": params[3:], "lr": 0.02})
    labels = labels_of(Partition.of(net, name))
    options = [{"lr": 0.01}] * 3 + [{"lr": 0.02}] * (len(params) - 3)
    assert_follows(optimizer, params, Reference(params, labels, options), num_steps=5)


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


@pytest.mark.parametrize("name", PARTITIONS)
def test_second_moments_go_out_by_entry_and_come_back_as_they_were(name):
    net = Net()
    partition = PARTITIONS[name](net)
    source = BlockwiseAdam(net.named_parameters(), partition=partition)
    target = BlockwiseAdam(net.named_parameters(), partition=partition)
    for _ in range(3):
        set_gradients(net.parameters())
        source.step()
    values = source.expanded_exp_avg_sq()
    labels = labels_of(partition)
    for p, label in zip(net.parameters(), labels, strict=True):
        value, count = values[p]
        assert value.shape == p.shape
        assert count == 3.0
        for block in label.unique():
            assert len(value.flatten()[label == block].unique()) == 1
    target.load_exp_avg_sq(values)
    for p in net.parameters():
        for key in ("exp_avg_sq", "exp_avg_sq_step"):
            if key in source.state[p]:
                ours = target.state[p][key]
                torch.testing.assert_close(ours, source.state[p][key], rtol=1e-6, atol=0.0)


def test_loaded_second_moments_are_means_over_blocks_of_corrected_values():
    p, q, r = (nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (2, 3, 4))
    optimizer = AdaSGD([p, q, r], betas=(0.9, 0.5))
    values = {
        p: (torch.tensor([1.0, 2.0]), 1.0),
        q: (torch.tensor([3.0, 3.0, 3.0]), 2.0),
        r: (torch.ones(4), 0.0),  # no updates: no part in the mean
    }
    optimizer.load_exp_avg_sq(values)
    state = optimizer.state[p]
    mean = (1.0 / 0.5 + 2.0 / 0.5 + 3 * 3.0 / 0.75) / 5
    assert state["exp_avg_sq_step"] == 2.0
    assert float(state["exp_avg_sq"]) == pytest.approx(mean * 0.75)
    assert optimizer.expanded_exp_avg_sq()[r][1] == 2.0
    BlockwiseAdam([p]).load_exp_avg_sq({})


def test_second_moments_of_unknown_parameters_or_shapes_are_refused():
    p = nn.Parameter(torch.ones(2))
    optimizer = BlockwiseAdam([p])
    with pytest.raises(ValueError, match=r"expected values in the shapes .* got \(3,\)"):
        optimizer.load_exp_avg_sq({p: (torch.ones(3), 1.0)})
    with pytest.raises(ValueError, match="a parameter that it lacks"):
        optimizer.load_exp_avg_sq({nn.Parameter(torch.ones(2)): (torch.ones(2), 1.0)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensor", "row", "global"])
def test_compiled_step_is_the_same(name):
    net = Net().double()
    twin = copy.deepcopy(net)
    optimizers = [
        BlockwiseAdam(n.named_parameters(), partition=PARTITIONS[name](n)) for n in (net, twin)
    ]
    steps = optimizers[0].step, torch.compile(optimizers[1].step, backend="eager")
    for _ in range(3):
        set_gradients(net.parameters())
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.clone()
        for step in steps:
            step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **ROUNDING)


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


@pytest.mark.gpu
@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("name", PARTITIONS)
def test_step_on_a_gpu_is_that_of_the_cpu_and_waits_for_nothing(name, capturable, foreach):
    net = Net()
    twin = copy.deepcopy(net).cuda()
    options = {"lr": 0.01, "weight_decay": 0.1}
    cpu = BlockwiseAdam(net.named_parameters(), partition=PARTITIONS[name](net), **options)
    gpu = BlockwiseAdam(
        twin.named_parameters(), partition=PARTITIONS[name](twin), foreach=foreach,
        capturable=capturable, **options,
    )  # fmt: skip
    for step in range(5):
        set_gradients(net.parameters())
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.cuda()
        cpu.step()
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one moves data
        try:
            gpu.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.cpu(), p, **FLOAT32)


@pytest.mark.gpu
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", ["coordinate", "head", "tensor", "global"])
def test_captured_step_continues_to_count(name, foreach):
    net = Net().cuda()
    twin = copy.deepcopy(net)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    eager, captured = (
        BlockwiseAdam(
            n.named_parameters(), lr=torch.tensor(0.01, device="cuda"), foreach=foreach,
            partition=PARTITIONS[name](n), capturable=True,
        )
        for n in (net, twin)
    )  # fmt: skip
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for _ in range(4):
        graph.replay()
    for _ in range(5):
        eager.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **FLOAT32)


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


@pytest.mark.parametrize("foreign", [torch.optim.AdamW, torch.optim.SGD])
def test_the_state_of_another_class_is_refused_and_changes_nothing(foreign):
    p = nn.Parameter(torch.ones(3))
    optimizer = BlockwiseAdam([p])
    with pytest.raises(ValueError, match=r"state of an optimizer of this class, .* eps_inside"):
        optimizer.load_state_dict(foreign([p]).state_dict())
    p.grad = torch.ones(3)
    optimizer.step()


def test_a_block_over_several_dtypes_has_the_widest():
    params = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float64)]
    optimizer = AdaSGD(params, lr=0.1)
    for p in params:
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    assert optimizer.state[params[0]]["exp_avg_sq"].dtype == torch.float64
    for p in params:
        torch.testing.assert_close(p, torch.full_like(p, 0.9))


def test_flat_second_moments_of_coordinates_load_in_the_shape_of_the_parameter():
    layer = linear()
    optimizer = BlockwiseAdam(layer.parameters(), partition="coordinate")
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    second_moment = optimizer.state[layer.weight]["exp_avg_sq"]
    assert second_moment.shape == layer.weight.shape
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["exp_avg_sq"] = state["exp_avg_sq"].flatten()
    optimizer.load_state_dict(saved)
    assert torch.equal(optimizer.state[layer.weight]["exp_avg_sq"], second_moment)
