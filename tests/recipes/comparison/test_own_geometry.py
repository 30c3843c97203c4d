import dataclasses

import pytest
from support.small_gpt2 import sequences

import gpt2
from comparison.own_geometry import OwnGeometry
from lightning_linf import measure_geometry


@pytest.mark.slow
def test_the_geometry_of_a_run_is_that_of_its_weights_in_its_coordinates(comparison):
    chosen = {"optimizer": "adam", "rotation": "global", "max_steps": 1, "warmup_steps": 0}
    config = dataclasses.replace(comparison, **chosen)
    callback = OwnGeometry(1, ("tensor",), (), num_batches=2, num_probes=4)
    trainer, module, data = gpt2.prepare(
        config, [callback], logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    (row,) = callback.rows
    run, _ = sequences(config.data, config.cache_dir, micro_batch=2)
    coordinates = trainer.optimizers[0].coordinates(list(module.parameters()))
    report = measure_geometry(
        module, run[2:4], partitions=["tensor"], num_probes=4, reparameterization=coordinates
    )
    assert row["lambda_max"] == pytest.approx(report.lambda_max, rel=1e-5)
    assert row["one_one_norm_per_param"] == pytest.approx(report.one_one_norm_per_param, rel=1e-5)
    assert row["smoothness"]["tensor"] == pytest.approx(
        report.smoothness["tensor"].upper / report.num_params, rel=1e-5
    )


@pytest.mark.slow
def test_adams_run_tells_the_geometry_of_rotated_adam_at_the_same_point(comparison):
    rows = {}
    for rotation, others in ((None, (("global", 0.5),)), ("global", ())):
        # No step is taken, so both see the initial weights.
        config = dataclasses.replace(
            comparison, optimizer="adam", max_steps=1, warmup_steps=0, lr=1e-12, rotation=rotation,
            rotation_strength=0.5 if rotation else 1.0,
        )  # fmt: skip
        callback = OwnGeometry(1, (), others, num_batches=2, num_probes=64)
        trainer, module, data = gpt2.prepare(
            config, [callback], logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, data)
        (rows[rotation],) = callback.rows
    there = rows[None]["rotated"]["global 0.5"]
    # Other probes: a relative error of 4 to 5 % each.
    assert there == pytest.approx(rows["global"]["one_one_norm_per_param"], rel=0.25)
    assert there > 1.5 * rows[None]["one_one_norm_per_param"]
