import torch
from support.small_gpt2 import sequences


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
