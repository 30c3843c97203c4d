import torch

from lightning_linf.kernels import runs_kernels
from lightning_linf.kernels.choice import _runs_kernels


def test_kernels_run_on_gpus_or_where_triton_interprets_them(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert runs_kernels(torch.device("cpu"))
    assert not runs_kernels(torch.device("cuda"))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not runs_kernels(torch.device("cpu"))
    assert runs_kernels(torch.device("cuda"))
    assert not runs_kernels(torch.device("mps"))


def test_a_gpu_without_triton_is_said_once_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr("lightning_linf.kernels.choice.find_spec", lambda name: None)
    _runs_kernels.cache_clear()
    with caplog.at_level("DEBUG", "lightning_linf"):
        assert not _runs_kernels("cuda", False)
        assert not _runs_kernels("cuda", False)
    _runs_kernels.cache_clear()
    assert len(caplog.records) == 1
    assert "plain torch runs" in caplog.text
