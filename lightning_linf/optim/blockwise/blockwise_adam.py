"""Adam with one second moment for each block of a partition."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_linf.distributed.gathering import part_of
from lightning_linf.distributed.shards import from_local, local
from lightning_linf.optim.blockwise.parameter_blocks import (
    check_params,
    check_partition,
    check_shared_options,
    find_block_sets,
    groups_that_share,
)
from lightning_linf.optim.blockwise.saved_moments import check_saved, restore_saved
from lightning_linf.optim.blockwise.step import updates
from lightning_linf.optim.blockwise.step_inputs import (
    collect,
    options_of,
    second_moments,
    with_norms_over_ranks,
    write_norms_over_ranks,
)
from lightning_linf.optim.checked_optimizer import CheckedOptimizer
from lightning_linf.optim.hyperparameters import check_betas, check_nonnegative
from lightning_linf.partition import Partition
from lightning_linf.partition_names import ModuleFreeName


class BlockwiseAdam(CheckedOptimizer):
    r"""Adam whose second moment is shared by each block: a running mean of its squared gradients.

    .. math::
        m_i &\leftarrow \beta_1 m_i + (1 - \beta_1) g_i \\
        v_b &\leftarrow \beta_2 v_b + (1 - \beta_2) \tfrac{1}{d_b} \textstyle\sum_{i \in b} g_i^2 \\
        \theta_i &\leftarrow (1 - \eta \lambda) \theta_i
            - \eta \, \hat m_i / (\sqrt{\hat v_b} + \epsilon)

    for entry :math:`i` of block :math:`b`, which has :math:`d_b` entries; :math:`\hat m = m / (1 -
    \beta_1^t)` and :math:`\hat v = v / (1 - \beta_2^t)` after :math:`t` steps. If every entry is a
    block, this is :class:`torch.optim.AdamW` with the same arguments; if there is one block, it is
    :class:`~lightning_linf.optim.AdaSGD`.

    A block may span tensors and parameter groups. Parameter groups that share a block must agree in
    beta2, ``eps``, ``eps_inside`` and ``capturable``. A parameter whose gradient is None is left as
    it is, and its entries do not count in the mean of its block in that step. Groups cannot be
    added if there is a ``Partition``: it has all of its parameters.

    The state of every parameter has ``step`` and ``exp_avg``, as Adam's. The second moments,
    ``exp_avg_sq`` with its own count ``exp_avg_sq_step``, are held by the parameter whose blocks
    they are of, or by the first parameter of a block that spans several. They have the shape
    (blocks,), or the parameter's if every entry is a block, and are float32 or wider.

    Parameters may be sharded (DTensors, such as ``fully_shard`` makes), also over several
    dimensions of a mesh, and beside unsharded ones. Blocks are those of the whole tensors, so a
    step equals that of a single process up to rounding. ``exp_avg`` is sharded as its parameter is,
    and so is ``exp_avg_sq`` if every entry is a block; else every rank holds all of it. Whether a
    gradient is None must be the same on all ranks, as it is under ``fully_shard``.

    Args:
        params: Real parameters, pairs of name and parameter, or parameter groups of either. If they
            are named, a ``Partition`` is matched with them by name.
        lr: Learning rate; may be a tensor of shape (), which a captured CUDA graph then reads.
        betas: Decay of the mean gradient and of the mean square.
        eps: Added to the root of the mean square.
        weight_decay: Decoupled weight decay, as in AdamW: multiplied by ``lr`` alone.
        partition: ``"coordinate"``, ``"tensor"``, ``"global"``, or a ``Partition`` of exactly these
            parameters; without names they must come in its order.
        eps_inside: Add ``eps`` to the mean square, not to its root.
        maximize: Maximize the objective instead of minimizing it.
        foreach: False: update tensor by tensor, as the formulas are written. Default: on a GPU with
            Triton by kernels that take all tensors, on the CPU by forms that need few passes.
        capturable: Keep the counts of steps on the parameters' device, for CUDA graphs.

    Raises:
        ValueError: If an argument is out of range, the parameters are not those of the partition,
            or complex, lazy or flattened by the older ``FullyShardedDataParallel``.

    Source:
        Blockwise Adam of Xie, Mohamadi & Li, arXiv:2410.08198, where ``eps`` is inside the root.
        Bias correction, decay and the place of ``eps`` are AdamW's (Loshchilov & Hutter,
        arXiv:1711.05101), so that blocks of one entry are AdamW. Cost: half of AdamW's memory. The
        kernels move six numbers for each parameter, where AdamW moves seven: the gradient once for
        its norms, then gradient, first moment and parameter, of which they write the latter two.
        ``benchmarks/optimizers.py`` compares times. Blocks of any sets of entries, such as
        ``Partition.by_function`` makes, and tensors with gaps in memory take the plain form. With
        sharded parameters, a step makes one all-reduce on each dimension of a mesh, of one number
        for each tensor of each block that has more than one entry.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> rows = Partition.of(model, "row")
        >>> optimizer = BlockwiseAdam(model.named_parameters(), lr=1e-3, partition=rows)
        >>> model(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["exp_avg_sq"].shape
        torch.Size([2])
    """

    decoupled_weight_decay = True
    carried_state = ("step", "exp_avg", "exp_avg_sq")
    _added_options: ClassVar = {"maximize": False, "foreach": None, "capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        partition: ModuleFreeName | Partition = "tensor",
        eps_inside: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        check_partition(type(self).__name__, partition)
        self.partition = partition
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "eps_inside": eps_inside,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(params, defaults)
        self._find_block_sets()

    def _updates(self) -> list[Callable[[], None]]:
        self._match_groups()
        check_shared_options(type(self).__name__, self.param_groups, self._pairs)
        return super()._updates()

    def _prepare(self) -> list[Callable[[], None]]:
        collected = [collect(self, blocks) for blocks in self._block_sets]
        inputs = [each for each in collected if each is not None]
        if not any(blocks.spans_ranks for blocks in self._block_sets):
            return updates(inputs)
        inputs = with_norms_over_ranks(inputs)
        return [partial(write_norms_over_ranks, inputs), *updates(inputs)]

    def expanded_exp_avg_sq(self) -> dict[Tensor, tuple[Tensor, float]]:
        """Give the second moment of every entry, for another optimizer.

        Returns:
            For each parameter: the ``exp_avg_sq`` of its blocks, repeated for every entry, in the
            parameter's shape; and the number of updates in it, for bias correction. Do not write to
            the tensors: entries of a block may share memory. Parameters whose block has had no
            gradient yet are left out.
        """
        self._match_groups()
        result = {}
        for blocks in self._block_sets:
            state = self.state.get(blocks.owner, {})
            if "exp_avg_sq" in state:
                v, count = state["exp_avg_sq"], float(state["exp_avg_sq_step"])
                values = local(v).reshape(-1)
                for p in blocks.params:
                    result[p] = from_local(blocks.expand(values, local(p)), p), count
        return result

    @torch.no_grad()
    def load_exp_avg_sq(self, values: Mapping[Tensor, tuple[Tensor, float]]) -> None:
        """Set the second moment of every block to the mean of another optimizer's over it.

        This is the counterpart of :meth:`expanded_exp_avg_sq`: loading its result changes nothing.
        The rest of the state stays as it is.

        Args:
            values: For each parameter: second moments of its entries, in its shape, with the same
                beta2 and without bias correction; and the number of updates in them. Where these
                numbers differ within a block, the block gets the largest one, and means are taken
                of bias-corrected values. Parameters that are absent, or have had no update, do not
                count in the means; a block of none but such parameters stays as it is.

        Raises:
            ValueError: If a parameter is not this optimizer's, or has values of another shape.
        """
        self._match_groups()
        known = {p for blocks in self._block_sets for p in blocks.params}
        for p, (value, _) in values.items():
            if p not in known or value.shape != p.shape:
                raise ValueError(
                    f"{type(self).__name__}.load_exp_avg_sq: expected values in the shapes of the "
                    f"optimizer's parameters, got {tuple(value.shape)} for "
                    f"{f'shape {tuple(p.shape)}' if p in known else 'a parameter that it lacks'}. "
                    "Take the parameters from its param_groups."
                )
        for blocks in self._block_sets:
            given = [(p, *values[p]) for p in blocks.params if p in values and values[p][1] > 0]
            if not given:
                continue
            most = max(count for _, _, count in given)
            state, beta2 = second_moments(self, blocks), options_of(self, blocks)["betas"][1]
            v = local(state["exp_avg_sq"])
            scaled = [
                part_of(value, p).to(v) * ((1 - beta2**most) / (1 - beta2**count))
                for p, value, count in given
            ]
            v.copy_(blocks.mean([p for p, _, _ in given], scaled).view(v.shape))
            state["exp_avg_sq_step"].fill_(most)

    def _restore(self, saved: dict[str, Any]) -> None:
        restore_saved(self._block_sets, self.param_groups, self.state, saved)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "partition": self.partition}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._find_block_sets()

    def _check_group(self, group: dict[str, Any]) -> None:
        name = type(self).__name__
        for key in ("lr", "eps", "weight_decay"):
            check_nonnegative(name, key, group[key])
        check_betas(name, group["betas"])
        check_params(name, group["params"])
        if hasattr(self, "_block_sets"):  # else the constructor is still adding groups
            self._find_block_sets()

    def _match_groups(self) -> None:
        """Find the blocks anew if parameters in ``param_groups`` were replaced, added or moved."""
        if _split(self.param_groups) != self._groups:
            self._find_block_sets()

    def _find_block_sets(self) -> None:
        name = type(self).__name__
        block_sets = find_block_sets(name, self.param_groups, self.partition)
        pairs = groups_that_share(block_sets)
        check_shared_options(name, self.param_groups, pairs)
        self._block_sets, self._pairs, self._kept = block_sets, pairs, None
        self._groups = _split(self.param_groups)  # of parameters that the block sets keep alive

    def _check_saved(self, saved: dict[str, Any]) -> None:
        self._match_groups()
        for group in saved["param_groups"]:
            check_betas(type(self).__name__, group["betas"])
        check_saved(type(self).__name__, self._block_sets, self.param_groups, saved)


def _split(groups: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in groups]
