"""The geometry of Muon in a report, against dense Hessians and singular values."""

import json
from dataclasses import replace

import lightning
import pytest
import torch
from support.landscapes import Dense, Quadratic, indefinite, measure, normal, random_net
from support.reports import full_report, make_report, words
from torch import nn
from torch.utils.data import DataLoader

from lightning_linf import Partition, measure_geometry, quantities
from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.partition import hidden_matrices
from lightning_linf.report import GeometryReport, SpectralSmoothness
from lightning_linf.report.scalars import scalars_of
from lightning_linf.report.text import describe

EXACT = {"rtol": 1e-8, "atol": 1e-10}


def by_svd(module, vectors):
    """Dual norms (k,) and maximisers (k, d) of vectors (k, d), from singular values."""
    matrices = hidden_matrices(module)
    named = dict(module.named_parameters())
    totals, parts = torch.zeros(len(vectors), dtype=vectors.dtype), []
    pieces = vectors.split([p.numel() for p in named.values()], dim=1)
    for (name, p), piece in zip(named.items(), pieces, strict=True):
        if name in matrices:
            u, sigma, vh = torch.linalg.svd(piece.view(-1, *p.shape), full_matrices=False)
            root = max(p.shape) ** 0.5
            totals = totals + root * sigma.sum(dim=1)
            parts.append(root * (u @ vh).flatten(1))
        else:
            totals = totals + piece.abs().sum(dim=1)
            parts.append(piece.sign())
    return totals, torch.cat(parts, dim=1)


def largest_by_restarts(module, hessian, num_restarts=50, num_steps=60):
    vectors = normal(num_restarts, len(hessian))
    for _ in range(num_steps):
        totals, vectors = by_svd(module, by_svd(module, vectors)[1] @ hessian)
    return float(totals.max())


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_those_of_the_dense_hessian(seed):
    module, batch, loss, gradient, hessian = random_net(seed)
    report = measure_geometry(module, [batch], loss=loss, partitions=["tensor", "spectral"])
    (dual,), (direction,) = by_svd(module, gradient[None])
    torch.testing.assert_close(report.dual_norm["spectral"], float(dual), **EXACT)
    curvature = float(direction @ hessian @ direction)
    torch.testing.assert_close(report.curvature["spectral"], curvature, **EXACT)
    sgd = report.curvature["global"] / report.dual_norm["global"] ** 2
    if curvature > 0 and sgd > 0:
        expected = float(dual) ** 2 / curvature * sgd
        torch.testing.assert_close(report.step_advantage["spectral"], expected)
    exact = largest_by_restarts(module, hessian)
    spectral = report.spectral
    assert spectral.num_matrices == 2
    assert 0.9 * exact <= spectral.lower <= exact * 1.001  # what the restarts may miss
    assert max(exact, spectral.lower) <= spectral.operator_upper * (1 + 1e-9)
    assert spectral.operator_upper == report.smoothness["tensor"].operator_upper
    assert 1 <= spectral.num_hvps <= 8


def test_the_rest_of_the_report_is_as_without_it():
    module, batch, loss, *_ = random_net(0)
    plain, with_spectral = (
        measure_geometry(module, [batch], loss=loss, partitions=names)
        for names in (["row"], ["spectral", "row"])
    )
    added = with_spectral.spectral.num_hvps + 1
    assert with_spectral.num_hvps == plain.num_hvps + added
    assert with_spectral.spectral.operator_upper == plain.smoothness["global"].operator_upper
    without = replace(
        with_spectral,
        spectral=None,
        **{
            name: {k: v for k, v in getattr(with_spectral, name).items() if k != "spectral"}
            for name in ("dual_norm", "curvature")
        },
        num_hvps=plain.num_hvps,
        seconds=plain.seconds,
    )
    assert without == plain
    assert plain.spectral is None


def test_in_other_coordinates_it_is_that_of_the_dense_transform():
    module, batch, loss, gradient, hessian = random_net(4)
    matrix = normal(len(hessian), len(hessian)) / len(hessian) ** 0.5
    report = measure_geometry(
        module, [batch], loss=loss, partitions=["spectral"], reparameterization=Dense(matrix)
    )
    (dual,), (direction,) = by_svd(module, (matrix.T @ gradient)[None])
    torch.testing.assert_close(report.dual_norm["spectral"], float(dual), **EXACT)
    curvature = float(direction @ matrix.T @ hessian @ matrix @ direction)
    torch.testing.assert_close(report.curvature["spectral"], curvature, **EXACT)


def test_a_budget_is_kept_and_one_that_is_too_small_names_it():
    module, batch, loss, *_ = random_net(0)
    options = {"loss": loss, "partitions": ["tensor", "spectral"], "num_probes": 4}
    with pytest.raises(ValueError, match=r"`max_hvps` >= \d+ .*, and 9 for spectral\)") as error:
        measure_geometry(module, [batch], max_hvps=20, **options)
    least = int(str(error.value).split("`max_hvps` >= ")[1].split()[0])
    report = measure_geometry(module, [batch], max_hvps=least, **options)
    assert report.num_hvps <= least
    assert report.spectral.lower > 0


def test_a_zero_hessian_and_a_zero_gradient_have_zeros():
    report = measure(Quadratic(torch.zeros(42, 42, dtype=torch.float64)), partitions=["spectral"])
    assert (report.spectral.lower, report.spectral.operator_upper) == (0.0, 0.0)
    assert report.dual_norm["spectral"] == report.curvature["spectral"] == 0.0
    assert "spectral" in str(report)


def test_what_cannot_be_measured_is_refused():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"trainable hidden matrix for .spectral., got none in Li"):
        measure_geometry(
            nn.Linear(3, 2), [x], loss=lambda m, x: m(x).sum(), partitions=["spectral"]
        )
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    named = Partition.by_regex(module, r"^\d", name="spectral")
    with pytest.raises(ValueError, match='no partition to be called "spectral"'):
        measure_geometry(module, [x], loss=lambda m, x: m(x).sum(), partitions=[named])


SPECTRAL = SpectralSmoothness(2, 4.0, 8.0, 0.02, 8)


def with_spectral(report):
    return replace(
        report,
        spectral=SPECTRAL,
        dual_norm={**report.dual_norm, "spectral": 3.0},
        curvature={**report.curvature, "spectral": 4.0},
    )


def test_a_report_is_read_back_and_old_ones_without_it_are_read(tmp_path):
    report = with_spectral(make_report())
    report.save(tmp_path / "report.json")
    assert repr(GeometryReport.load(tmp_path / "report.json")) == repr(report)  # with its NaN
    old = json.loads(make_report().to_json())
    del old["spectral"]
    assert repr(GeometryReport.from_dict(old)) == repr(make_report())
    assert report.step_advantage["spectral"] == (3 / 4) ** 2 * 2.0 / 4.0
    for broken in ({"spectral": None}, {"curvature": report.curvature | {"row": 1.0}}):
        with pytest.raises(ValueError, match=r"expected `\w+` to have the partitions of"):
            replace(report, **broken)


def test_it_has_a_row_and_a_line_in_the_text_and_scalars_of_its_own():
    before = replace(full_report(), noise=None)
    report = with_spectral(before)
    text, plain = describe(report), describe(before)
    assert text.rows[:-1] == plain.rows
    row = dict(zip(text.headings, text.rows[-1], strict=True))
    d = report.num_params
    assert row["partition"] == "spectral"
    assert row["N(Phi)/d"] == f"{4.0 / d:.3g} to {8.0 / d:.3g}"
    assert row["HVPs"] == "8"
    assert row["along g"] == f"{report.step_advantage['spectral']:.3g}"
    others = row.keys() - {"partition", "N(Phi)/d", "HVPs", "along g"}
    assert {row[heading] for heading in others} == {"-"}
    (line,) = set(text.legend) - set(plain.legend)
    assert line.startswith("spectral: Muon's geometry, the spectral norm of 2 hidden matrices and")
    assert line in words(str(report))
    added = scalars_of(report).items() - scalars_of(before).items()
    assert dict(added) == {
        quantities.OPERATOR_NORM_LOWER.of("spectral"): 4.0 / d,
        quantities.OPERATOR_NORM_UPPER.of("spectral"): 8.0 / d,
        quantities.STEP_ADVANTAGE.of("spectral"): report.step_advantage["spectral"],
    }


class Regression(lightning.LightningModule):
    def __init__(self, *widths):
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(*pair) for pair in zip(widths, widths[1:])))  # noqa: B905, RUF007

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module, monitor, tmp_path):
    trainer = lightning.Trainer(
        max_steps=2,
        logger=False,
        accelerator="cpu",
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(torch.randn(8, 5), batch_size=4))


quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


@quiet
def test_a_monitor_logs_what_measure_geometry_gives(tmp_path):
    monitor = LinfSmoothnessMonitor(
        every_n_steps=1, partitions=["spectral", "tensor"], max_overhead=None, on_error="raise"
    )
    fit(Regression(5, 4, 2), monitor, tmp_path)
    report = monitor.last_report
    assert len(monitor.history) == 2
    assert monitor.history[-1]["step_advantage/spectral"] == report.step_advantage["spectral"]
    assert report.spectral.num_matrices == 1
    assert list(report.smoothness) == ["tensor", "coordinate", "global"]


@quiet
def test_a_monitor_of_a_module_without_matrices_warns_or_raises(tmp_path):
    options = {"every_n_steps": 1, "partitions": ["spectral"]}
    with pytest.warns(UserWarning, match="measures without 'spectral'. .* hidden matrix for"):
        fit(Regression(5, 2), monitor := LinfSmoothnessMonitor(**options), tmp_path)
    assert monitor.last_report.spectral is None
    with pytest.raises(ValueError, match="hidden matrix"):
        fit(Regression(5, 2), LinfSmoothnessMonitor(on_error="raise", **options), tmp_path)


def test_an_indefinite_quadratic_is_bracketed():
    hessian = indefinite()
    module = Quadratic(hessian, normal(42))
    report = measure(module, partitions=["spectral"])
    exact = largest_by_restarts(module, hessian)
    assert report.spectral.lower <= exact * 1.001
    assert exact <= report.spectral.operator_upper
    assert report.spectral.lower >= 0.8 * exact
