"""What is not installed is named in one line, with the command that installs it."""

import importlib
import sys

import pytest
import torch
from support.reports import full_report

from lightning_linf import GeometryRecorder, Partition


@pytest.fixture
def without(monkeypatch):
    """Make packages fail to import, and import modules of ours that need them afresh."""

    def hide(*packages, again=()):
        for package in packages:
            for name in [*sys.modules, package]:
                if name == package or name.startswith(f"{package}."):
                    monkeypatch.setitem(sys.modules, name, None)
        for name in again:
            monkeypatch.delitem(sys.modules, name, raising=False)

    return hide


def test_a_plot_without_matplotlib(without):
    without("matplotlib", again=["lightning_linf.report.plot", "lightning_linf.figure_style"])
    with pytest.raises(ModuleNotFoundError) as caught:
        full_report().plot()
    assert str(caught.value) == (
        "GeometryReport.plot: expected the package 'matplotlib', got none. "
        "Run: pip install 'lightning-linf[figures]'"
    )


def test_tables_without_pandas(without):
    without("pandas")
    partition = Partition.of(torch.nn.Linear(2, 2), "tensor")
    for name, table in (
        ("GeometryReport.to_pandas", full_report().to_pandas),
        ("Partition.to_pandas", partition.to_pandas),
    ):
        with pytest.raises(ModuleNotFoundError) as caught:
            table()
        assert str(caught.value) == (
            f"{name}: expected the package 'pandas', got none. "
            "Run: pip install 'lightning-linf[notebook]'"
        )


def test_the_callback_of_transformers_without_transformers(without):
    name = f"{GeometryRecorder.__module__.rpartition('.')[0]}.transformers"
    without("transformers", again=[name])
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(name)
    assert str(caught.value) == (
        "GeometryCallback: expected the package 'transformers', got none. "
        "Run: pip install 'lightning-linf[transformers]'"
    )
