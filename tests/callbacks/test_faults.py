"""What goes wrong in a long run, injected, and what is kept.

| fault | what is kept |
|---|---|
| the loss is NaN or inf in a probe | the training; a warning; the other measurements |
| gradients are inf or NaN | counted in `num_nonfinite`; the other measurements |
| the gradient scaler skips a step | the next step is measured in its place |
| a probe runs out of memory | the measurement, with the batch in parts |
| it does so whatever the parts, or they are not the whole | the training; a warning |
| a probe raises | the training; a warning; with `on_error="raise"` the module, as it was |
| a logger raises | the training; `history`; the other loggers |
| KeyboardInterrupt in a probe | weights and optimizer of the last step, and its checkpoint |
| SIGTERM in a probe | the same, and the probe ends at once |
| SIGKILL in a probe | a run resumed from the last checkpoint is the uninterrupted one |
| one of several ranks fails in a probe | the training on all; a warning |
| one has no room for what it would gather | the same, before anything is sent |
| one does not come to a collective in time | an error on the others: which rank, in what phase |
| one is killed, in a probe or in training | the same at once; records, and the last checkpoint |
| torchrun starts the processes again | the uninterrupted run; each record once, with the restart |
| a run goes on with another number of ranks | optimizer, rotation and histories |

The last five: tests/distributed, test_lost_ranks.py, test_elastic.py and test_other_ranks.py.
"""

import os
import signal
import subprocess
import sys
import textwrap
import warnings

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from support.bit_identity import IGNORED_WARNINGS, assert_same
from support.faulty_training import Regression, at_probes, fit, weights
from support.ranks import Heard, environment, in_two_processes

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor

pytestmark = pytest.mark.filterwarnings(
    *IGNORED_WARNINGS,
    "ignore:.*dataloader is not resumable:UserWarning",  # it is
)


def steps(monitor):
    return [entry["step"] for entry in monitor.history]


@pytest.fixture
def plain_weights(tmp_path):
    module = Regression()
    fit(module, [], tmp_path)
    return weights(module)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(tmp_path, plain_weights, factor):
    module = Regression(at_probes([1, 2], lambda loss, batch: loss * factor))
    monitor = LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None)
    with pytest.warns(
        UserWarning, match="could not measure at step 3 .*expected a finite loss|2 f"
    ):
        fit(module, [monitor], tmp_path)
    assert steps(monitor) == [1, 7]
    assert torch.equal(weights(module), plain_weights)


def test_gradients_that_are_not_finite(tmp_path):
    class Poisoned(Regression):
        def on_after_backward(self):
            if self.global_step == 3:
                self.net[0].weight.grad[0, :2] = torch.tensor([float("inf"), float("nan")])

        def on_before_optimizer_step(self, optimizer):  # a guard of the user's own
            self.net[0].weight.grad.nan_to_num_(0.0, 0.0, 0.0)

    monitor = GradientHeterogeneityMonitor(1, on_error="raise")
    with pytest.warns(UserWarning, match=r"2 entries .* at step 3, first in net\.0\.weight"):
        fit(Poisoned(), [monitor], tmp_path)
    assert [entry["num_nonfinite"] for entry in monitor.history] == [0, 0, 0, 2, 0, 0, 0, 0]
    densities = [entry["density"] for entry in monitor.history]
    assert all(0 < density <= 1 for density in densities)  # of the finite entries


def test_a_step_that_the_scaler_skips(tmp_path):
    monitors = [
        GradientHeterogeneityMonitor(4, on_error="raise"),
        LinfSmoothnessMonitor(4, num_probes=4, on_error="raise", max_overhead=None),
    ]
    overflows = []

    class Observed(Regression):
        def training_step(self, batch, batch_idx):
            # the fourth step, which is due, overflows; the fifth does not
            scale = 1e9 if self.global_step == 3 else 1.0
            return super().training_step(batch, batch_idx) * scale

        def on_before_optimizer_step(self, optimizer):
            gradients = [p.grad for p in self.parameters()]
            overflows.append(any(not bool(g.isfinite().all()) for g in gradients))

    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    module = Observed()
    fit(module, monitors, tmp_path, plugins=plugins)
    assert overflows == [False, False, False, True] + [False] * 4
    for monitor in monitors:
        assert steps(monitor) == [4, 7]
    assert all(entry["num_nonfinite"] == 0 for entry in monitors[0].history)
    without = Observed()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000)
    fit(without, [], tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert torch.equal(weights(module), weights(without))


class Starved(Regression):
    """A second-order graph of more than ``most`` samples does not fit."""

    def __init__(self, most):
        super().__init__()
        self.most = most
        self.net[3].register_full_backward_pre_hook(self._need_memory)

    def _need_memory(self, module, gradients):
        is_probe = gradients[0].requires_grad  # create_graph=True
        if is_probe and len(gradients[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def test_a_probe_that_runs_out_of_memory_takes_its_batch_in_parts(tmp_path, plain_weights):
    module, monitor = Starved(most=3), LinfSmoothnessMonitor(4, num_probes=4, max_overhead=None)
    with pytest.warns(UserWarning, match="ran out of memory, so from now on .* in 4 parts"):
        fit(module, [monitor], tmp_path)
    assert torch.equal(weights(module), plain_weights)
    whole = LinfSmoothnessMonitor(4, num_probes=4, max_overhead=None)
    fit(Regression(), [whole], tmp_path)
    assert steps(monitor) == steps(whole) == [3, 7]
    for ours, expected in zip(monitor.history, whole.history, strict=True):
        for name in ("one_one_norm_per_param", "lambda_max", "probe_loss", "secant/global"):
            assert ours[name] == pytest.approx(expected[name], rel=1e-3), name


@pytest.mark.slow
def test_a_probe_that_never_fits_is_left_out(tmp_path, plain_weights):
    module, monitor = Starved(most=0), LinfSmoothnessMonitor(4, num_probes=4, max_overhead=None)
    with pytest.warns(UserWarning, match="ProbeMemoryError: probe: out of memory on this rank|2 f"):
        fit(module, [monitor], tmp_path)
    assert monitor.history == []
    assert torch.equal(weights(module), plain_weights)


def test_a_loss_that_is_no_mean_over_samples_is_not_taken_in_parts(tmp_path, plain_weights):
    class Contrast(Starved):
        def probe_loss(self, batch):
            return super().probe_loss(batch) + self.net(batch[0]).std()

    module, monitor = Contrast(most=4), LinfSmoothnessMonitor(4, num_probes=4, max_overhead=None)
    with pytest.warns(
        UserWarning, match="expected a loss that is the mean over samples|2 failures"
    ):
        fit(module, [monitor], tmp_path)
    assert monitor.history == []
    assert torch.equal(weights(module), plain_weights)
    module.most = 8  # there is memory again
    with pytest.warns(UserWarning, match="2 failures in all, and 2 measurements"):
        fit(module, [monitor], tmp_path)
    assert steps(monitor) == [3, 7]


def test_an_error_raised_on_demand_leaves_the_module_as_it_was(tmp_path):
    def fail(loss, batch):
        raise KeyError("labels")

    module = Regression(at_probes([0], fail))
    monitor = LinfSmoothnessMonitor(2, num_probes=4, on_error="raise")
    with pytest.raises(KeyError, match="labels"):
        fit(module, [monitor], tmp_path)
    plain = Regression()
    fit(plain, [], tmp_path, max_steps=2)
    assert torch.equal(weights(module), weights(plain))
    assert module.training


class Full(CSVLogger):
    """A logger whose disk is full."""

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("geometry/") for name in metrics):
            raise OSError("No space left on device")
        super().log_metrics(metrics, step)


def test_a_logger_that_raises(tmp_path, plain_weights):
    loggers = [Full(tmp_path, "full"), CSVLogger(tmp_path, "spare")]
    module, monitor = Regression(), GradientHeterogeneityMonitor(2)
    with pytest.warns(UserWarning, match="could not log to Full at step 1 .*No space left|4 failu"):
        fit(module, [monitor], tmp_path, logger=loggers)
    assert steps(monitor) == [1, 3, 5, 7]
    assert "geometry/density" in (tmp_path / "spare/version_0/metrics.csv").read_text()
    assert "train_loss" in (tmp_path / "full/version_0/metrics.csv").read_text()
    assert torch.equal(weights(module), plain_weights)


def stopped_plain(tmp_path, num_steps):
    module = Regression()
    trainer = fit(module, [], tmp_path, max_steps=num_steps)
    return weights(module), trainer.optimizers[0].state_dict()["state"]


def test_keyboard_interrupt_in_a_probe(tmp_path):
    def interrupt(loss, batch):
        raise KeyboardInterrupt

    module = Regression(at_probes([1], interrupt))
    monitor = LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None)
    caught = []

    class Saves(lightning.Callback):
        def on_exception(self, trainer, module, exception):
            caught.append(type(exception))
            trainer.save_checkpoint(tmp_path / "interrupted.ckpt")

    with pytest.raises(SystemExit):
        fit(module, [monitor, Saves()], tmp_path)
    expected, state = stopped_plain(tmp_path, 4)
    assert caught == [KeyboardInterrupt]
    assert torch.equal(weights(module), expected)
    saved = torch.load(tmp_path / "interrupted.ckpt", weights_only=True)
    assert_same(saved["optimizer_states"][0]["state"], state)
    resumed, plain = Regression(), Regression()
    fit(resumed, [monitor], tmp_path, ckpt_path=tmp_path / "interrupted.ckpt")
    fit(plain, [], tmp_path)
    assert torch.equal(weights(resumed), weights(plain))
    assert steps(monitor) == [1, 5, 7]


def test_sigterm_in_a_probe_ends_it_at_once(tmp_path):
    evaluations = []

    def terminate(loss, batch):
        evaluations.append(None)
        if len(evaluations) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    module = Regression(at_probes([1], terminate))
    monitor = LinfSmoothnessMonitor(2, num_probes=32, max_overhead=None)
    with (
        pytest.warns(UserWarning, match="given up, because SIGTERM asks the training to end"),
        pytest.raises(SIGTERMException),
    ):
        fit(module, [monitor], tmp_path)
    assert steps(monitor) == [1]
    assert torch.equal(weights(module), stopped_plain(tmp_path, 4)[0])


KILLED = """
    import sys, warnings
    import lightning, os, signal, torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from support import faulty_training as faults
    from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor

    folder, fatal, ckpt_path = sys.argv[1], int(sys.argv[2]), sys.argv[3] or None
    warnings.simplefilter("ignore")

    def kill(loss, batch):
        os.kill(os.getpid(), signal.SIGKILL)

    module = faults.Regression(faults.at_probes([fatal], kill))
    every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    smoothness = LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None)
    monitors = [GradientHeterogeneityMonitor(1), smoothness]
    faults.fit(
        module, [*monitors, every], folder, ckpt_path=ckpt_path, max_steps=8,
        enable_checkpointing=True, logger=CSVLogger(folder, flush_logs_every_n_steps=1),
    )
    names = "one_one_norm_per_param", "lambda_max", "secant/global"
    torch.save({
        "weights": faults.weights(module),
        "smoothness": [[e["step"], *(e[n] for n in names)] for e in monitors[1].history],
        "density": [[e["step"], e["density"]] for e in monitors[0].history],
    }, folder + "/result.pt")
"""


def run_apart(folder, fatal, ckpt_path=""):
    folder.mkdir(exist_ok=True)
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(fatal), str(ckpt_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return finished.returncode, finished.stderr


@pytest.mark.slow
def test_sigkill_in_a_probe(tmp_path):
    code, _ = run_apart(tmp_path / "killed", fatal=2)  # in the probe after step 6
    assert code == -signal.SIGKILL
    (last,) = (tmp_path / "killed").glob("*.ckpt")  # that of step 6 would have come after
    assert last.name == "step=3.ckpt"
    for name, path in (("resumed", last), ("whole", "")):
        code, message = run_apart(tmp_path / name, fatal=-1, ckpt_path=path)
        assert code == 0, message
    resumed, whole = (torch.load(tmp_path / name / "result.pt") for name in ("resumed", "whole"))
    assert_same(resumed, whole)
    assert [row[0] for row in whole["smoothness"]] == [1, 3, 5, 7]


@pytest.mark.slow
def test_one_of_two_ranks_fails_or_runs_out_of_memory_in_a_probe(tmp_path, monkeypatch):
    def fail(loss, batch):
        if dist.get_rank() == 1:
            raise RuntimeError("on one rank")
        return loss

    def train(module, callbacks):
        strategy = DDPStrategy(process_group_backend="gloo")
        with warnings.catch_warnings(record=True) as caught, Heard() as heard:
            warnings.simplefilter("always")
            fit(module, callbacks, tmp_path, strategy=strategy, devices=2)
        return [*heard, *(str(warning.message) for warning in caught)]

    def on_rank(rank):
        for name, value in environment(rank).items():
            monkeypatch.setenv(name, value)
        monitors = [LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None) for _ in range(3)]
        failing, starved, plain = (
            Regression(at_probes([1], fail)),
            Starved(most=2 if rank else 8),
            Regression(),
        )
        messages = train(failing, monitors[:1]), train(starved, monitors[1:2])
        train(plain, monitors[2:])
        same = [torch.equal(weights(m), weights(plain)) for m in (failing, starved)]
        norms = [[e["one_one_norm_per_param"] for e in m.history] for m in monitors]
        return [steps(monitor) for monitor in monitors], same, norms, messages

    first, second = in_two_processes(on_rank, tmp_path)
    for measured, same, norms, _ in (first, second):
        assert measured == [[1, 5, 7], [1, 3, 5, 7], [1, 3, 5, 7]]
        assert same == [True, True]
        # With 4 probes the fitted coefficient makes 0.3 % of the rounding of sums in parts.
        assert norms[1] == pytest.approx(norms[2], rel=1e-2)
    assert any("another rank failed" in message for message in first[3][0])
    assert any("failed on rank 1. RuntimeError: on one rank" in said for said in second[3][0])
    assert any("in 2 parts" in message for message in first[3][1])
