import types

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
import torch
from support.image_files import write_fashion_mnist

from data.image_data import ImageData


def batches(data="digits", *, rank=0, num_ranks=1, step=0, size=4, micro_batch=4, max_steps=2):
    images = ImageData(
        data=data,
        batch_size=size,
        micro_batch=micro_batch,
        max_steps=max_steps,
        val_images=6,
        seed=0,
    )
    images.trainer = types.SimpleNamespace(
        global_step=step, global_rank=rank, world_size=num_ranks, **{"lightning_module": None}
    )
    images.setup("fit")
    return list(images.train_dataloader()), list(images.val_dataloader()), images


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(tmp_path):
    choices = {"data": f"fashion-mnist:{write_fashion_mnist(tmp_path / 'fashion')}"}
    choices |= {"size": 6, "micro_batch": 6, "max_steps": 4}
    run, held_out, data = batches(**choices)
    key = [tuple(batch[0][:, 0, 3, 4].tolist()) for batch in run]
    assert {tuple(sorted(k)) for k in key} == {tuple(sorted(key[0]))}
    assert len(set(key)) > 1
    later, _, _ = batches(**choices, step=2)
    torch.testing.assert_close(later[:2], run[2:])
    assert len(held_out[0][0]) == 3
    pixels = data.train_set[0]
    assert float(pixels.mean().abs()) < 1e-6
    assert float(pixels.std(correction=0)) == pytest.approx(1)


def test_ranks_share_out_the_images_of_a_step():
    run, held_out, _ = batches()
    ranks = [batches(rank=rank, num_ranks=2, micro_batch=2) for rank in range(2)]
    for step, (pixels, _) in enumerate(run):
        shared = torch.cat([rank[0][step][0] for rank in ranks])
        assert sorted(shared.flatten(1).tolist()) == sorted(pixels.flatten(1).tolist())
    assert sum(len(labels) for rank in ranks for _, labels in rank[1]) == len(held_out[0][1]) + 2
