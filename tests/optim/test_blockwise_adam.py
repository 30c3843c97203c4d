"""Blockwise Adam against its definition, entry by entry, and against AdamW at one end."""

import copy

import pytest
import torch
from support.blockwise import (
    FLOAT32,
    FORMS,
    PARTITIONS,
    ROUNDING,
    Net,
    Reference,
    assert_follows,
    labels_of,
    set_gradients,
)
from torch import nn

from lightning_linf.optim import AdaSGD, BlockwiseAdam

OPTIONS = {
    "defaults": {},
    "decay": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1},
    "ascent": {"maximize": True, "weight_decay": 0.3, "lr": 0.01},
    "eps inside": {"eps_inside": True, "eps": 1e-2},
    "large eps": {"eps": 0.1, "betas": (0.0, 0.5)},
}


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


SCALES = {"tiny": 1e-18, "large": 1e15, "inf": float("inf"), "nan": float("nan"), "zero": 0.0}


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("lr", [0.0, 0.1])
@pytest.mark.parametrize("scale", SCALES)
def test_gradients_of_any_size_make_the_step_of_the_plain_form(scale, lr, eps):
    params = [nn.Parameter(torch.randn(3, 4)) for _ in FORMS]
    params[1].data.copy_(params[0].data)
    for p, foreach in zip(params, FORMS, strict=True):
        optimizer = AdaSGD([p], lr, eps=eps, weight_decay=0.1, foreach=foreach)
        for step in range(3):
            p.grad = torch.linspace(-1, 1, 12).view(3, 4)
            p.grad[1, 2:] *= SCALES[scale]
            p.grad *= SCALES[scale] if step and scale != "inf" else 1.0
            optimizer.step()
    torch.testing.assert_close(*params, equal_nan=True)


def test_a_tensor_of_several_parts_steps_as_in_the_plain_form():
    p = torch.randn(1_100_000)
    params = [nn.Parameter(p.clone()) for _ in FORMS]
    for each, foreach in zip(params, FORMS, strict=True):
        optimizer = BlockwiseAdam([each], 0.1, weight_decay=0.1, maximize=True, foreach=foreach)
        for step in range(2):
            each.grad = p.roll(step + 1)
            optimizer.step()
    torch.testing.assert_close(*params)


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
@pytest.mark.parametrize("foreach", FORMS)
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
