"""What each batch has alone, for estimates of more than the mean over batches.

Where vectors are shards, all ranks are told of the batches of all ranks, one after the other;
otherwise each of its own. A batch that several ranks have, as with tensor parallelism, counts once.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.probe.batch_derivatives import BatchDerivatives
from lightning_linf.probe.functional_module import FunctionalModule
from lightning_linf.probe.loss_function import batch_weight

Visit = Callable[[Tensor, float], object]


def visit_gradients(
    function: FunctionalModule, derivatives: BatchDerivatives, ranks: Ranks, visit: Visit
) -> None:
    """Call ``visit`` with the gradient (d,) and the weight of each batch; all ranks together."""

    def visit_own() -> None:
        for index, batch in enumerate(function.batches):
            if function.is_first_with_its_batches:
                weight = batch_weight(function.module, batch)
                rows = function.parameters.zeros(1)
                derivatives.gradient(index, rows, 1.0)
                visit(rows[0], weight)

    if function.sharded is None:
        ranks.together(visit_own)
        return

    def weigh() -> Tensor:
        weights = [batch_weight(function.module, batch) for batch in function.batches]
        return function.parameters.like.new_tensor(weights)[:, None]

    weights = _of_all_ranks(function, ranks, ranks.together(weigh))

    def visit_all() -> None:
        for index, of_owners in enumerate(weights):
            own = min(index, len(function.batches) - 1)
            pairs = derivatives.each_gradient(own, of_owners)
            for owner, gradient in pairs:
                visit(gradient, float(of_owners[owner]))

    ranks.together(visit_all)


def visit_curvatures(
    function: FunctionalModule, ranks: Ranks, own: Sequence[tuple[Tensor, float]], visit: Visit
) -> None:
    """Call ``visit`` with numbers (c,) and the weight of each batch; all ranks together.

    Args:
        function: Entered.
        ranks: That share it.
        own: Numbers and weight of each batch of this rank.
        visit: May fail on one rank alone.
    """

    def visit_all() -> None:
        for row, weight in own:
            visit(row, weight)

    if function.sharded is None:
        if function.is_first_with_its_batches:
            visit_all()
        return
    rows = torch.stack([torch.cat([row, row.new_tensor([weight])]) for row, weight in own])
    for of_owners in _of_all_ranks(function, ranks, rows):
        for row in of_owners.values():
            visit(row[:-1], float(row[-1]))


def _of_all_ranks(function: FunctionalModule, ranks: Ranks, own: Tensor) -> list[dict[int, Tensor]]:
    """Give, for each number of a batch, the rows of the ranks that have one, from one's own (m, c).

    Ranks that have the same batches as an earlier one are left out.
    """
    data_ranks = function.data_ranks
    assert data_ranks is not None
    shape = (data_ranks.num_passes, len(data_ranks.counts), own.shape[1])
    rows = own.new_zeros(shape, dtype=wide_dtype(own))
    rows[: len(own), data_ranks.rank] = own
    rows = ranks.sum(rows)
    return [
        {owner: rows[index, owner] for owner in data_ranks.owners(index)}
        for index in range(data_ranks.num_passes)
    ]
