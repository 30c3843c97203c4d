"""Before the first probe a monitor says what it takes, and takes parts where that does not fit."""

import logging

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_linf import probe_memory
from lightning_linf.callbacks import LinfSmoothnessMonitor, _memory_plan

WIDTH, SAMPLES = 4, 64


class Module(lightning.LightningModule):
    """Its graph is large beside its parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Decides(Module):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss.item() < 1e6 else loss / 2


def trained(module=None, max_steps=2, **options):
    monitor = LinfSmoothnessMonitor(
        every_n_steps=1, num_probes=4, max_overhead=None, on_error="raise", **options
    )
    trainer = lightning.Trainer(
        max_steps=max_steps, callbacks=[monitor], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(1)
    data = torch.randn(max_steps * SAMPLES, WIDTH)
    trainer.fit(module or Module(), DataLoader(data, batch_size=SAMPLES))
    return monitor


def peak(num_parts=1, **options):
    batch = torch.randn(SAMPLES, WIDTH)
    module = Module()
    return probe_memory(
        module, [batch], loss=lambda m, x: m.training_step(x, 0), num_probes=4, num_partitions=2,
        num_parts=num_parts, **options,
    ).peak  # fmt: skip


def let_be_free(monkeypatch, num_bytes):
    monkeypatch.setattr(_memory_plan, "available_memory", lambda device: num_bytes)


def test_what_a_probe_takes_is_said_once(caplog):
    with caplog.at_level(logging.INFO):
        trained()
    lines = [line for line in caplog.messages if "a probe takes" in line]
    assert len(lines) == 1, lines
    assert "LinfSmoothnessMonitor: a probe takes" in lines[0]
    assert "each vector of 40 numbers 0.2 KiB" in lines[0]


def test_parts_are_taken_from_the_start_where_the_whole_does_not_fit(monkeypatch):
    whole = trained().history
    let_be_free(monkeypatch, (peak(2) + peak(4)) // 2)
    evaluated = []
    module = Module()
    plain = module.training_step

    def training_step(batch, batch_idx):
        evaluated.append(len(batch))
        return plain(batch, batch_idx)

    module.training_step = training_step
    with pytest.warns(UserWarning, match=r"would take .* KiB \(.* KiB is free\), so .* in 4 parts"):
        parts = trained(module).history
    assert [entry["step"] for entry in parts] == [entry["step"] for entry in whole]
    for one, other in zip(parts, whole, strict=True):
        assert one["lambda_max"] == pytest.approx(other["lambda_max"], rel=1e-4)
    # Whole, 2 and 4 parts are followed without values; the loss of the whole is then compared.
    assert set(evaluated) == {SAMPLES, SAMPLES // 2, SAMPLES // 4}
    assert evaluated.count(SAMPLES // 2) == 1
    assert evaluated.count(SAMPLES // 4) > 100


def test_a_probe_that_fits_nowhere_is_announced_with_what_would_help(monkeypatch):
    let_be_free(monkeypatch, 1000)
    with pytest.warns(UserWarning, match="tried even so") as warned:
        monitor = trained(max_steps=1)
    (text,) = [str(w.message) for w in warned if "tried even so" in str(w.message)]
    assert "in 16 parts (1.0 KiB is free)" in text
    assert 'offload="cpu" would lower that to' in text
    assert "let probe_loss(batch) take fewer" in text
    assert len(monitor.history) == 1


def test_what_is_offloaded_is_not_offered_again(monkeypatch):
    let_be_free(monkeypatch, 1000)
    with pytest.warns(UserWarning, match="tried even so") as warned:
        trained(max_steps=1, offload="cpu")
    assert not any("offload=" in str(w.message) for w in warned)


def test_batches_stay_whole_in_train_mode(monkeypatch):
    let_be_free(monkeypatch, 1000)
    with pytest.warns(UserWarning, match="tried even so") as warned:
        trained(max_steps=1, mode="train")
    texts = [str(w.message) for w in warned]
    assert any("tried even so" in text for text in texts)
    assert not any("parts" in text for text in texts)


def test_a_loss_that_needs_its_values_is_measured_unannounced(monkeypatch, caplog):
    let_be_free(monkeypatch, 1000)
    with caplog.at_level(logging.DEBUG, logger="lightning_linf"):
        monitor = trained(Decides(), max_steps=1)
    assert len(monitor.history) == 1
    assert any("does not know what a probe takes" in line for line in caplog.messages)


def test_offloading_measures_the_same(monkeypatch):
    plain, offloaded = trained(num_batches=2), trained(num_batches=2, offload="cpu")
    for one, other in zip(plain.history, offloaded.history, strict=True):
        seconds = {"probe_seconds", "probe_overhead"}
        assert {k for k in one if k not in seconds} == {k for k in other if k not in seconds}
        for key in set(one) - seconds - {"per_tensor", "tensor_names"}:
            assert one[key] == other[key] or one[key] != one[key], key  # NaN is not itself


def test_other_places_are_refused():
    with pytest.raises(ValueError, match=r"`offload` to be one of 'cpu' or None, got 'disk'"):
        LinfSmoothnessMonitor(offload="disk")
