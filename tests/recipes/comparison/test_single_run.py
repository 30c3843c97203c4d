import dataclasses

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
import torch
from lightning.pytorch import Callback

import gpt2
from comparison import single_run
from comparison.single_run import Run


class Norms(Callback):
    """Keep the norm of every gradient before it is clipped."""

    def __init__(self):
        self.values = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = [p.grad.flatten() for p in pl_module.parameters()]
        self.values.append(torch.cat(gradients).norm().item())


@pytest.mark.parametrize("choices", [{}, {"optimizer": "sgd", "rotation": "global"}])
def test_the_share_of_clipped_steps_is_that_of_the_larger_norms(comparison, choices):
    norms = Norms()

    def prepare(config, callbacks, **options):
        return gpt2.prepare(config, [*callbacks, norms], **options)

    def share(max_norm):
        config = dataclasses.replace(comparison, gradient_clip_val=max_norm, max_steps=8, **choices)
        return single_run.train(Run(config), prepare).clipped_share

    assert share(0.0) == 0
    assert share(1e-9) == 1
    limit = sorted(norms.values[:8])[4]
    norms.values.clear()
    found = share(limit)
    assert found == sum(value > limit for value in norms.values) / 8
    assert 0 < found < 1


def test_a_shaken_run_begins_at_the_next_weights_and_is_named_so(comparison):
    starts = []

    class Start(Callback):
        def on_train_start(self, trainer, pl_module):
            starts.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))

    def prepare(config, callbacks, **options):
        return gpt2.prepare(config, [*callbacks, Start()], **options)

    plain, shaken = (
        single_run.train(Run(comparison, is_shaken=is_shaken), prepare)
        for is_shaken in (False, True)
    )
    assert torch.equal(starts[1], torch.nextafter(starts[0], torch.tensor(float("inf"))))
    assert shaken.train_loss == pytest.approx(plain.train_loss, rel=1e-5)
    assert shaken.core_seconds > 0
    assert Run(comparison, is_shaken=True).label == Run(comparison).label + ", shaken"
