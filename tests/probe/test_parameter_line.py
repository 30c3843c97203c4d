"""Parameters moved along a step in place: where they are, what it takes, and their bits after."""

import pytest
import torch

from lightning_linf.probe.parameter_line import ParameterLine

MULTIPLES = (0.0, 2.0, 1.0, 1.5, 16.0, 128.0, 3.7, 0.5, 0.1)


def ends(dtype, relative=1e-3, size=1000):
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(size, generator=generator, dtype=torch.float64)
    step = relative * torch.randn(size, generator=generator, dtype=torch.float64)
    return before.to(dtype), (before + step).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_are_on_the_line_to_a_few_roundings_and_bits_come_back(dtype):
    before, after = ends(dtype)
    live, copy = after.clone(), before.clone()
    line = ParameterLine([live], [copy])
    step = after.double() - before.double()
    unit = torch.finfo(dtype).eps * before.abs().max().double()
    for multiple in MULTIPLES:
        line.move(multiple)
        distance = (live.double() - (before.double() + multiple * step)).abs().max()
        assert distance <= 2 * max(1, multiple) * unit
        assert multiple != 1 or torch.equal(live, after)
        assert line.has_kept()
    assert line.has_moved
    live.data[7] += 1  # autograd counts no new version
    assert not line.has_kept()
    line.restore()
    assert torch.equal(live, after)


def test_of_bfloat16_whole_multiples_are_exact_but_where_the_exponent_changes():
    before = 1 + torch.arange(0, 64) / 128
    after = before + torch.randint(-2, 3, (64,), generator=torch.Generator().manual_seed(1)) / 128
    live, copy = after.bfloat16(), before.bfloat16()
    assert torch.equal(live.float(), after)
    line = ParameterLine([live], [copy])
    for multiple in (0.0, 2.0, 3.0, 8.0, -1.0, 5.0):
        line.move(multiple)
        exact = before + multiple * (after - before)
        assert torch.equal(live.float()[exact >= 1], exact.bfloat16().float()[exact >= 1])
    line.restore()
    assert torch.equal(live.float(), after)


def test_it_takes_no_more_than_the_copy_and_a_piece():
    before, after = ends(torch.float32, size=2**22)
    live, copy = after.clone(), before.clone()
    line = ParameterLine([live], [copy])
    with torch.profiler.profile(profile_memory=True) as profile:
        for multiple in (0.0, 2.0, 7.0):
            line.move(multiple)
        line.restore()
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    assert max(sizes, default=0) <= live.nbytes // 16
    assert torch.equal(live, after)


def test_bits_come_back_of_odd_tensors_and_from_a_move_that_failed():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 4), (0,), (), (5,)]
    before = [torch.randn(shape, generator=generator) for shape in shapes]
    before.append(torch.randn(4, 6, generator=generator).t())  # not contiguous
    before.append(torch.randn(3, generator=generator, dtype=torch.complex64))
    after = [t + 0.1 for t in before]
    after[0][0, 0] = torch.nan
    live = [t.clone() for t in after]
    live[4] = after[4].clone().t().contiguous().t()
    line = ParameterLine(live, [t.clone() for t in before])
    line.move(0.0)
    line.move(2.5)
    torch.testing.assert_close(live[3], before[3] + 0.25)
    line._pieces.append((live[3], torch.zeros(7)))  # of another shape: the move fails there
    with pytest.raises(RuntimeError):
        line.move(4.0)
    line.restore()
    for ours, bits in zip(live, after, strict=True):
        assert torch.equal(ours.nan_to_num(), bits.nan_to_num())


def test_bits_come_back_where_the_first_move_fails_halfway():
    before, after = ends(torch.float32)
    live = [after.clone(), after.clone()]
    line = ParameterLine(live, [before.clone(), torch.zeros(3)])
    with pytest.raises(RuntimeError):
        line.move(0.0)
    assert torch.equal(live[0], before)
    line.restore()
    assert torch.equal(live[0], after)
    assert torch.equal(live[1], after)


def test_a_step_that_changes_nothing_has_not_moved():
    before, _ = ends(torch.float32)
    line = ParameterLine([before.clone()], [before.clone()])
    line.move(0.0)
    assert not line.has_moved
