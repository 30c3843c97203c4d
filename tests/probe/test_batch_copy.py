"""A batch of any class is copied, kept and split."""

import threading
from collections import UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.callbacks._kept_batch import KeptBatch
from lightning_linf.probe import ProbeError, measure_geometry
from lightning_linf.probe.batch_copy import copy_batch, num_samples, split_batch

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class Record:
    """A user's record, which moves its own tensors as Lightning expects of it."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Graph:
    """As PyG's Data: attributes live in a store that knows its owner."""

    def __init__(self, x):
        self.__dict__["store"] = {"x": x}
        self.__dict__["owner"] = self

    def __getattr__(self, name):
        return self.__dict__["store"][name]

    def __setattr__(self, name, value):
        self.__dict__["store"][name] = value

    def __deepcopy__(self, memo):
        import copy

        return Graph(copy.deepcopy(self.x, memo))


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor


class Handle:
    def __reduce_ex__(self, protocol):
        raise TypeError("cannot pickle a handle")


class Entries(dict):
    """A dict whose entries are attributes, so that it seems to have any method."""

    __getattr__ = dict.__getitem__


class Alike(dict):
    """A dict that is its own attributes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__ = self


Pair = namedtuple("Pair", ["x", "other"])  # as collate functions make them


def first(batch):
    return batch["x"] if isinstance(batch, Mapping) else batch.x


BATCHES = {
    "record": lambda x: Record(x, x),
    "slots": Slotted,
    "own deepcopy": Graph,
    "frozen": Frozen,
    "namedtuple": lambda x: Pair(x, 1),
    "dict": lambda x: {"x": x, "name": "a"},
    "entries": lambda x: Entries(x=x, inner=Entries(x=x)),
    "alike": lambda x: Alike(x=x, inner=[Alike(x=x)]),
    "default": lambda x: defaultdict(list, x=x),
    "user dict": lambda x: UserDict(x=x),
}


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: [b], lambda b: {"a": (b, 1)}])
def test_a_copy_shares_no_tensor(make, wrap):
    x = torch.ones(2, 3)
    copied = copy_batch(wrap(make(x)), torch.clone)
    inner = copied["a"][0] if isinstance(copied, dict) and "a" in copied else copied
    inner = inner[0] if isinstance(inner, list) else inner
    assert type(inner) is type(make(x))
    first(inner).mul_(2)
    assert torch.equal(x, torch.ones(2, 3))


def test_dicts_whose_entries_are_attributes_stay_so():
    copied = copy_batch([Entries(x=torch.ones(2)), Alike(x=torch.ones(2))], torch.clone)
    assert [type(part) for part in copied] == [Entries, Alike]
    for part in copied:
        assert part.x is part["x"]
    copied[1].x = 3
    assert copied[1]["x"] == 3


def test_what_is_one_object_stays_one():
    x = torch.ones(2, requires_grad=True) * 1  # not a leaf, which deepcopy alone refuses
    record = Record(x, x)
    copied = copy_batch({"a": record, "b": record}, torch.clone)
    assert copied["a"] is copied["b"] is not record
    assert copied["a"].x is copied["a"].y is not x


def test_a_view_is_copied_without_what_it_is_a_view_of():
    x = torch.ones(1000, 2)[:3]
    copied = copy_batch(Record(x, x), torch.clone)
    assert copied.x.untyped_storage().nbytes() == 3 * 2 * 4


def test_arrays_and_packed_sequences_are_copied_and_machinery_is_kept():
    array, fixed = np.zeros(2), np.zeros(2)
    fixed.flags.writeable = False
    module, packed = nn.Linear(1, 1), pack_sequence([torch.ones(2), torch.ones(1)])
    record = Record(packed, [array, fixed, module, len, threading.Lock()])
    copied = copy_batch(record, torch.clone)
    copied.x.data.zero_()
    copied.y[0][:] = 1
    assert packed.data.sum() == 3
    assert array.sum() == 0
    assert all(a is b for a, b in zip(copied.y[1:], record.y[1:], strict=True))


def test_what_cannot_be_copied_is_refused_with_the_remedy():
    record = Record(torch.ones(2, 1), Handle())
    module = nn.Linear(1, 1)
    with pytest.raises(ProbeError, match=r"copying a Record failed: TypeError.* a __deepcopy__"):
        measure_geometry(module, [record], loss=lambda m, b: m(b.x).square().mean())


def test_an_object_is_weighed_and_split_by_its_tensors():
    record = Record(torch.arange(7), torch.arange(14).view(7, 2))
    assert num_samples(record, "") == 7
    parts = split_batch(record, 3)
    assert [len(part.x) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part.y for part in parts]), record.y)


def test_a_kept_object_is_as_it_was_and_its_tensors_are_watched():
    record = Record(torch.ones(2), torch.zeros(2))
    kept = KeptBatch(record, 0)
    record.x = record.x * 2
    assert torch.equal(kept.batch().x, torch.ones(2))
    record.y.add_(1)
    with pytest.raises(ProbeError, match="changed in place"):
        kept.batch()


def test_a_batch_that_cannot_be_kept_fails_when_it_is_measured():
    kept = KeptBatch(Record(torch.ones(1), Handle()), 0)
    with pytest.raises(ProbeError, match="a batch that can be copied"):
        kept.batch()


class Pure(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch["r"].x * 0.5 + 1), batch["r"].y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class WritesBack(Pure):
    """The same mathematics."""

    def training_step(self, batch, batch_idx):
        batch["r"].x = batch["r"].x * 0.5 + 1
        return nn.functional.mse_loss(self.net(batch["r"].x), batch["r"].y)


def test_an_object_that_training_step_writes_to_is_measured_as_it_came(tmp_path):
    x = torch.randn(32, 6)
    histories = []
    for kind in (Pure, WritesBack):
        monitor = LinfSmoothnessMonitor(
            2, num_probes=4, num_batches=2, on_error="raise", max_overhead=None
        )
        records = DataLoader(
            range(4),
            batch_size=None,
            collate_fn=lambda k: {"r": Record(x[8 * k : 8 * k + 8], x[8 * k : 8 * k + 8, :1] * 2)},
        )
        lightning.Trainer(
            max_steps=4,
            callbacks=[monitor],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(kind(), records)
        histories.append([entry["lambda_max"] for entry in monitor.history])
    assert len(histories[0]) == 2
    assert histories[0] == histories[1]
