"""A recorder writes what the monitors write, and leaves a loop as it was."""

import copy
import math

import lightning
import pytest
import torch
from support import networks
from support.ranks import in_two_processes
from support.records import read
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import GeometryRecorder, measure_edge, measure_geometry
from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor
from lightning_linf.probe import Landscape
from lightning_linf.probe.wrappers import bare_forward, unwrap, unwrap_optimizer

TIMES = ("geometry/probe_seconds", "geometry/probe_overhead", "geometry/edge_seconds")


def loss_of(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 2))


def batches_of(number):
    generator = torch.Generator().manual_seed(2)
    return [(x, x[:, :2] ** 2) for x in torch.randn(number, 4, 4, generator=generator)]


def train(model, recorder=None, num_steps=8):
    """Train with dropout, and observe and measure if there is a recorder."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    batches = batches_of(num_steps)
    torch.manual_seed(3)
    for step, batch in enumerate(batches):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        if recorder is not None:
            recorder.observe(model, step=step, loss=loss, optimizer=optimizer)
        optimizer.step()
        if recorder is not None and step % 4 == 3:
            recorder.measure(model, batches[step - 1 : step + 1], step=step, loss=loss_of)
    return optimizer


class Same(lightning.LightningModule):
    """The same training under a Trainer."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        return loss_of(self.net, batch)

    def on_train_start(self):
        torch.manual_seed(3)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def under_a_trainer(folder):
    batches = batches_of(8)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    monitors = [
        GradientHeterogeneityMonitor(1, on_error="raise"),
        LinfSmoothnessMonitor(
            4, ["row", "tensor"], num_batches=2, max_overhead=None, on_error="raise"
        ),
    ]
    trainer = lightning.Trainer(
        max_steps=8,
        accelerator="cpu",
        logger=lightning.pytorch.loggers.CSVLogger(folder, name="a", version="b"),
        callbacks=monitors,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Same(), DataLoader(TensorDataset(x, y), batch_size=4))
    return read(folder / "a" / "b" / "geometry.jsonl")[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_records_of_a_loop_are_those_of_the_monitors_beside_a_trainer(tmp_path):
    expected = under_a_trainer(tmp_path / "trainer")
    with GeometryRecorder(tmp_path / "loop", on_error="raise") as recorder:
        train(network(), recorder)
    records, notes = read(tmp_path / "loop" / "geometry.jsonl")
    assert notes == []
    assert [(one.step, one.tag) for one in records] == [(one.step, one.tag) for one in expected]
    for ours, theirs in zip(records, expected, strict=True):
        assert [f"net.{name}" for name in ours.tensors] == theirs.tensors
        assert ours.histogram == theirs.histogram
        assert ours.columns == theirs.columns
        assert ours.whole == theirs.whole
        # A monitor also measures the secant along training's last step, which it has seen.
        kept = {tag: value for tag, value in ours.scalars.items() if tag not in TIMES}
        wanted = {tag: theirs.scalars[tag] for tag in kept}
        torch.testing.assert_close(kept, wanted, equal_nan=True)
        rest = theirs.scalars.keys() - ours.scalars.keys()
        assert all(tag.startswith("geometry/secant/") for tag in rest)
    ours, theirs = ({**one[-1].report["settings"]} for one in (records, expected))
    assert [ours.pop("model"), theirs.pop("model")] == ["Sequential", "Same"]
    assert len(ours.pop("date")) == len(theirs.pop("date")) == len("2026-01-31 23:59+00:00")
    assert ours == theirs  # the optimizer and the stage among them
    assert recorder.last_report.settings["stage"] == "start"


def test_training_with_a_recorder_is_bit_identical(tmp_path):
    plain, recorded = network(), network()
    plain_optimizer = train(plain)
    random = torch.get_rng_state()
    with GeometryRecorder(tmp_path, on_error="raise") as recorder:
        recorded_optimizer = train(recorded, recorder)
    assert len(read(tmp_path / "geometry.jsonl")[0]) == 10
    assert torch.equal(torch.get_rng_state(), random)
    for p, q in zip(plain.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p.grad, q.grad)
        for name, value in plain_optimizer.state[p].items():
            assert torch.equal(value, recorded_optimizer.state[q][name])
    assert recorded.training
    assert "forward" not in vars(recorded)


def test_tensorboard_reads_back_scalars_tables_and_reports(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with GeometryRecorder(tmp_path, on_error="raise") as recorder:
        train(network(), recorder)
    events = EventAccumulator(str(tmp_path)).Reload()
    records, _ = read(tmp_path / "geometry.jsonl")
    for tag in ("geometry/density", "geometry/one_one_norm_per_param"):
        read_back = {one.step: one.value for one in events.Scalars(tag)}
        written = {one.step: one.scalars[tag] for one in records if tag in one.scalars}
        torch.testing.assert_close(read_back, written, rtol=1e-6, atol=0.0)
    tags = [tag.partition("@")[0] for tag in events.Tags()["tensors"]]
    assert tags.count("geometry/smoothness_per_tensor") == 2  # the table and the report
    assert "geometry/heterogeneity_per_tensor" in tags
    assert "geometry/log10_grad" in events.Tags()["histograms"]


def test_edge_that_was_measured_by_the_user_is_recorded(tmp_path):
    model = network()
    optimizer = train(model)
    report = measure_edge(model, batches_of(2), optimizer, loss=loss_of)
    with GeometryRecorder(tmp_path, on_error="raise") as recorder:
        recorder.record(report, step=7)
    ((record,), _) = read(tmp_path / "geometry.jsonl")
    assert record.scalars["geometry/edge"] == report.edge
    assert record.scalars["geometry/largest_stable_lr"] == report.largest_stable_lr
    assert record.columns == {}  # no last step was given
    recorder.record(measure_geometry(model, batches_of(2), loss=loss_of), step=8)
    assert "stage" not in recorder.last_report.settings  # nothing was observed
    assert len(read(tmp_path / "geometry.jsonl")[0]) == 2
    recorder.close()


def test_records_of_an_earlier_training_are_moved_from_the_first_step_on(tmp_path):
    model = network()
    loss_of(model, batches_of(1)[0]).backward()
    for _ in range(2):
        with GeometryRecorder(tmp_path, on_error="raise") as recorder:
            for step in range(8):
                recorder.observe(model, step=step)
    first, second = tmp_path / "geometry.1.jsonl", tmp_path / "geometry.jsonl"
    assert [one.step for one in read(first)[0]] == [one.step for one in read(second)[0]]
    with GeometryRecorder(tmp_path, on_error="raise") as recorder:  # resumes at step 4
        recorder.observe(model, step=4)
    assert [one.step for one in read(second)[0]] == [0, 1, 2, 3, 4]
    assert read(tmp_path / "geometry.2.jsonl")[0][0].step == 4


def test_an_error_is_warned_of_once_and_training_goes_on(tmp_path):
    recorder = GeometryRecorder(tmp_path)
    model = network()
    with pytest.warns(UserWarning, match="could not observe at step 0 .* but all are None"):
        recorder.observe(model, step=0)
    recorder.observe(model, step=1)  # a second warning would be an error here
    with pytest.warns(UserWarning, match="could not measure at step 1"):
        assert recorder.measure(model, batches_of(1), step=1) is None  # without a loss
    assert not (tmp_path / "geometry.jsonl").exists()
    with pytest.raises(ValueError, match="but all are None"):
        GeometryRecorder(tmp_path, on_error="raise").observe(model, step=0)


def test_gradients_that_are_not_finite_are_said_once(tmp_path):
    model = network()
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    with GeometryRecorder(tmp_path) as recorder:
        with pytest.warns(UserWarning, match="entries of the gradient are inf or NaN"):
            recorder.observe(model, step=0)
        recorder.observe(model, step=1)  # a second warning would be an error here


def test_only_what_the_optimizer_steps_is_observed(tmp_path):
    model = network()
    loss_of(model, batches_of(1)[0]).backward()
    with GeometryRecorder(tmp_path, on_error="raise") as recorder:
        recorder.observe(model, step=0, optimizer=torch.optim.SGD(model[4].parameters(), lr=0.1))
    assert read(tmp_path / "geometry.jsonl")[0][0].tensors == ["4.weight", "4.bias"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: GeometryRecorder(folder, on_error="no"), "`on_error` to be one of"),
        (lambda folder: GeometryRecorder(folder).observe(network(), step=-1), "`step` >= 0"),
        (
            lambda folder: GeometryRecorder(folder, on_error="raise").observe(3, step=0),
            "`module` to be an nn.Module, got int",
        ),
        (
            lambda folder: GeometryRecorder(folder, on_error="raise").observe(
                network(), step=0, optimizer=torch.optim.SGD(network().parameters(), lr=0.1)
            ),
            "trainable parameters in Sequential, got none",
        ),
        (
            lambda folder: GeometryRecorder(folder, on_error="raise").measure(
                nn.Tanh(), batches_of(1), step=0, loss=loss_of
            ),
            "trainable parameters in Tanh, got none",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message, tmp_path):
    with pytest.raises(ValueError, match=f"GeometryRecorder: expected {message}"):
        call(tmp_path)


@pytest.fixture
def accelerate():
    """Give the package without the settings that another test may have left in this process."""
    package = pytest.importorskip("accelerate")
    package.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield package
    package.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_autocast_of_accelerate_is_off_in_a_probe_and_on_again_after_it(accelerate):
    bare = network()
    wrapped = copy.deepcopy(bare)
    optimizer = torch.optim.AdamW(wrapped.parameters())
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    wrapped, prepared = accelerator.prepare(wrapped, optimizer)
    assert unwrap_optimizer("f", prepared) is optimizer
    (x, _), forward = batches_of(1)[0], vars(wrapped)["forward"]
    in_bf16 = wrapped.eval()(x)
    assert not torch.equal(in_bf16, bare.eval()(x))
    ours = measure_geometry(wrapped, batches_of(2), loss=loss_of)
    theirs = measure_geometry(bare, batches_of(2), loss=loss_of)
    assert ours.one_one_norm == theirs.one_one_norm
    assert ours.lambda_max == theirs.lambda_max
    assert vars(wrapped)["forward"] is forward
    assert torch.equal(wrapped(x), in_bf16)


def test_forward_is_put_back_after_an_error():
    module = nn.Linear(2, 2)
    original, wrapped = module.forward, lambda x: x
    module._original_forward, module.forward = original, wrapped
    found = []

    def fail():
        with bare_forward(module):
            found.append(vars(module)["forward"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert found == [original]
    assert module.forward is wrapped


def test_what_fabric_has_set_up_is_measured_as_what_is_inside(tmp_path):
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    bare = network()
    wrapped, optimizer = fabric.setup(
        copy.deepcopy(bare), torch.optim.SGD(bare.parameters(), lr=0.1)
    )
    inner = optimizer.optimizer
    assert unwrap_optimizer("f", optimizer) is inner
    assert isinstance(unwrap("test", wrapped), nn.Sequential)
    wrapped, optimizer = fabric.setup(bare, torch.optim.SGD(bare.parameters(), lr=0.1))
    report = measure_edge(wrapped, batches_of(2), optimizer, loss=loss_of)
    expected = measure_edge(bare, batches_of(2), optimizer.optimizer, loss=loss_of)
    assert report.edge == expected.edge
    loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.randn(8, 2)), batch_size=4)
    loader = fabric.setup_dataloaders(loader)
    report = measure_geometry(wrapped, loader, loss=loss_of, output_dims={"0.weight": 0})
    assert report.settings["num_batches"] == 2


@pytest.mark.slow
def test_two_processes_record_the_numbers_of_one_with_all_batches(tmp_path):
    module, (x, y), loss = networks.mlp()
    parts = [(x[:4], y[:4]), (x[4:8], y[4:8])]

    def record(rank):
        parallel = DistributedDataParallel(copy.deepcopy(module))
        loss(parallel, parts[rank]).backward()
        with GeometryRecorder(tmp_path / "two", on_error="raise") as recorder:
            recorder.observe(parallel, step=0)
            report = recorder.measure(
                parallel, [parts[rank]], step=0, loss=loss, partitions=["tensor"]
            )
        return report.to_dict()

    results = in_two_processes(record, tmp_path)
    for result in results:
        assert not isinstance(result, Exception), result
    alone = copy.deepcopy(module)
    (sum(loss(alone, part) for part in parts) / 2).backward()
    with GeometryRecorder(tmp_path / "one", on_error="raise") as recorder:
        recorder.observe(alone, step=0)
        recorder.measure(alone, parts, step=0, loss=loss, partitions=["tensor"])
    two, one = (read(tmp_path / name / "geometry.jsonl")[0] for name in ("two", "one"))
    assert [each.tensors for each in two] == [each.tensors for each in one]  # written once
    for ours, theirs in zip(two, one, strict=True):
        kept = [tag for tag in theirs.scalars if tag not in TIMES and "error" not in tag]
        for tag in kept:
            assert ours.scalars[tag] == pytest.approx(theirs.scalars[tag], rel=1e-4, nan_ok=True), (
                tag
            )


def test_landscape_takes_what_ddp_has_wrapped_as_what_is_inside():
    inner = network()
    wrapped = nn.DataParallel(inner)
    with Landscape(wrapped, batches_of(1), loss=loss_of) as landscape:
        assert landscape.parameters.names[0] == "0.weight"
