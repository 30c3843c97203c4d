"""States in other coordinates: saved, resumed, copied, or refused where they mean another thing."""

import copy
import io
import pickle

import pytest
import torch
from support.coordinates import (
    CLOSE,
    backward,
    rotated_adam,
    train,
    two,
    weights,
)
from torch import nn

from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized
from lightning_linf.reparam import (
    Rotation,
)

RESUMED = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
    "BlockwiseAdam": lambda p: BlockwiseAdam(p, lr=0.01, partition="tensor"),
    "AdaSGD": lambda p: AdaSGD(p, lr=0.01),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_with_the_same_bits(name, dtype):
    module, _, loss = two()
    if dtype == torch.bfloat16:
        module.bfloat16()
        x = torch.randn(9, module[0].in_features).bfloat16()

        def loss(m):
            return m(x).square().mean()

    def make(m):
        return Reparameterized(m.parameters(), RESUMED[name], Rotation("tensor", seed=0))

    def go_on(m, optimizer):
        for _ in range(4):
            optimizer.step(lambda: backward(m, loss))
        return weights(m)

    optimizer = make(module)
    go_on(module, optimizer)
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = copy.deepcopy(module)  # of the right shapes
    nn.init.zeros_(other[0].weight)
    other.load_state_dict(saved["module"])
    resumed = make(other)
    resumed.load_state_dict(saved["optimizer"])
    assert torch.equal(go_on(module, optimizer), go_on(other, resumed))
    ours, theirs = optimizer.state_dict(), resumed.state_dict()
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    assert ours["param_groups"] == theirs["param_groups"]


@pytest.mark.parametrize("stepped", [True, False])
def test_distributed_checkpoints_keep_weights_and_state(stepped):
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    module, other, loss = two()
    optimizer, fresh = rotated_adam(module), rotated_adam(other)
    if stepped:
        train(module, optimizer, loss, 3)
    before = weights(module)
    state = copy.deepcopy(get_optimizer_state_dict(module, optimizer))  # torch shares tensors
    assert torch.equal(weights(module), before)
    other.load_state_dict(module.state_dict())
    set_optimizer_state_dict(other, fresh, state)
    assert torch.equal(weights(other), before)
    assert torch.equal(train(module, optimizer, loss, 3), train(other, fresh, loss, 3))


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],
    ids=["deepcopy", "pickle"],
)
def test_copies_of_module_and_optimizer_train_as_the_originals(clone):
    module, _, loss = two()
    optimizer = rotated_adam(module)
    train(module, optimizer, loss, 3)
    other, copied = clone((module, optimizer))
    assert torch.equal(train(other, copied, loss, 3), train(module, optimizer, loss, 3))
    assert not torch.equal(train(other, copied, loss, 1), weights(module))  # nothing is shared


def test_a_module_may_change_its_dtype_after_the_optimizer_was_made():
    module, other, loss = two()
    module.float()
    rotated = Reparameterized(
        module.parameters(), lambda p: torch.optim.SGD(p, lr=0.01), Rotation()
    )
    module.double().load_state_dict(other.state_dict())
    expected = train(other, torch.optim.SGD(other.parameters(), lr=0.01), loss)
    torch.testing.assert_close(train(module, rotated, loss), expected, **CLOSE)


def test_a_checkpoint_of_the_module_is_that_of_an_ordinary_one():
    module, other, loss = two()
    train(module, rotated_adam(module), loss, 3)
    other.load_state_dict(module.state_dict())
    assert torch.equal(loss(other), loss(module))


def test_a_state_of_other_coordinates_is_refused():
    module, other, _ = two()
    saved = rotated_adam(module, Rotation(seed=1)).state_dict()
    optimizer = rotated_adam(other)
    with pytest.raises(ValueError, match=r"same coordinates, with .*seed=0.*got .*seed=1"):
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"got none. Resume with the map"):
        optimizer.load_state_dict(torch.optim.Adam(module.parameters()).state_dict())
    other[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"with 6 of 7 tensors.*got 7 of 7.*frozen parameters"):
        rotated_adam(other).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_no_plain_optimizer_takes_a_state_in_other_coordinates_for_its_own():
    module, _, loss = two()
    rotated = rotated_adam(module)
    train(module, rotated, loss, 2)
    plain = torch.optim.Adam(module.parameters(), lr=0.01)
    with pytest.raises(KeyError, match="step"):
        plain.load_state_dict(rotated.state_dict())


def test_a_state_that_went_on_without_the_map_is_refused_whatever_its_groups_say():
    module, _, loss = two()
    rotated = rotated_adam(module)
    train(module, rotated, loss, 2)
    state = rotated.state_dict()
    for entry in state["state"].values():
        for name in list(entry):
            entry[name.removeprefix("phi.")] = entry.pop(name)
    with pytest.raises(ValueError, match=r"expected a state in coordinates phi, got .*exp_avg"):
        rotated.load_state_dict(state)
