"""Which parameters are mapped: frozen ones, missing gradients, dtypes, groups, and refusals."""

import copy

import pytest
import torch
from support import networks
from support.coordinates import (
    CLOSE,
    SCOPES,
    Dense,
    backward,
    dense,
    parameter,
    rotated_adam,
    sgd,
    train,
    two,
    weights,
)
from torch import nn
from torch.nn.utils import parameters_to_vector

from lightning_linf.optim import Reparameterized
from lightning_linf.probe import Landscape
from lightning_linf.reparam import (
    Rotation,
)


def test_between_steps_coordinates_take_no_memory():
    module, _, loss = two()
    optimizer = rotated_adam(module)
    for _ in range(2):
        stepped = [phi for group in optimizer.inner.param_groups for phi in group["params"]]
        assert [phi.shape for phi in stepped] == [p.shape for p in module.parameters()]
        assert {phi.untyped_storage().nbytes() for phi in stepped} == {8}
        assert all(phi.grad is None for phi in stepped)
        train(module, optimizer, loss, 1)


def test_weights_that_others_change_between_steps_are_respected():
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.01)
    rotated = Reparameterized(other.parameters(), lambda p: torch.optim.SGD(p, lr=0.01), Rotation())
    for each, optimizer in ((module, plain), (other, rotated)):
        average = torch.optim.swa_utils.AveragedModel(each)
        for step in range(10):
            train(each, optimizer, loss, 1)
            average.update_parameters(each)
            with torch.no_grad():
                each[0].weight.mul_(0.9)
            if step == 5:
                each.load_state_dict(average.module.state_dict())
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def adam_with_a_missing_gradient(scope):
    """Weights before and after a step in which 0.bias has no gradient."""
    module, _, loss = two()
    optimizer = rotated_adam(module, Rotation(scope))
    train(module, optimizer, loss, 2)
    before = weights(module)
    backward(module, loss)
    module[0].bias.grad = None
    optimizer.step()
    return module, before, optimizer


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
def test_parameters_without_gradient_stay_to_the_last_bit(scope):
    module, before, optimizer = adam_with_a_missing_gradient(scope)
    names = [name for name, p in module.named_parameters() for _ in range(p.numel())]
    others = torch.tensor([name != "0.bias" for name in names])
    assert torch.equal((weights(module) != before), others)
    state = optimizer.state[module[0].bias]
    assert state.get("phi.step", state.get("step")) == 2


def test_under_a_global_map_a_missing_gradient_is_zero():
    module, _, _ = adam_with_a_missing_gradient("global")
    other, _, loss = two()
    optimizer = rotated_adam(other)
    train(other, optimizer, loss, 2)
    backward(other, loss)
    other[0].bias.grad.zero_()
    optimizer.step()
    assert torch.equal(weights(other), weights(module))


@pytest.mark.parametrize("scope", SCOPES)
def test_parameters_frozen_from_the_start_stay_as_they_are(scope):
    module, other, loss = two()
    module[0].weight.requires_grad_(False)
    train(module, rotated_adam(module, Rotation(scope)), loss, 3)
    assert torch.equal(module[0].weight, other[0].weight)
    assert not torch.equal(module[0].bias, other[0].bias)


def test_parameters_frozen_later_stay_or_are_refused():
    module, other, loss = two()
    optimizer = rotated_adam(module, Rotation("tensor"))
    module[0].weight.requires_grad_(False)
    train(module, optimizer, loss, 3)
    assert torch.equal(module[0].weight, other[0].weight)
    optimizer = rotated_adam(other, Rotation("global"))
    other[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"got a frozen one.*Freeze it before"):
        train(other, optimizer, loss, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_have_float32_states_and_are_rounded_once(dtype):
    layer = nn.Linear(4, 3, dtype=dtype)
    wide = copy.deepcopy(layer).float()
    optimizer = rotated_adam(layer, lr=0.1)
    gradients = [torch.randn(p.shape).to(dtype) for p in layer.parameters()]
    for each, chosen in ((layer, optimizer), (wide, rotated_adam(wide, lr=0.1))):
        for p, g in zip(each.parameters(), gradients, strict=True):
            p.grad = g.to(p.dtype)
        chosen.step()
    for p, expected in zip(layer.parameters(), wide.parameters(), strict=True):
        assert p.dtype == dtype
        assert optimizer.state[p]["phi.exp_avg"].dtype == torch.float32
        assert optimizer.state[p]["phi.exp_avg_sq"].dtype == torch.float32
        assert torch.equal(p, expected.to(dtype))


def test_groups_of_several_dtypes_share_the_widest():
    narrow, wide = (nn.Parameter(torch.ones(5, dtype=d)) for d in (torch.bfloat16, torch.float64))
    optimizer = Reparameterized([narrow, wide], lambda p: torch.optim.Adam(p, lr=0.1), Rotation())
    narrow.grad, wide.grad = torch.ones_like(narrow), torch.ones_like(wide)
    optimizer.step()
    assert {s["phi.exp_avg"].dtype for s in optimizer.state.values()} == {torch.float64}
    assert (narrow != 1).any()
    assert (wide != 1).all()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 1, 3)])
@pytest.mark.parametrize("scope", SCOPES)
def test_shapes_at_the_edge(scope, shape):
    p = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = Reparameterized([p], lambda q: torch.optim.SGD(q, lr=0.25), Rotation(scope))
    p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.75))


def test_memory_formats_stay():
    p = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    q = nn.Parameter(p.detach().contiguous())
    for each in (p, q):
        each.grad = torch.arange(120.0).view(2, 3, 4, 5)
        rotated = Reparameterized([each], lambda x: torch.optim.Adam(x, lr=0.1), Rotation())
        rotated.step()
    assert p.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(p, q)


def shuffled_groups(module):
    """Biases first, so the order is not the module's."""
    named = list(module.named_parameters())
    return [
        {"params": [p for n, p in named if "bias" in n], "lr": 0.02},
        {"params": [p for n, p in named if "bias" not in n][::-1]},
    ]


def test_coordinates_have_the_order_of_the_parameters_given():
    module, other, loss = two()
    optimizer = Reparameterized(
        shuffled_groups(module), lambda p: torch.optim.SGD(p, lr=0.02), Dense()
    )
    matrix = dense(optimizer.coordinates(module.parameters()), len(weights(module)))
    before = weights(module)
    backward(module, loss)
    gradient = parameters_to_vector(p.grad for p in module.parameters())
    optimizer.step()
    torch.testing.assert_close(weights(module) - before, -0.02 * matrix @ matrix.T @ gradient)

    hessian = networks.dense_hessian(other, lambda: loss(other))
    coordinates = Reparameterized(
        shuffled_groups(other), lambda p: torch.optim.SGD(p, lr=0.02), Dense()
    ).coordinates(list(other.parameters()))
    with Landscape(
        other, [None], loss=lambda m, _: loss(m), reparameterization=coordinates
    ) as landscape:
        units = torch.eye(len(hessian), dtype=torch.float64)
        torch.testing.assert_close(landscape.hvp(units), matrix.T @ hessian @ matrix)


def test_sparse_gradients_are_refused_only_where_they_would_be_mapped():
    embedding, layer = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)
    named = [
        *(("embedding", p) for p in embedding.parameters()),
        *(("layer", p) for p in layer.parameters()),
    ]

    def step(only):
        optimizer = Reparameterized(
            named, lambda p: torch.optim.SGD(p, lr=0.1), Rotation(only=only)
        )
        layer(embedding(torch.tensor([1, 2]))).sum().backward()
        optimizer.step()

    step("layer")
    with pytest.raises(RuntimeError, match=r"got a sparse one. Use sparse=False"):
        step("embedding")


def flattened():
    p = parameter()
    p._fsdp_flattened = True  # as FullyShardedDataParallel marks what it flattens
    return p


@pytest.mark.parametrize(
    ("params", "factory", "reparameterization", "message"),
    [
        ([parameter()], sgd, "global", "expected `reparameterization` to be one, got 'global'"),
        ([parameter(torch.complex64)], sgd, Rotation(), "real floating.*got torch.complex64"),
        ([parameter(), parameter(device="meta")], sgd, Rotation(), "one device, got cpu, meta"),
        ([flattened()], sgd, Rotation(), r"their own shapes, got one flattened.*fully_shard"),
        ([parameter()], lambda p: None, Rotation(), "`factory` to make.*got NoneType"),
        ([parameter()], lambda p: sgd([parameter()]), Rotation(), "got one of others"),
        ([parameter(), parameter()], lambda p: sgd(p[::-1]), Rotation(), "got one of others"),
        ([parameter(), parameter()], lambda p: sgd(p[:1]), Rotation(), "got one of others"),
        (
            [parameter(), parameter()],
            lambda p: sgd([{"params": [q]} for q in p]),
            Rotation(),
            "in their order and groups, got one of others",
        ),
        ([parameter()], sgd, Rotation(only="weight"), "expected names of the parameters"),
        ([("bias", parameter())], sgd, Rotation(only="weight"), "`only` to match the name"),
        ([], sgd, Rotation(), "empty parameter list"),
    ],
)
def test_misuse_is_refused(params, factory, reparameterization, message):
    with pytest.raises(ValueError, match=message):
        Reparameterized(params, factory, reparameterization)


@pytest.mark.parametrize("directly", [False, True])
def test_groups_that_come_later_have_their_own_part_of_the_map(directly):
    module, other, loss = two()
    first, *rest = module.parameters()
    optimizer = Reparameterized([first], sgd, Rotation())
    if directly:  # as some callbacks do when they resume
        optimizer.param_groups.append({"params": rest, "lr": 0.2})
    else:
        optimizer.add_param_group({"params": rest, "lr": 0.2})
    train(module, optimizer, loss, 5)
    parameters = list(other.parameters())
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.2}]
    expected = train(other, torch.optim.SGD(groups, lr=0.1), loss, 5)
    torch.testing.assert_close(weights(module), expected, **CLOSE)
    ours = optimizer.coordinates(list(module.parameters()))
    given = Reparameterized(groups, sgd, Rotation()).coordinates(parameters)
    torch.testing.assert_close(dense(ours, len(expected)), dense(given, len(expected)))
    assert optimizer.param_groups[1]["reparameterization"].startswith("6 of 6 tensors")


def test_groups_that_are_replaced_are_refused():
    optimizer = Reparameterized([parameter()], sgd, Rotation())
    optimizer.param_groups[0]["params"] = [parameter()]
    with pytest.raises(RuntimeError, match=r"expected the 1 parameter groups .*got other.*Make a"):
        optimizer.step()
    optimizer.param_groups.clear()
    with pytest.raises(RuntimeError, match="expected the 1 parameter groups"):
        optimizer.step()


def test_a_group_that_the_map_cannot_place_is_refused_and_not_kept():
    layer = nn.Linear(2, 2)
    optimizer = Reparameterized(
        [("weight", layer.weight)], sgd, Rotation("tensor", only="weight|gain")
    )
    optimizer.add_param_group({"params": [("bias", layer.bias)]})  # stays as it is
    gain = parameter(torch.complex64)
    with pytest.raises(ValueError, match="real floating"):
        optimizer.add_param_group({"params": [("gain", gain)]})
    mapped = [group["reparameterization"][:6] for group in optimizer.param_groups]
    assert mapped == ["1 of 1", "0 of 1"]
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_lazy_parameters_are_refused_before_and_mapped_after_the_module_has_run():
    module = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"got a lazy one. Run the module once before"):
        Reparameterized(module.parameters(), sgd, Rotation())
    late = Reparameterized(module.named_parameters(), sgd, Rotation(only=r"^1\."))
    module(torch.ones(1, 4)).sum().backward()
    for optimizer in (late, Reparameterized(module.parameters(), sgd, Rotation())):
        before = weights(module)
        optimizer.step()
        gradient = parameters_to_vector(p.grad for p in module.parameters())
        torch.testing.assert_close(weights(module), before - 0.1 * gradient)


def test_coordinates_of_too_few_parameters_are_refused():
    first, second = parameter(), parameter()
    optimizer = Reparameterized([first, second], sgd, Rotation())
    with pytest.raises(ValueError, match="all parameters that the map changes, got 1 too few"):
        optimizer.coordinates([first])
