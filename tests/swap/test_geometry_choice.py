"""A geometry makes the optimizer that was chosen of the one that there is, or says why not."""

import pickle
from functools import partial
from typing import get_args

import pytest
import torch
from torch import nn

from lightning_linf import Geometry, Partition
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.optim.weight_decay import is_decoupled
from lightning_linf.reparam import Rotation
from lightning_linf.swap.optimizer_names import OPTIMIZERS, OptimizerName


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def two_groups(kind, module, **options):
    weights = [p for p in module.parameters() if p.ndim == 2]
    biases = [p for p in module.parameters() if p.ndim == 1]
    groups = [
        {"params": weights, "weight_decay": 0.3, "name": "weights"},
        {"params": biases, "lr": 0.5, "weight_decay": 0.0, "layer": 7},
    ]
    return kind(groups, **options)


class Forwarding(torch.optim.Adam):
    """A subclass that names none of its arguments."""

    def __init__(self, params, *args, warm=1, **kwargs):
        super().__init__(params, *args, **kwargs)


def test_names_are_those_of_the_table():
    assert set(get_args(OptimizerName)) == set(OPTIMIZERS)
    assert all(Geometry(name).kind() is kind for name, kind in OPTIMIZERS.items())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("adasgd", AdaSGD),
        ("blockwise_adam", BlockwiseAdam),
        ("signum", Signum),
        (torch.optim.RAdam, torch.optim.RAdam),
        (Forwarding, Forwarding),
    ],
)
@pytest.mark.parametrize("former", [torch.optim.SGD, torch.optim.AdamW])
def test_groups_rates_and_decays_are_kept_by_every_optimizer(name, kind, former):
    module = network()
    old = two_groups(former, module, lr=0.2)
    before = [dict(group) for group in old.param_groups]
    new = Geometry(name).make(old, module)
    assert type(new) is kind
    for theirs, ours in zip(old.param_groups, new.param_groups, strict=True):
        assert [id(p) for p in theirs["params"]] == [id(p) for p in ours["params"]]
        for key in ("lr", "weight_decay"):
            assert ours[key] == theirs[key]
        assert ours.get("name") == theirs.get("name")
        assert ours.get("layer") == theirs.get("layer")
    assert [group["lr"] for group in new.param_groups] == [0.2, 0.5]
    assert [dict(group) for group in old.param_groups] == before
    assert "param_names" not in new.param_groups[0]  # a group added later need not have names
    for group in new.param_groups:  # nothing of the former class is left
        assert not {"nesterov", "dampening"} & group.keys() or kind is torch.optim.SGD


@pytest.mark.parametrize(
    ("old", "name", "expected"),
    [
        (partial(torch.optim.SGD, momentum=0.8), "adam", {"betas": (0.8, 0.999)}),
        (partial(torch.optim.SGD, momentum=0.0), "adam", {"betas": (0.9, 0.999)}),
        (partial(torch.optim.SGD, momentum=0.8, nesterov=True), "signum", {"momentum": 0.8}),
        (partial(torch.optim.Adam, betas=(0.7, 0.9)), "sgd", {"momentum": 0.7, "nesterov": False}),
        (partial(torch.optim.Adam, betas=(0.7, 0.9), eps=1e-3), "adasgd", {"betas": (0.7, 0.9)}),
        (partial(torch.optim.Adam, eps=1e-3), "blockwise_adam", {"eps": 1e-3}),
        (partial(torch.optim.Adam, maximize=True, amsgrad=True), "sgd", {"maximize": True}),
        (partial(Signum, momentum=0.8), "blockwise_adam", {"betas": (0.8, 0.999)}),
        (partial(AdaSGD, betas=(0.6, 0.9)), "signum", {"momentum": 0.6}),
    ],
)
def test_momentum_and_beta1_stand_for_each_other(old, name, expected):
    module = network()
    new = Geometry(name).make(old(module.parameters(), lr=0.1), module)
    for values in (new.param_groups[0], new.defaults):
        assert {key: values[key] for key in expected} == expected
        assert values["lr"] == 0.1


@pytest.mark.parametrize(
    ("first", "second", "decoupled"),
    [("adam", "adamw", True), ("adamw", "adam", False), ("sgd", "adam", False)],
)
def test_decay_is_coupled_as_the_chosen_class_has_it(first, second, decoupled):
    module = network()
    old = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    new = Geometry(second).make(Geometry(first).make(old, module), module)
    assert is_decoupled(new, new.param_groups[0]) == decoupled
    assert new.param_groups[0]["weight_decay"] == 0.5


def test_the_same_class_keeps_every_hyperparameter_even_of_a_class_that_names_none():
    module = network()
    options = {"betas": (0.5, 0.6), "eps": 1e-4, "amsgrad": True, "maximize": True}
    for kind in (torch.optim.Adam, torch.optim.AdamW, Forwarding):
        old = two_groups(kind, module, lr=0.3, **options)
        new = Geometry().make(old, module)
        assert type(new) is kind
        for theirs, ours in zip(old.param_groups, new.param_groups, strict=True):
            assert {k: v for k, v in ours.items() if k != "param_names"} == theirs
        assert new.defaults == old.defaults  # for groups that are added later


def test_options_hold_for_all_groups():
    module = network()
    old = two_groups(torch.optim.SGD, module, lr=0.2, momentum=0.5)
    options = {"betas": [0.1, 0.2], "weight_decay": 0.25}
    new = Geometry("adamw", options=options).make(old, module)
    for group in new.param_groups:
        assert (tuple(group["betas"]), group["weight_decay"]) == ((0.1, 0.2), 0.25)
    with pytest.raises(ValueError, match="Invalid beta"):
        Geometry("adam", options={"betas": (2.0, 0.9)}).make(old, module)


@pytest.mark.parametrize("is_tensor", [False, True])
def test_lr_scales_all_groups_and_what_schedulers_keep_there(is_tensor):
    module = network()
    lr = torch.tensor(0.2) if is_tensor else 0.2
    old = two_groups(torch.optim.Adam, module, lr=lr)
    torch.optim.lr_scheduler.LambdaLR(old, lambda _: 0.5)
    new = Geometry("adamw", lr=0.4).make(old, module)
    assert [float(g["lr"]) for g in new.param_groups] == pytest.approx([0.2, 0.5])
    assert [float(g["initial_lr"]) for g in new.param_groups] == pytest.approx([0.4, 1.0])
    assert [float(g["lr"]) for g in old.param_groups] == pytest.approx([0.1, 0.25])


def test_partitions_are_of_the_parameters_that_are_optimized():
    module = network()
    module[0].weight.requires_grad_(False)
    old = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.1)
    new = Geometry("blockwise_adam", partition="row").make(old, module)
    assert new.partition.names == ["0.bias", "2.weight", "2.bias"]
    assert new.partition.num_blocks == 4 + 2 + 2
    own = Partition.by_regex(module, ".", parameters=old.param_groups[0]["params"])
    assert Geometry("blockwise_adam", partition=own).make(old, module).partition is own
    assert Geometry("blockwise_adam").make(old, module).partition == "tensor"
    # the class that there is keeps its blocks, also in other coordinates and back
    rotated = Geometry(rotation="tensor").make(new, module)
    assert rotated.inner.partition is new.partition
    again = Geometry().make(rotated, module)
    assert type(again) is BlockwiseAdam
    assert again.partition is new.partition
    row = Geometry("blockwise_adam", partition="row", rotation="global").make(rotated, module)
    assert row.inner.partition.names == new.partition.names


def test_rotations_are_given_by_scope_or_as_a_map():
    module = network()
    old = two_groups(torch.optim.Adam, module, lr=0.1)
    by_scope = Geometry(rotation="row", rotation_seed=3, rotation_strength=0.5).make(old, module)
    assert isinstance(by_scope, Reparameterized)
    expected = Rotation("row", seed=3, strength=0.5)
    assert by_scope.reparameterization == expected
    by_map = Geometry("sgd", rotation=expected).make(by_scope, module)
    assert by_map.reparameterization is expected
    assert type(by_map.inner) is torch.optim.SGD
    assert by_map.param_groups[1]["layer"] == 7
    plain = Geometry("adam").make(by_map, module)
    assert type(plain) is torch.optim.Adam
    assert "reparameterization" not in plain.param_groups[0]
    assert [g["lr"] for g in plain.param_groups] == [0.1, 0.5]


def test_a_function_makes_the_optimizer_of_the_groups_it_is_given():
    module = network()
    old = two_groups(torch.optim.AdamW, module, lr=0.2)
    new = Geometry(torch.optim.SGD, options={"momentum": 0.5}).make(old, module)
    by_function = Geometry(lambda groups: torch.optim.SGD(groups), options={"momentum": 0.5})
    function = by_function.make(old, module)
    for ours, theirs in zip(function.param_groups, new.param_groups, strict=True):
        for key in ("lr", "weight_decay", "momentum", "params"):
            assert ours[key] == theirs[key]
    rotated = Geometry(partial(torch.optim.SGD, momentum=0.9), rotation="tensor").make(old, module)
    assert rotated.inner.param_groups[0]["momentum"] == 0.9  # the former has none
    # newer versions of torch tell AdamW from Adam by an entry of the group
    adam = Geometry(lambda groups: torch.optim.Adam(groups)).make(old, module)
    assert not is_decoupled(adam, adam.param_groups[0])
    # an argument that the groups heed
    for lr in (0.2, 0.5):
        Geometry(partial(torch.optim.SGD, lr=lr)).make(old, module)
    faster = Geometry(partial(torch.optim.SGD, lr=9.0), lr=1.0).make(old, module)
    assert [g["lr"] for g in faster.param_groups] == [1.0, 2.5]


def test_a_steps_first_update_is_that_of_the_optimizer_made_by_hand():
    module, twin = network(), network()
    twin.load_state_dict(module.state_dict())
    old = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.8, weight_decay=0.1)
    geometry = Geometry("adamw", rotation="global", rotation_seed=2, lr=0.05)
    new = geometry.make(old, module)

    def make(params):
        return torch.optim.AdamW(params, lr=0.05, betas=(0.8, 0.999), weight_decay=0.1)

    by_hand = Reparameterized(twin.named_parameters(), make, Rotation("global", seed=2))
    x = torch.randn(5, 3)
    for model, optimizer in ((module, new), (twin, by_hand)):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(),
        Geometry("adam", rotation="global", rotation_seed=3, lr=0.1),
        Geometry("blockwise_adam", partition="row", options={"betas": [0.9, 0.95]}),
        Geometry("sgd", options={"momentum": 0.5}),
    ],
)
def test_names_and_numbers_survive_a_checkpoint(geometry, tmp_path):
    torch.save(geometry.to_plain(), tmp_path / "plain.pt")
    again = Geometry(**torch.load(tmp_path / "plain.pt", weights_only=True))
    assert again == geometry
    assert again.describe() == geometry.describe()
    assert pickle.loads(pickle.dumps(geometry)) == geometry


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(torch.optim.Adam),
        Geometry(rotation=Rotation("global")),
        Geometry("sgd", options={"momentum": torch.tensor(0.5)}),
        Geometry(lambda groups: torch.optim.SGD(groups)),
    ],
)
def test_what_is_more_than_names_and_numbers_has_no_plain_form(geometry):
    assert geometry.to_plain() is None
    assert geometry.describe()


def test_descriptions_name_what_is_chosen():
    assert Geometry().describe() == "the same optimizer"
    assert Geometry("adasgd").describe() == "AdaSGD"
    assert Geometry(torch.optim.SGD).describe() == "SGD"
    assert Geometry("blockwise_adam", partition="row").describe() == "BlockwiseAdam(row)"
    assert Geometry(rotation="row").describe().startswith("the same optimizer under Rotation(")


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("partition", "options", "described"),
    [
        ("head", {"fused_qkv": "head_qkv"}, "BlockwiseAdam(head, 'head_qkv')"),
        ("row", {"output_dims": {"qkv": 1}}, "BlockwiseAdam(row, {'qkv': 1})"),
    ],
)
def test_blocks_by_name_take_the_arguments_that_place_them(partition, options, described):
    module = Fused()
    geometry = Geometry("blockwise_adam", partition=partition, **options)
    made = geometry.make(torch.optim.Adam(module.parameters()), module).partition
    expected = Partition.of(module, partition, **options)
    blocks = torch.arange(expected.num_blocks)
    assert torch.equal(made.expand(blocks), expected.expand(blocks))
    assert geometry.describe() == described
    assert Geometry(**geometry.to_plain()) == geometry
    assert hash(geometry) == hash(Geometry(**geometry.to_plain()))


def given_groups(groups):
    return torch.optim.SGD(groups, lr=0.1)


WEIGHT = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adamm"}, r"Geometry: expected `optimizer` to be one of 'adam'.* 'adamm'"),
        ({"optimizer": torch.optim.SGD([WEIGHT])}, "An optimizer that exists already cannot"),
        ({"optimizer": 3}, "a name, a class or a function of parameter groups, got 3"),
        ({"optimizer": "blockwise_adam", "partition": "rows"}, "`partition` to be one of 'coord"),
        ({"optimizer": "blockwise_adam", "partition": 3}, "or a Partition, got 3"),
        ({"optimizer": "adam", "partition": "row"}, "blocks beside `partition`, got 'adam'"),
        ({"optimizer": "adasgd", "partition": "row"}, "blocks beside `partition`, got 'adasgd'"),
        ({"partition": "row"}, "blocks beside `partition`, got None. Choose optimizer="),
        ({"optimizer": given_groups, "partition": "row"}, "with blocks beside `partition`"),
        (
            {"optimizer": "blockwise_adam", "partition": "tensor", "output_dims": {"w": 0}},
            "`output_dims` beside partition='row' or 'column', got .* beside 'tensor'",
        ),
        ({"fused_qkv": "qkv_head"}, "`fused_qkv` beside partition='head', got 'qkv_head' beside N"),
        (
            {"optimizer": "blockwise_adam", "partition": "head", "fused_qkv": "kqv"},
            "`fused_qkv` to be one of 'qkv_head', 'head_qkv' or None, got 'kqv'",
        ),
        ({"rotation": "rows"}, "Rotation: expected `scope`"),
        ({"rotation": "row", "rotation_strength": 2.0}, "Rotation: expected `strength`"),
        ({"rotation_seed": 1}, "beside a `rotation` given by its scope, got rotation=None"),
        ({"rotation": Rotation(), "rotation_strength": 0.5}, "or set them in your Rotation"),
        ({"rotation": 3}, "`rotation` to be a scope or a reparameterization, got 3"),
        ({"optimizer": "sgd", "options": {"beta": 1}}, "`options` that SGD has, got beta. It has"),
        ({"optimizer": "sgd", "options": {"betas": (0.9, 0.9)}}, "that SGD has, got betas"),
        ({"optimizer": "sgd", "options": {"lr": 0.1}}, "as arguments, got lr in `options`"),
        (
            {"optimizer": "blockwise_adam", "options": {"partition": "row"}},
            "as arguments, got partition in `options`",
        ),
        ({"lr": 0.0}, "`lr` > 0 and finite, got 0.0. Leave it out"),
        ({"lr": "0.1"}, "`lr` > 0 and finite, got '0.1'"),
        ({"lr": float("nan")}, "`lr` > 0 and finite, got nan"),
    ],
)
def test_misuse_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Geometry(**arguments)


@pytest.mark.parametrize(
    ("geometry", "options", "message"),
    [
        (Geometry("sgd", lr=0.1), {"lr": 0.0}, "learning rate above 0 to set `lr` by, got 0"),
        (Geometry(given_groups), {"lr": 0.3}, "takes `lr` .* have 0.3, got 0.1 set in it"),
        (
            Geometry(lambda g: torch.optim.Adam(g, betas=(0.1, 0.2))),
            {"lr": 1e-3, "betas": (0.9, 0.9)},
            r"takes `betas` .* got \(0.1, 0.2\) set in it, .* no effect. Set it by `options`",
        ),
        (Geometry(lambda groups: groups), {}, "to make a torch.optim.Optimizer .* got list"),
        (
            Geometry(lambda g: torch.optim.SGD([p for _, p in g[0]["params"]][:1])),
            {"lr": 1e-3},
            "same parameters in the same groups, got another split by SGD",
        ),
        (
            Geometry(lambda g: torch.optim.SGD([*g, {"params": [("new", WEIGHT)]}])),
            {"lr": 1e-3},
            "same parameters in the same groups, got another split by SGD",
        ),
        (
            Geometry("blockwise_adam", partition=Partition.of(nn.Linear(2, 2), "row")),
            {},
            "BlockwiseAdam: expected parameters of",
        ),
        (
            Geometry("muon"),
            {"maximize": True},
            "with `maximize`, which the former one has set, got MuonWithAdamW",
        ),
    ],
)
def test_what_does_not_fit_the_parameters_is_refused(geometry, options, message):
    module = network()
    old = torch.optim.Adam(module.parameters(), **options)
    with pytest.raises(ValueError, match=message):
        geometry.make(old, module)
