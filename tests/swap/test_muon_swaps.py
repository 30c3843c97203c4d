"""A geometry of Muon: made of other optimizers, carried to and from them, trained and resumed."""

import copy

import pytest
import torch
from support.swapping import (
    SCHEDULES,
    Net,
    Scheduled,
    assert_equal_weights,
    assert_other_weights,
    fit,
    quiet,
    swapping,
)
from torch import nn
from torch.optim import SGD, Adam, AdamW

from lightning_linf import Geometry, GeometryMixin, Rotation
from lightning_linf.optim import BlockwiseAdam, MuonWithAdamW, Reparameterized, Signum
from lightning_linf.swap import carry_state

pytestmark = [
    quiet,
    pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9"),
]
EXACT = {"rtol": 1e-12, "atol": 1e-14}  # of float64
MATRICES = ("0.weight", "2.weight")


def network():
    return nn.Sequential(
        nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 2)
    ).double()


def train(module, optimizer, num_steps=4, first=0):
    for step in range(first, first + num_steps):
        generator = torch.Generator().manual_seed(step)
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


def matrices_of(module):
    return [p for name, p in module.named_parameters() if name in MATRICES]


def others_of(module):
    return [p for name, p in module.named_parameters() if name not in MATRICES]


def carried(make_old, make_new):
    module = network()
    old = make_old(module)
    train(module, old)
    new = make_new(module)
    return module, old, new, carry_state(old, new)


def adam(module):
    return Adam(module.parameters(), betas=(0.8, 0.9))


def muon(module, **options):
    named = module.named_parameters()
    return MuonWithAdamW(named, betas=(0.7, 0.9), matrices=MATRICES, **options)


@pytest.mark.parametrize(
    ("kind", "options", "betas"),
    [
        (SGD, {"momentum": 0.8}, (0.8, 0.999)),
        (SGD, {}, (0.95, 0.999)),
        (AdamW, {"betas": (0.7, 0.9), "eps": 1e-6}, (0.7, 0.9)),
        (Signum, {"momentum": 0.6}, (0.6, 0.999)),
    ],
)
def test_groups_rates_and_decays_are_kept(kind, options, betas):
    module = network()
    weights = [p for p in module.parameters() if p.ndim == 2]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": vectors, "lr": 0.5, "layer": 7}]
    old = kind(groups, lr=0.2, **options)
    new = Geometry("muon").make(old, module)
    assert type(new) is MuonWithAdamW
    assert new.matrices == MATRICES
    assert [group["lr"] for group in new.param_groups] == [0.2, 0.5]
    assert new.param_groups[0]["weight_decay"] == 0.3
    assert new.param_groups[1]["layer"] == 7
    for theirs, ours in zip(old.param_groups, new.param_groups, strict=True):
        assert [id(p) for p in theirs["params"]] == [id(p) for p in ours["params"]]
        assert ours["betas"] == betas
        assert ours["eps"] == options.get("eps", 1e-8)
        assert ours["adjust_lr_fn"] == "match_rms_adamw"


def test_matrices_can_be_chosen_and_stay_in_the_next_geometry():
    module = network()
    geometry = Geometry("muon", lr=0.5, options={"matrices": ["2.weight"], "nesterov": False})
    assert Geometry(**geometry.to_plain()) == geometry  # a checkpoint can hold it
    first = geometry.make(AdamW(module.parameters(), lr=0.1), module)
    second = Geometry(lr=0.25).make(first, module)
    for each, rate in ((first, 0.5), (second, 0.25)):
        assert [p for p in module.parameters() if each.is_matrix(p)] == [module[2].weight]
        assert each.param_groups[0]["lr"] == rate
        assert not each.param_groups[0]["nesterov"]


def test_without_a_hidden_matrix_it_is_refused():
    module = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"expected names of parameters in `matrices`, got \[\]"):
        Geometry("muon").make(AdamW(module.parameters()), module)


def test_from_adam_momentum_is_that_of_a_long_run_and_the_rest_keeps_its_bits():
    module, old, new, sentence = carried(adam, muon)
    assert sentence == "momentum was carried over, and second moments"
    for p in matrices_of(module):
        assert new.state[p].keys() == {"momentum_buffer"}
        expected = old.state[p]["exp_avg"] / (1 - 0.8**4)
        torch.testing.assert_close(new.state[p]["momentum_buffer"], expected, **EXACT)
    for p in others_of(module):
        assert new.state[p]["step"] == 4
        scale = (1 - 0.7**4) / (1 - 0.8**4)  # its own decay of the mean gradient
        expected = old.state[p]["exp_avg"] * scale
        torch.testing.assert_close(new.state[p]["exp_avg"], expected, **EXACT)
        assert torch.equal(new.state[p]["exp_avg_sq"], old.state[p]["exp_avg_sq"])
    train(module, new, first=9)


def test_from_sgd_matrices_go_on_and_the_rest_starts_anew():
    module, old, new, sentence = carried(
        lambda module: SGD(module.parameters(), lr=0.1, momentum=0.9), muon
    )
    assert sentence == (
        "momentum was carried over; tensors without second moments in the former start anew (6)"
    )
    for p in matrices_of(module):
        expected = 0.1 * old.state[p]["momentum_buffer"]
        torch.testing.assert_close(new.state[p]["momentum_buffer"], expected, **EXACT)
    assert new.state.keys() == {*matrices_of(module)}


@pytest.mark.parametrize(
    ("make", "key", "factor"),
    [
        (lambda m: SGD(m.parameters(), lr=0.1, momentum=0.5), "momentum_buffer", 2.0),
        (lambda m: Signum(m.parameters()), "exp_avg", 1.0),
    ],
)
def test_the_momentum_of_all_tensors_is_given_on(make, key, factor):
    module, old, new, sentence = carried(muon, make)
    assert sentence == "momentum was carried over"
    for p in matrices_of(module):
        expected = factor * old.state[p]["momentum_buffer"]
        torch.testing.assert_close(new.state[p][key], expected, **EXACT)
    for p in others_of(module):
        expected = factor * old.state[p]["exp_avg"] / (1 - 0.7**4)
        torch.testing.assert_close(new.state[p][key], expected, **EXACT)


def test_torchs_own_muon_gives_its_momentum():
    module = network()
    matrices = matrices_of(module)
    old, new = torch.optim.Muon(matrices), Signum(matrices)
    train(module, old)
    assert carry_state(old, new) == "momentum was carried over"
    for p in matrices:
        assert torch.equal(new.state[p]["exp_avg"], old.state[p]["momentum_buffer"])


@pytest.mark.parametrize(
    ("kind", "how"), [(Adam, ""), (BlockwiseAdam, ", as means over its blocks")]
)
def test_to_adam_matrices_start_anew_and_the_sentence_says_so(kind, how):
    module, old, new, sentence = carried(
        muon, lambda module: kind(module.parameters(), betas=(0.7, 0.9))
    )
    assert sentence == (
        f"momentum was carried over, and second moments{how}; tensors without second moments in "
        "the former start anew (2)"
    )
    assert not any(new.state.get(p) for p in matrices_of(module))
    for p in others_of(module):
        torch.testing.assert_close(new.state[p]["exp_avg"], old.state[p]["exp_avg"], **EXACT)


def test_one_of_the_same_matrices_goes_on_with_the_same_bits_and_one_of_others_does_not():
    module, old, new, sentence = carried(muon, lambda module: muon(module, weight_decay=0.0))
    assert sentence == "all of its state was carried over"
    kept_module, kept = copy.deepcopy((module, old))
    train(module, new, first=7)
    train(kept_module, kept, first=7)
    assert_equal_weights(module, kept_module)

    def fewer(module):
        return MuonWithAdamW(module.named_parameters(), matrices=MATRICES[:1])

    *_, sentence = carried(muon, fewer)
    assert sentence.endswith("tensors without second moments in the former start anew (1)")


def rotated(kind, **options):
    def make(module):
        return Reparameterized(
            module.named_parameters(), lambda p: kind(p, **options), Rotation("global")
        )

    return make


def test_under_a_rotation_that_mixes_matrices_with_the_rest_second_moments_are_not_made_up():
    module, _, new, sentence = carried(muon, rotated(Adam))
    assert sentence == (
        "its state starts anew: it needs second moments, which the former does not keep"
    )
    assert not any(new.state.values())
    module, _, new, sentence = carried(adam, rotated(MuonWithAdamW, matrices=MATRICES))
    assert sentence.startswith("momentum was carried over, and second moments, as their expect")
    assert new.state[module[0].weight].keys() == {"phi.momentum_buffer"}
    train(module, new)


def scheduled(name="cycle"):
    module = Scheduled(SCHEDULES[name], AdamW)
    return GeometryMixin.wrap(module, Geometry("muon"))


@pytest.mark.parametrize("name", ["cycle", "sequential", "cosine"])
def test_a_training_follows_its_schedule_and_is_resumed_to_the_last_bit(tmp_path, name):
    whole, plain = scheduled(name), Scheduled(SCHEDULES[name], AdamW)
    trainer = fit(whole, tmp_path, max_steps=8)
    fit(plain, tmp_path, max_steps=8)
    assert type(trainer.optimizers[0]) is MuonWithAdamW
    assert (whole.rates, whole.momenta) == (plain.rates, plain.momenta)
    assert_other_weights(whole, plain)
    fit(scheduled(name), tmp_path, max_steps=4).save_checkpoint(tmp_path / "part.ckpt")
    resumed = scheduled(name)
    fit(resumed, tmp_path, ckpt_path=tmp_path / "part.ckpt", max_steps=8)
    assert_equal_weights(whole, resumed)
    assert resumed.rates == whole.rates[4:]


def test_steps_after_a_swap_are_those_of_torchs_two_optimizers(tmp_path):
    module, other = Net(lambda m: AdamW(m.parameters(), lr=0.01)), Net()
    fit(module, tmp_path, [swapping(Geometry("muon"), step=0, carry=False)])
    matrices = [other.net[0].weight]
    theirs = [
        torch.optim.Muon(
            matrices, lr=0.01, weight_decay=0.01, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        ),
        AdamW([p for p in other.parameters() if p is not matrices[0]], lr=0.01),
    ]
    for _ in range(6):
        other.zero_grad()
        other.loss().backward()
        for each in theirs:
            each.step()
    assert_equal_weights(module, other)


def test_the_log_says_how_many_tensors_muon_steps(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(Net(), tmp_path, [swapping(Geometry("muon"))])
    (line,) = [r.getMessage() for r in caplog.records if "swapped" in r.getMessage()]
    assert line == (
        "Optimizer swapped at step 3: SGD -> MuonWithAdamW(Muon for 1 of 4 tensors); momentum was "
        "carried over; tensors without second moments in the former start anew (3)."
    )
