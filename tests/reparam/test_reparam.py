"""Changes of coordinates against dense matrices, and the laws they obey."""

import copy
import math
import pickle
import re
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import networks

from lightning_linf.functional import rotate
from lightning_linf.functional.random import derive_seed
from lightning_linf.probe import Landscape, measure_geometry
from lightning_linf.reparam import (
    Composition,
    Permutation,
    Reparameterization,
    Rotation,
    Scaling,
)
from lightning_linf.reparam.rotation import RotationScope

ROUNDING = {"rtol": 0.0, "atol": 1e-11}  # of float64, for entries of about 1
NAMES = ["embed.weight", "embed.bias", "conv.weight", "scale", "head.weight", "norm.weight"]
SHAPES = [torch.Size(s) for s in [(5, 4), (5,), (3, 2, 2, 2), (), (4, 1), (7,)]]
SIZES = [math.prod(shape) for shape in SHAPES]
DIM = sum(SIZES)
FACTORS = torch.arange(1.0, 1.0 + DIM).double()

MAPS = {
    **{f"rotation {name}": Rotation(name, seed=3) for name in get_args(RotationScope)},
    "half a rotation": Rotation(seed=3, strength=0.4),
    "no rotation": Rotation("row", strength=0.0, only="weight"),
    "rotation of weights": Rotation("tensor", seed=3, only="weight$"),
    "permutation global": Permutation(seed=1),
    "permutation tensor": Permutation("tensor", seed=1, only=r"\.weight"),
    "scaling by a number": Scaling(-2.5),
    "scaling": Scaling(FACTORS),
    "scaling of a bias": Scaling(FACTORS[:5], only="bias"),
    "composition": Rotation("row", only="embed") @ Scaling(FACTORS) @ Permutation(only="head|conv"),
    "composition of two": Scaling(FACTORS) @ Rotation("column", seed=1),
}
every_map = pytest.mark.parametrize("reparameterization", MAPS.values(), ids=MAPS)


def dense(function, dim=DIM):
    """Matrix of a linear function of vectors. Shape: (d, d)."""
    return torch.stack([function(e) for e in torch.eye(dim, dtype=torch.float64)], dim=1)


def bind(reparameterization, **options):
    return reparameterization.bind(SHAPES, NAMES, **options)


def block_diagonal(reparameterization, matrices):
    """Join dense maps of the tensors that are selected, and identities of the others."""
    selected = reparameterization.selects(NAMES, len(NAMES))
    chosen = iter(matrices)
    parts = [
        next(chosen) if flag else torch.eye(size, dtype=torch.float64)
        for flag, size in zip(selected, SIZES, strict=True)
    ]
    return torch.block_diag(*parts)


def dense_rotation(dim, position, *, seed, stream=0, strength=1.0):
    own = derive_seed("rotation", seed, stream, position)
    return dense(lambda x: rotate(x, seed=own, strength=strength), dim)


@every_map
def test_transpose_and_inverse_are_those_of_the_matrix(reparameterization):
    bound = bind(reparameterization)
    assert bound.num_params == DIM
    matrix = dense(bound.apply)
    torch.testing.assert_close(dense(bound.apply_transpose), matrix.T, **ROUNDING)
    identity = torch.eye(DIM, dtype=torch.float64)
    inverse = bound.inverse()
    torch.testing.assert_close(dense(inverse.apply) @ matrix, identity, **ROUNDING)
    torch.testing.assert_close(dense(inverse.apply_transpose) @ matrix.T, identity, **ROUNDING)
    torch.testing.assert_close(dense(inverse.inverse().apply), matrix, **ROUNDING)


@every_map
def test_what_is_not_selected_stays(reparameterization):
    x = torch.randn(DIM)
    selected = reparameterization.selects(NAMES, len(NAMES))
    for function in (bind(reparameterization).apply, bind(reparameterization).apply_transpose):
        for part, image, flag in zip(
            x.split(SIZES), function(x).split(SIZES), selected, strict=True
        ):
            assert flag or torch.equal(image, part)


@every_map
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_results_are_new_and_have_the_dtype_of_the_argument(reparameterization, dtype):
    bound = bind(reparameterization)
    x = torch.randn(DIM).to(dtype).requires_grad_()
    before = x.detach().clone()
    for function in (bound.apply, bound.apply_transpose, bound.apply_transpose_squared):
        y = function(x)
        assert (y.dtype, y.shape, y.requires_grad) == (dtype, (DIM,), False)
        y.zero_()
        assert torch.equal(x, before)
    strided = torch.stack([before, before], dim=1)[:, 0]
    assert torch.equal(bound.apply(strided), bound.apply(before))


@every_map
def test_products_in_place_are_the_same(reparameterization):
    bound, x = bind(reparameterization), torch.randn(DIM)
    for product, in_place in (
        (bound.apply, bound.apply_),
        (bound.apply_transpose, bound.apply_transpose_),
    ):
        y = x.clone()
        assert in_place(y) is y
        assert torch.equal(y, product(x))


@every_map
def test_copies_and_pickles_are_equal_and_do_the_same(reparameterization):
    bound, x = bind(reparameterization), torch.randn(DIM)
    expected = bound.apply(x)
    for duplicate in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        other = duplicate(reparameterization)
        assert other == reparameterization
        assert hash(other) == hash(reparameterization)
        assert repr(other) == repr(reparameterization)
        for same in (duplicate(bound), bind(other)):
            assert same == bound
            assert hash(same) == hash(bound)
            assert repr(same) == repr(bound)
            assert torch.equal(same.apply(x), expected)


def test_different_maps_differ():
    maps = [*MAPS.values(), Scaling(FACTORS + 1), Scaling(FACTORS.float()), Scaling(FACTORS[1:])]
    for i, a in enumerate(maps):
        assert a != "something else"
        for j, b in enumerate(maps):
            assert (a == b) == (i == j)
    assert Rotation(seed=1).bind([SHAPES[0]]) != Rotation(seed=2).bind([SHAPES[0]])
    assert Scaling(2.0).bind([SHAPES[0]]) != Scaling(2.0).bind([SHAPES[0]]).inverse()


def test_representations_can_be_read():
    assert repr(Rotation("row")) == "Rotation(scope='row', seed=0, strength=1.0, only=None)"
    digits = "[0-9a-f]{8}"
    pattern = rf"Scaling\(<{DIM} factors, magnitudes 1 to {DIM}, hash {digits}>, only=None\)"
    assert re.fullmatch(pattern, repr(Scaling(FACTORS)))
    assert repr(Scaling(FACTORS)) != repr(Scaling(FACTORS.flip(0)))
    product = Permutation() @ Scaling(2)
    assert repr(product) == (
        "(Permutation(scope='global', seed=0, only=None) @ Scaling(2.0, only=None))"
    )


def test_global_rotation_is_that_of_the_whole_vector():
    bound = bind(Rotation(seed=3, strength=0.8))
    expected = dense_rotation(DIM, 0, seed=3, strength=0.8)
    torch.testing.assert_close(dense(bound.apply), expected, **ROUNDING)


def test_global_rotation_of_some_joins_them():
    chosen = Rotation(seed=3, only="weight")
    x = torch.randn(DIM, dtype=torch.float64)
    flags = chosen.selects(NAMES, len(NAMES))
    assert flags == [True, False, True, False, True, True]
    mask = torch.cat([torch.full((n,), f) for n, f in zip(SIZES, flags, strict=True)])
    expected = x.clone()
    expected[mask] = rotate(x[mask], seed=derive_seed("rotation", 3, 0, 0))
    torch.testing.assert_close(bind(chosen).apply(x), expected, **ROUNDING)


def test_tensor_rotation_turns_each_tensor_by_its_own_map():
    chosen = Rotation("tensor", seed=3, only="weight")
    selected = [n for n, f in zip(SIZES, chosen.selects(NAMES, 6), strict=True) if f]
    expected = block_diagonal(
        chosen, [dense_rotation(n, position, seed=3) for position, n in enumerate(selected)]
    )
    torch.testing.assert_close(dense(bind(chosen).apply), expected, **ROUNDING)


@pytest.mark.parametrize("scope", ["row", "column"])
def test_row_and_column_rotations_act_on_one_side_of_a_matrix(scope):
    parts = []
    for position, shape in enumerate(SHAPES):
        rows, columns = (shape[0] if shape else 1), math.prod(shape[1:])
        if scope == "row":
            turned = dense_rotation(columns, position, seed=3)
            parts.append(torch.kron(torch.eye(rows).double(), turned))
        else:
            turned = dense_rotation(rows, position, seed=3)
            parts.append(torch.kron(turned, torch.eye(columns).double()))
    bound = bind(Rotation(scope, seed=3))
    torch.testing.assert_close(dense(bound.apply), torch.block_diag(*parts), **ROUNDING)


def test_row_rotation_leaves_vectors_alone():
    x = torch.randn(7)
    assert torch.equal(Rotation("row").bind([torch.Size([7])]).apply(x), x)
    assert not torch.equal(Rotation("column").bind([torch.Size([7])]).apply(x), x)


def test_rotation_of_strength_0_selects_nothing():
    assert Rotation(strength=0.0).selects(None, 3) == [False] * 3
    x = torch.tensor([-0.0, math.nan, 1.0])
    y = Rotation(strength=0.0).bind([x.shape]).apply(x)
    assert torch.equal(y.view(torch.int32), x.view(torch.int32))


def test_streams_and_positions_are_independent():
    x = torch.randn(1000)
    images = [
        Rotation(scope, seed=seed).bind([x.shape], stream=stream).apply(x)
        for scope, seed, stream in [("global", 0, 0), ("tensor", 0, 1), ("global", 1, 0)]
    ]
    images += Rotation("tensor").bind([x.shape] * 3).apply(torch.cat([x] * 3)).split(1000)[1:]
    cosines = torch.corrcoef(torch.stack(images)).fill_diagonal_(0)
    assert cosines.abs().max() < 5 / 1000**0.5
    a, b = (Permutation().bind([x.shape], stream=s).apply(x) for s in (0, 1))
    assert (a == b).sum() < 10


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_permutation_permutes(scope):
    shapes = [torch.Size([40]), torch.Size([3, 20])]
    x = torch.arange(100.0)
    y = Permutation(scope, seed=0).bind(shapes).apply(x)
    assert sorted(y.tolist()) == x.tolist()
    assert (y == x).sum() < 10
    stays = sorted(y[:40].tolist()) == x[:40].tolist()
    assert stays == (scope == "tensor")


def test_permutation_is_drawn_once(monkeypatch):
    draws = []
    original = torch.randperm
    monkeypatch.setattr(
        torch, "randperm", lambda *args, **kw: draws.append(args) or original(*args, **kw)
    )
    bound = Permutation().bind([torch.Size([50])])
    with torch.inference_mode():
        x = bound.apply(torch.randn(50))
    for _ in range(3):
        assert torch.equal(bound.inverse().apply(bound.apply(x)), x)
        bound.apply_transpose(x)
    assert draws == [(50,), (50,)]  # one for the inverse
    assert len(pickle.dumps(bound)) < 1000


def test_scaling_multiplies_and_keeps_its_own_factors():
    factors = FACTORS.clone()
    scaling = Scaling(factors)
    factors.zero_()
    x = torch.randn(DIM, dtype=torch.float64)
    bound = bind(scaling)
    assert torch.equal(bound.apply(x), FACTORS * x)
    assert torch.equal(bound.inverse().apply(x), x / FACTORS)
    assert torch.equal(bound.apply_transpose_squared(x), FACTORS * (FACTORS * x))
    assert torch.equal(bind(Scaling(3)).apply(x), 3 * x)


@pytest.mark.parametrize(
    "name", ["permutation global", "permutation tensor", "scaling", "scaling of a bias"]
)
def test_squares_are_exact_where_rows_have_one_entry(name):
    bound = bind(MAPS[name])
    expected = dense(bound.apply).square().T
    torch.testing.assert_close(dense(bound.apply_transpose_squared), expected, **ROUNDING)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: Rotation(seed=seed),
        lambda seed: Rotation("row", seed=seed, strength=0.6, only="weight"),
        lambda seed: Rotation("column", seed=seed),
        lambda seed: Scaling(FACTORS[:11]) @ Rotation("tensor", seed=seed) @ Permutation(),
        lambda seed: Rotation(seed=seed) @ Rotation("tensor", seed=seed + 10_000),
    ],
)
def test_square_of_a_rotation_is_what_is_expected_over_its_signs(make):
    shapes, names = [torch.Size([3, 3]), torch.Size([2])], ["a.weight", "a.bias"]
    bound = [make(seed).bind(shapes, names) for seed in range(100)]
    draws = torch.stack([dense(one.apply, 11).square().T for one in bound])
    squared = dense(bound[0].apply_transpose_squared, 11)
    standard_error = draws.std(dim=0) / 100**0.5
    assert ((draws.mean(0) - squared).abs() <= 6 * standard_error + 1e-12).all()


def test_maps_say_whether_they_mix_tensors():
    for scope in get_args(RotationScope):
        assert Rotation(scope).mixes_tensors == (scope == "global")
    assert not Rotation(strength=0.0).mixes_tensors
    assert Permutation().mixes_tensors
    assert not Permutation("tensor").mixes_tensors
    assert not Scaling(2.0).mixes_tensors
    assert (Scaling(2.0) @ Rotation()).mixes_tensors
    assert not (Scaling(2.0) @ Rotation("row")).mixes_tensors


def test_composition_applies_the_right_part_first():
    a, b = Rotation(seed=0), Scaling(FACTORS)
    product = dense(bind(a).apply) @ dense(bind(b).apply)
    assert isinstance(a @ b, Composition)
    torch.testing.assert_close(dense(bind(a @ b).apply), product, **ROUNDING)
    inverse = dense(bind(b).inverse().apply) @ dense(bind(a).inverse().apply)
    torch.testing.assert_close(dense(bind(a @ b).inverse().apply), inverse, **ROUNDING)


def test_composition_selects_what_one_of_its_parts_selects():
    product = Rotation(only="embed") @ Permutation(only="bias|head")
    assert product.selects(NAMES, 6) == [True, True, False, False, True, False]
    assert product.only is None
    nothing = Rotation(strength=0.0) @ Permutation(only="head")
    assert nothing.selects(NAMES, 6) == [False] * 4 + [True, False]
    x = torch.randn(DIM)
    assert torch.equal(bind(nothing).apply(x), bind(Permutation(only="head")).apply(x))


@given(
    shapes=st.lists(
        st.lists(st.integers(1, 6), max_size=3).map(torch.Size), min_size=1, max_size=4
    ),
    scope=st.sampled_from(["global", "tensor", "row", "column"]),
    strength=st.floats(0, 1),
    stream=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60)
def test_rotations_keep_inner_products(shapes, scope, strength, stream, dtype):
    bound = Rotation(scope, strength=strength).bind(shapes, stream=stream)
    x = torch.randn(2, bound.num_params, dtype=dtype)
    y = torch.stack([bound.apply(row) for row in x])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        y.double() @ y.double().T, x.double() @ x.double().T, rtol=tolerance, atol=100 * tolerance
    )
    back = bound.apply_transpose(y[0])
    torch.testing.assert_close(back, x[0], rtol=0, atol=10 * tolerance)
    moments = bound.apply_transpose_squared(x[0].square())
    torch.testing.assert_close(moments.sum(), x[0].square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rotation", Rotation()),
        ("{class_path: Rotation, init_args: {scope: row, strength: 0.5, only: weight}}",
         Rotation("row", strength=0.5, only="weight")),
        ("{class_path: Permutation, init_args: {scope: tensor, seed: 4}}",
         Permutation("tensor", seed=4)),
        ("{class_path: Scaling, init_args: {factors: 2.5}}", Scaling(2.5)),
        ("{class_path: Composition, init_args: {outer: Rotation, inner: Permutation}}",
         Rotation() @ Permutation()),
    ],
)  # fmt: skip
def test_every_map_is_an_argument_of_a_command_line(text, expected):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--map", type=Reparameterization)
    home = "lightning_linf.reparam."
    for name in ("Rotation", "Permutation", "Scaling", "Composition"):
        text = text.replace(name, home + name)
    found = parser.instantiate(parser.parse_args([f"--map={text}"]))
    assert found.map == expected


@pytest.fixture(scope="module")
def net():
    """An MLP with LayerNorm, its batch and loss, its gradient and its Hessian."""
    torch.manual_seed(0)
    module, batch, loss = networks.mlp()
    gradients = torch.autograd.grad(loss(module, batch), list(module.parameters()))
    hessian = networks.dense_hessian(module, lambda: loss(module, batch))
    return module, batch, loss, torch.cat([g.reshape(-1) for g in gradients]), hessian


@pytest.mark.parametrize(
    "reparameterization",
    [
        *(Rotation(scope, seed=2, strength=0.9) for scope in get_args(RotationScope)),
        Rotation("row", only=r"^0\.") @ Permutation("tensor", only="weight") @ Scaling(0.5),
        Rotation(seed=2) @ Scaling(3.0),
    ],
    ids=repr,
)
def test_landscape_in_other_coordinates_is_the_dense_transform(net, reparameterization):
    module, batch, loss, gradient, hessian = net
    dim, named = len(gradient), dict(module.named_parameters())
    bound = reparameterization.bind([p.shape for p in named.values()], list(named))
    matrix = dense(bound.apply, dim)
    vectors = torch.randn(3, dim, dtype=torch.float64)
    with Landscape(module, [batch], loss=loss, reparameterization=reparameterization) as landscape:
        products, slope = landscape.hvp(vectors), landscape.gradient()
        moved = landscape.gradient(vectors[0])
    torch.testing.assert_close(products, vectors @ matrix.T @ hessian @ matrix, **ROUNDING)
    torch.testing.assert_close(slope, matrix.T @ gradient, **ROUNDING)
    with Landscape(module, [batch], loss=loss) as landscape:
        expected = matrix.T @ landscape.gradient(matrix @ vectors[0])
    torch.testing.assert_close(moved, expected, **ROUNDING)


def test_a_rotation_changes_the_one_one_norm_and_neither_eigenvalues_nor_length(net):
    module, batch, loss, gradient, hessian = net
    options = {"loss": loss, "num_probes": 128}  # at least d: exact
    before = measure_geometry(module, [batch], **options)
    after = measure_geometry(module, [batch], reparameterization=Rotation(seed=0), **options)
    assert after.settings["coordinates"] == repr(Rotation(seed=0))
    torch.testing.assert_close(after.lambda_max, before.lambda_max, rtol=1e-3, atol=0)
    length = after.dual_norm["global"] / len(gradient) ** 0.5
    torch.testing.assert_close(length, float(gradient.norm()), rtol=1e-9, atol=0)
    matrix = dense(Rotation(seed=0).bind([gradient.shape]).apply, len(gradient))
    exact = float((matrix.T @ hessian @ matrix).abs().sum())
    torch.testing.assert_close(after.one_one_norm, exact, rtol=1e-6, atol=0)
    assert abs(after.one_one_norm / before.one_one_norm - 1) > 0.1


def test_landscape_refuses_what_cannot_be_bound(net):
    module, batch, loss, *_ = net
    with pytest.raises(ValueError, match=r"got 'nothing' for 0.weight, 0.bias, 1.weight"):
        Landscape(module, [batch], loss=loss, reparameterization=Rotation(only="nothing"))
    with pytest.raises(ValueError, match="one factor for each of 104 coordinates"):
        Landscape(module, [batch], loss=loss, reparameterization=Scaling(torch.ones(3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotation("rows"), "Rotation: expected `scope` to be one of .* got 'rows'"),
        (lambda: Rotation(strength=1.5), "Rotation: expected `strength` between 0 and 1, got 1.5"),
        (lambda: Rotation(strength=math.nan), "Rotation: expected `strength` .* got nan"),
        (lambda: Rotation(only="["), "Rotation: expected `only` to be a regular expression"),
        (lambda: Rotation(only=3), "Rotation: expected `only` to be a regular expression"),
        (lambda: Permutation("row"), "Permutation: expected `scope` to be one of .* got 'row'"),
        (lambda: Permutation(only="("), "Permutation: expected `only` to be a regular"),
        (lambda: Scaling(0), "Scaling: expected a nonzero finite factor, got 0"),
        (lambda: Scaling(math.inf), "Scaling: expected a nonzero finite factor, got inf"),
        (lambda: Scaling(math.nan), "Scaling: expected a nonzero finite factor, got nan"),
        (lambda: Scaling(torch.tensor([1.0, 0.0])), "nonzero finite factors, got 0.0 at 1"),
        (lambda: Scaling(torch.tensor([math.nan])), "nonzero finite factors, got nan at 0"),
        (lambda: Scaling(torch.tensor([math.inf])), "nonzero finite factors, got inf at 0"),
        (lambda: Scaling(torch.ones(2, 2)), r"real tensor of shape \(d,\), got .* \(2, 2\)"),
        (lambda: Scaling(torch.ones(2) * 1j), r"real tensor of shape \(d,\), got torch.complex64"),
        (lambda: Scaling(1.0, only="*"), "Scaling: expected `only` to be a regular expression"),
        (lambda: Composition(Rotation(), 3), "Composition: expected two .* got 3"),
        (lambda: bind(Scaling(torch.ones(3))), f"one factor for each of {DIM} coordinates"),
        (lambda: bind(Scaling(torch.ones(DIM), only="bias")), "factor for each of 5 coordinates"),
        (
            lambda: Rotation(only="nothing").selects(NAMES, 6),
            "match the name of a parameter, got 'nothing'",
        ),
        (
            lambda: (Rotation(only="xx", strength=0.0) @ Permutation()).selects(NAMES, 6),
            ", head.weight and 1 more",
        ),
        (lambda: Rotation(only="w").bind(SHAPES), "expected names of the parameters to search"),
        (lambda: Rotation().bind(SHAPES, NAMES[1:]), "one name for each of 6 tensors, got 5"),
        (lambda: bind(Rotation()).apply(torch.ones(3)), rf"vector of shape \({DIM},\), got .*3"),
        (lambda: bind(Rotation()).apply(torch.ones(1, DIM)), rf"got shape \(1, {DIM}\)"),
        (lambda: bind(Rotation()).apply_transpose(torch.ones(DIM).long()), "torch.int64"),
        (lambda: bind(Scaling(2)).apply_transpose_squared(torch.ones(3)), "real floating vector"),
    ],
)
def test_misuse_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pattern_may_miss_all_of_a_group():
    assert bind(Rotation(only="nothing") @ Rotation(only="bias")).apply(torch.ones(DIM)).sum() > 0


def test_only_maps_compose():
    with pytest.raises(TypeError, match="unsupported operand"):
        Rotation() @ 3
