"""States of blockwise Adam: what they hold, how they are saved, loaded and handed over."""

import copy
import io
import pickle

import pytest
import torch
from support.blockwise import (
    FORMS,
    PARTITIONS,
    Net,
    labels_of,
    set_gradients,
)
from torch import nn

from lightning_linf.optim import AdaSGD, BlockwiseAdam
from lightning_linf.partition import Partition


def linear():
    return nn.Linear(2, 2)


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


@pytest.mark.filterwarnings(
    "ignore:torch.distributed is .* single process",  # as it should
    "ignore:TypedStorage is deprecated",  # inside torch 2.6
)
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
    dcp.save(state, checkpoint_id=tmp_path / "state")
    target = get_optimizer_state_dict(other, loaded)
    dcp.load(target, checkpoint_id=tmp_path / "state")
    set_optimizer_state_dict(other, loaded, target)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert optimizer.state[p].keys() == loaded.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert torch.equal(loaded.state[q][key], value)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is not resumable")
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
