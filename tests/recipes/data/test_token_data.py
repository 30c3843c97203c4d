from dataclasses import replace

import numpy as np
import torch
from support.small_gpt2 import gpt2, sequences, token_data

from data.corpus import END_OF_TEXT_ID, find_files, held_out_fraction, is_validation


def test_batches_from_a_later_step_are_those_of_the_run(texts, cache_dir):
    run, _ = sequences(texts, cache_dir)
    later, _ = sequences(texts, cache_dir, step=3)
    assert [batch.shape for batch in run] == [(4, 16)] * 5
    assert len(later) == 5  # Lightning's count of batches goes on from the checkpoint
    torch.testing.assert_close(later[:2], run[3:])


def test_a_step_has_the_same_sequences_on_any_number_of_ranks(texts, cache_dir):
    run, _ = sequences(texts, cache_dir)
    ranks = [sequences(texts, cache_dir, rank=r, num_ranks=2, micro_batch=1)[0] for r in range(2)]
    for step, batch in enumerate(run):
        shared = torch.cat([part for rank in ranks for part in rank[2 * step : 2 * step + 2]])
        assert sorted(shared.tolist()) == sorted(batch.tolist())


def test_ranks_share_out_the_validation_sequences(texts, cache_dir):
    _, alone = sequences(texts, cache_dir)
    ranks = [sequences(texts, cache_dir, rank=rank, num_ranks=2)[1] for rank in range(2)]
    shared = [sequence.tolist() for rank in ranks for batch in rank for sequence in batch]
    assert len(shared) == 3
    assert sorted(shared) == sorted(torch.cat(alone).tolist())


def test_short_text_holds_out_more_and_that_is_said(texts, tmp_path, capsys):
    preset = gpt2.PRESETS["124m"]()
    config = replace(preset, data=str(texts), vocab_size=300, cache_dir=str(tmp_path))
    data = token_data.TokenData.of(config)
    data.prepare_data()
    said = capsys.readouterr().out
    assert f"val_fraction: 0.0005 of {texts} is too little text to validate on, so 0.1 of" in said
    assert data.folder.name == config.data_id()
    tokens = np.fromfile(data.folder / "validation.bin", dtype=np.uint16)
    assert (tokens == END_OF_TEXT_ID).sum() == 2  # of 12 documents, number 1 and number 11


def test_preset_124m_holds_out_enough_of_pythons_own_sources():
    preset = gpt2.PRESETS["124m"]()
    held_out = held_out_fraction("stdlib", preset.val_fraction, preset.sequence_length)
    sizes = [path.stat().st_size for _, path in find_files("stdlib")]
    texts = enumerate(size for size in sizes if size)
    num_bytes = sum(size for index, size in texts if is_validation(index, held_out))
    assert num_bytes >= 64 * preset.sequence_length * 4
    assert held_out < 0.1
