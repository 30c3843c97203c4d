"""What a landscape takes as module, batches and numbers, and what it says of the rest."""

import itertools

import lightning
import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_linf import GeometryReport, measure_geometry
from lightning_linf.functional.full_precision import full_float32_precision
from lightning_linf.probe import Landscape, ProbeError

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
INPUTS = torch.arange(24.0).reshape(12, 2) / 10


def loss(module, batch):
    return module(batch[0]).square().mean()


def measure(module, batches, **options):
    return measure_geometry(module, batches, loss=options.pop("loss", loss), **options)


def assert_same(report, expected):
    ours, theirs = report.to_dict(), expected.to_dict()
    for one in (ours, theirs):
        del one["seconds"]
    assert ours == theirs


@pytest.mark.parametrize(
    "make",
    [
        lambda data: DataLoader(data, batch_size=4),
        lambda data: {i: batch for i, batch in enumerate(DataLoader(data, batch_size=4))}.values(),
        lambda data: tuple(DataLoader(data, batch_size=4)),
    ],
    ids=["loader", "values", "tuple"],
)
def test_batches_may_be_anything_that_has_a_length(make):
    module = nn.Linear(2, 1)
    data = TensorDataset(INPUTS)
    expected = measure(module, list(DataLoader(data, batch_size=4)), num_probes=4)
    assert expected.settings["num_batches"] == 3
    assert_same(measure(module, make(data), num_probes=4), expected)
    assert_same(measure(module, make(data), noise_batches=make(data), num_probes=4), expected)
    assert Landscape(module, make(data), loss=loss).num_batches == 3


@pytest.mark.parametrize(
    ("batches", "samples", "said"),
    [
        ([(INPUTS,)], 12, "1 batch a device of 12 samples in all,"),
        ([(INPUTS[:1],)], 1, "1 batch a device of 1 sample in all,"),
        ([(INPUTS[:4],), (INPUTS[4:],)], 12, "2 batches a device of 12 samples in all,"),
        ([(INPUTS, torch.zeros(7))], None, "1 batch a device, 4 probes,"),  # it does not tell
    ],
)
def test_a_report_says_how_many_samples_were_measured(batches, samples, said):
    report = measure(nn.Linear(2, 1), batches, num_probes=4)
    assert report.settings["num_samples"] == samples
    assert said in " ".join(str(report).split())
    assert_same(GeometryReport.from_json(report.to_json()), report)


def test_a_shuffling_loader_leaves_the_random_state_as_it_was():
    state = torch.get_rng_state()
    loader = DataLoader(TensorDataset(INPUTS), batch_size=4, shuffle=True)
    module = nn.Linear(2, 1)
    torch.set_rng_state(state)
    first = measure(module, loader, num_probes=4)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    assert_same(measure(module, loader, num_probes=4), first)


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.repeat(INPUTS)


@pytest.mark.parametrize(
    "batches",
    [
        DataLoader(Endless(), batch_size=None),
        (batch for batch in [(INPUTS,)]),
        iter([(INPUTS,)]),
        5,
    ],
    ids=["endless loader", "generator", "iterator", "number"],
)
@pytest.mark.parametrize("name", ["batches", "noise_batches"])
def test_batches_without_a_length_are_refused_with_what_to_write(batches, name):
    given = {"batches": [(INPUTS,)], name: batches}
    with pytest.raises(ValueError, match=rf"measure_geometry: expected `{name}`.*islice"):
        measure(nn.Linear(2, 1), **given)


@pytest.mark.parametrize("batch", [INPUTS, INPUTS.numpy(), {"x": INPUTS}, "text"])
def test_one_batch_instead_of_a_list_is_refused(batch):
    with pytest.raises(ValueError, match=r"looks like one batch. Write \[batch\]"):
        measure(nn.Linear(2, 1), batch)


class Detector(lightning.LightningModule):
    """Losses in train mode, predictions in eval mode."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1, bias=False)

    def forward(self, x):
        out = self.line(x)
        return {"loss": out.square().mean()} if self.training else [out]


class IndexesLosses(Detector):
    def training_step(self, batch, batch_idx):
        return sum(self(batch[0]).values())


class ReturnsNothing(Detector):
    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        return outputs["loss"] if isinstance(outputs, dict) else None


@pytest.mark.parametrize("cls", [IndexesLosses, ReturnsNothing])
def test_a_loss_of_train_mode_only_is_said_and_measured_there(cls):
    module = cls()
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(ProbeError, match=rf'{cls.__name__} in eval mode.*mode="train"'):
        measure_geometry(module, [(INPUTS,)], num_probes=4)
    assert module.training
    torch.testing.assert_close(list(module.parameters()), before, rtol=0, atol=0)
    report = measure_geometry(module, [(INPUTS,)], num_probes=4, mode="train")
    hessian = 2 * INPUTS.T @ INPUTS / len(INPUTS)
    assert report.one_one_norm == pytest.approx(hessian.abs().sum().item(), rel=1e-5)


def test_a_loss_that_fails_in_both_modes_fails_as_itself():
    def broken(module, batch):
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        measure(nn.Linear(2, 1), [(INPUTS,)], loss=broken)


class NoProbeLoss(Detector):
    probe_loss = None  # as a base class may say that there is none

    def __init__(self):
        super().__init__()
        self.stream = iter([1.0, 2.0])


def test_an_iterator_is_refused_where_training_step_would_move_it():
    with (
        pytest.raises(ProbeError, match=r"stream .* position of an iterator cannot be put back"),
        Landscape(NoProbeLoss(), [torch.ones(2, 3)]),
    ):
        pass


class Words(nn.Module):
    def __init__(self, sparse, functional=False):
        super().__init__()
        self.embedding = nn.Embedding(5, 3, sparse=sparse and not functional)
        self.line = nn.Linear(3, 1, bias=False)
        self.functional = functional

    def forward(self, index):
        if self.functional:
            return self.line(nn.functional.embedding(index, self.embedding.weight, sparse=True))
        return self.line(self.embedding(index))


def test_sparse_embeddings_are_measured_as_dense_ones():
    index = torch.tensor([[0, 1], [2, 2]])
    sparse, dense = Words(True), Words(False)
    dense.load_state_dict(sparse.state_dict())
    assert_same(measure(sparse, [(index,)], num_probes=4), measure(dense, [(index,)], num_probes=4))
    assert sparse.embedding.sparse


@pytest.mark.parametrize("num_batches", [1, 2])
def test_sparse_gradients_of_other_sources_are_refused(num_batches):
    index = torch.tensor([[0, 1], [2, 2]])
    with pytest.raises(ProbeError, match=r"sparse one of shape \(5, 3\).*probe_loss"):
        measure(Words(True, functional=True), [(index,)] * num_batches, num_probes=4)


def test_an_operation_without_second_derivative_is_named():
    bag = nn.EmbeddingBag(5, 3, sparse=True)
    with pytest.raises(ProbeError, match=r"no second derivative: .*EmbeddingBag"):
        measure(bag, [(torch.tensor([[0, 1], [2, 2]]),)], num_probes=4)


def test_a_module_that_fabric_has_set_up_is_measured_as_the_one_inside():
    module = nn.Linear(2, 1)
    expected = measure(module, [(INPUTS,)], num_probes=4)
    wrapped = Fabric(accelerator="cpu", devices=1).setup(module)
    assert wrapped is not module
    report = measure(wrapped, [(INPUTS,)], num_probes=4)
    assert_same(report, expected)
    assert list(report.per_tensor) == ["weight", "bias"]
    with Landscape(wrapped, [(INPUTS,)], loss=loss) as landscape:
        assert landscape.parameters.names == ["weight", "bias"]


@pytest.mark.parametrize("num_probes", [4, 16])  # of 11 parameters: estimated, and exact
def test_parameters_without_entries_add_nothing(num_probes):
    def make(has_empty):
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        if has_empty:
            net[1].empty = nn.Parameter(torch.empty(0, 4))
        return net

    plain, other = make(False), make(True)
    other.load_state_dict(plain.state_dict(), strict=False)
    batches = [(INPUTS,), (INPUTS + 1,)]
    expected = measure(plain, batches, num_probes=num_probes)
    report = measure(other, batches, num_probes=num_probes)
    assert report.per_tensor.pop("1.empty")["num_params"] == 0
    for name, row in expected.per_tensor.items():
        assert report.per_tensor[name] == pytest.approx(row, rel=1e-6)
    for name, block in expected.smoothness.items():
        assert vars(report.smoothness[name]) == pytest.approx(vars(block), rel=1e-6)


def test_settings_that_were_frozen_are_full_precision_inside_and_restored(monkeypatch):
    # What disable_global_flags() does, which cannot be undone.
    settings = torch.backends.flags_frozen.__globals__
    monkeypatch.setitem(settings, "__allow_nonbracketed_mutation_flag", False)
    with pytest.raises(RuntimeError, match="disable_global_flags"):
        torch.backends.cudnn.allow_tf32 = False
    before = torch.backends.cudnn.allow_tf32
    with full_float32_precision():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.flags_frozen()
    assert torch.backends.cudnn.allow_tf32 == before
    recurrent = nn.RNN(2, 3)
    report = measure(
        recurrent, [(INPUTS[None],)], loss=lambda m, b: m(b[0])[0].square().mean(), num_probes=4
    )
    assert report.lambda_max > 0
    assert torch.backends.flags_frozen()


def test_tensors_made_in_training_step_have_the_dtype_of_the_trainer(tmp_path):
    class Makes(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 1, bias=False)
            self.made = []

        def training_step(self, batch, batch_idx):
            made = torch.ones(3, 2)
            self.made.append(made.dtype)
            return (self.line(batch[0]).square().mean() + self.line(made).square().mean()) / 2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    # By precision: what the probe makes of the parameters. In 16-true they are widened.
    for precision, dtype in (("64-true", torch.float64), ("bf16-true", torch.float32)):
        module = Makes()
        trainer = lightning.Trainer(
            max_steps=1, precision=precision, logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(INPUTS.to(torch.float64)), batch_size=12))
        seen = []

        def note(module, batch, seen=seen):
            seen.append(torch.ones(1).dtype)
            return module.training_step(batch, 0)

        batch = (INPUTS.to(next(module.parameters()).dtype),)
        report = measure_geometry(module, [batch], loss=note, num_probes=4)
        assert set(seen) == {dtype}
        assert torch.get_default_dtype() == torch.float32
        hessian = INPUTS.to(batch[0].dtype).double()
        hessian = hessian.T @ hessian / len(INPUTS) + torch.ones(2, 2)
        assert report.one_one_norm == pytest.approx(hessian.sum().item(), rel=1e-5)


def test_the_default_dtype_stays_where_no_trainer_sets_it():
    seen = []

    def note(module, batch):
        seen.append(torch.ones(1).dtype)
        return loss(module, batch)

    measure(nn.Linear(2, 1).double(), [(INPUTS.double(),)], loss=note, num_probes=4)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 4.5}, "`num_probes` to be a whole number >= 4, got 4.5"),
        ({"num_probes": True}, "`num_probes` to be a whole number >= 4, got True"),
        ({"num_probes": "16"}, "`num_probes` to be a whole number >= 4, got '16'"),
        ({"num_probes": 3}, "`num_probes` >= 4, got 3"),
        ({"max_hvps": 1e3}, "`max_hvps` to be a whole number >= 1 or None, got 1000.0"),
        ({"seed": 0.5}, "`seed` to be a whole number, got 0.5"),
        ({"mode": True}, "`mode` to be one of 'eval', 'train', got True"),
        ({"mode": "test"}, "`mode` to be one of 'eval', 'train', got 'test'"),
        ({"loss": "mse"}, "`loss` to be a function or None, got 'mse'"),
        ({"on_hvps": 1}, "`on_hvps` to be a function or None, got 1"),
        ({"partitions": "row"}, "a list of `partitions`, got 'row'"),
        ({"module": "net"}, "`module` to be an nn.Module, got str"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(options, message):
    given = {"module": nn.Linear(2, 1), "batches": [(INPUTS,)], "loss": loss, **options}
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        measure_geometry(**given)


def test_whole_numbers_of_numpy_are_whole_numbers():
    module, batches = nn.Linear(2, 1), [(INPUTS,)]
    report = measure(module, batches, num_probes=np.int64(4), seed=np.int32(1))
    assert report.one_one_norm == measure(module, batches, num_probes=4, seed=1).one_one_norm


@pytest.mark.parametrize("memory", [True, "1", 0.0, float("nan")])
def test_memory_of_a_landscape_is_a_positive_number(memory):
    with pytest.raises(ValueError, match=r"Landscape: expected `memory_gib`"):
        Landscape(nn.Linear(2, 1), [(INPUTS,)], loss=loss, memory_gib=memory)


def test_a_probe_on_the_cpu_seeds_no_cuda_that_starts_later():
    def queued():
        return getattr(torch.cuda._lazy_seed_tracker, "manual_seed_all_cb", None)

    before = queued()
    measure(nn.Linear(2, 1), [(INPUTS,)], num_probes=4)
    assert queued() is before
