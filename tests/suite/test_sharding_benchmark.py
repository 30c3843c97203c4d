"""What docs/scaling.md rests on: traffic as counted by hand, and a fit of what is known."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.ranks import in_two_processes

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not in the wheel"
)


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    for folder in ("benchmarks", "docs/scripts"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    known = set(sys.modules)
    yield
    names = {"sharding", "sharding_model", "sharding_ranks", "gloo_ranks", "traffic"}
    names |= {"write_scaling", "sharding_graph", "stopwatch"}
    for name in names & (set(sys.modules) - known):
        del sys.modules[name]


def test_every_kind_of_collective_is_counted_once(tmp_path):
    traffic = importlib.import_module("traffic")

    def on_rank(rank):
        from torch.distributed.fsdp import fully_shard

        small, large = torch.ones(10), torch.ones(20)
        module = fully_shard(torch.nn.Linear(6, 4, bias=False))
        whole = module.weight

        def all_kinds():
            dist.all_reduce(small)
            dist.all_gather([torch.ones(10), torch.ones(10)], small)
            dist.all_to_all_single(torch.ones(20), large)
            dist.reduce_scatter(small, [torch.ones(10), torch.ones(10)])
            dist.barrier()
            whole.full_tensor()  # through functional collectives

        counted = traffic.of(all_kinds)

        def step():
            module(torch.ones(3, 6)).sum().backward()

        return dict(counted.sent), dict(counted.calls), dict(traffic.of(step).sent)

    for result in in_two_processes(on_rank, tmp_path):
        assert isinstance(result, tuple), result
        sent, calls, of_step = result
        assert calls == {"allreduce": 1, "allgather": 2, "alltoall": 1, "reduce_scatter": 1}
        # In bytes, half of each message of float32, and all of the all-reduce.
        assert sent == {
            "allreduce": 40, "allgather": 40 + 48, "alltoall": 40, "reduce_scatter": 40,
        }  # fmt: skip
        assert of_step["allgather"] >= 48
        assert of_step["reduce_scatter"] == 48


def test_the_fit_finds_the_factors_and_leaves_out_what_is_not_there():
    model = importlib.import_module("sharding_model")
    ranks = importlib.import_module("sharding_ranks")

    def found(case, whole, sharded, gathered, graph):
        d = 4 * case.num_params
        resident = whole * d + sharded * d / case.num_ranks + 4 * gathered * case.largest
        resident += graph * case.rows * case.width * case.num_layers
        share = d * (case.num_ranks - 1) / case.num_ranks
        return ranks.Found(round(resident), round(2 * share), round(share), 0, 0, 1.0)

    sizes = [(1, 8, 16), (2, 8, 16), (4, 8, 16), (4, 2, 16), (4, 8, 256)]
    cases = [ranks.Case(w, n, round((2e6 / n) ** 0.5), rows, 4, None) for w, n, rows in sizes]
    for factors in ((13.0, 0.0, 0.0, 40.0), (1.0, 9.0, 3.0, 40.0)):
        fitted = model.fit(cases, [found(case, *factors) for case in cases])
        assert fitted[:4] == pytest.approx(factors, rel=1e-3, abs=1e-3)
        assert fitted.residual < 1e-6
        assert fitted.sent == pytest.approx(2)
        assert fitted.entering == pytest.approx(1)


def test_what_is_extrapolated_by_hand():
    model = importlib.import_module("sharding_model")
    seven = model.MODELS[0]
    assert seven.num_params == pytest.approx(6.74e9, rel=1e-3)  # as LLaMA 7B has
    assert model.MODELS[1].num_params == pytest.approx(70.55e9, rel=1e-3)  # Llama 3 70B
    assert model.MODELS[2].num_params == pytest.approx(405.85e9, rel=1e-3)  # Llama 3.1 405B
    fitted = model.Fit(1.0, 8.0, 2.0, 0.0, 0.0, 2.0, 1.0)
    gpu = 80.0 * 2**30
    given = model.extrapolate(seven, fitted, 1e6, gpu)
    d = 4 * seven.num_params
    assert given.probe == pytest.approx(2 * d + 8 * seven.largest)
    assert given.num_tokens == int((gpu - given.state - given.probe) / 1e6)
    assert given.sent_in_product == pytest.approx(2 * d * 7 / 8)
    assert model.extrapolate(seven, fitted._replace(whole=9.0), 1e6, gpu).num_tokens == 0


def test_the_page_is_that_of_the_result():
    writer = importlib.import_module("write_scaling")
    result = writer.Result.load(writer.RESULT)
    written = writer.PAGE.read_text(encoding="utf-8")
    assert writer.page(result) == written, "run python docs/scripts/write_scaling.py"


@pytest.mark.slow
def test_the_benchmark_runs_at_a_size_that_means_nothing(tmp_path, monkeypatch, capfd):
    sharding = importlib.import_module("sharding")
    monkeypatch.setattr(sys, "argv", ["benchmarks/sharding.py", "--tiny"])
    sharding.main()
    printed = capfd.readouterr().out
    assert printed.count("4,096") == 3
    assert "whole" in printed
    found = [sharding.measure(case) for case in sharding.SIZES["tiny"][:2]]
    assert found[0].product == 0
    assert found[1].product > 0
    result = sharding.Result("0", "0", "0", sharding.SIZES["tiny"][:2], found, [1.0])
    result.save(tmp_path / "result.json")
    assert sharding.Result.load(tmp_path / "result.json") == result
