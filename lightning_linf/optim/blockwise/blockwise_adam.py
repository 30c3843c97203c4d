"""Adam with one second moment per block of a partition."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from lightning_linf.distributed.gathering import part_of
from lightning_linf.distributed.shards import from_local, local, local_grad
from lightning_linf.optim.arguments import check_betas, check_nonnegative, refuse_sparse
from lightning_linf.optim.blockwise.matching import check_params, check_partition, match
from lightning_linf.optim.blockwise.state import check_saved, restore_saved, zero_count
from lightning_linf.optim.blockwise.unit import Unit
from lightning_linf.optim.blockwise.update import (
    Work,
    join_ranks,
    update_fused,
    update_one_by_one,
    update_together,
)
from lightning_linf.optim.loading import completed, has_these_groups, load_as_a_whole
from lightning_linf.partition import Partition

_REQUIRED = {"lr", "betas", "eps", "weight_decay", "eps_inside"}  # in the groups of its states
_OLDER = {"maximize": False, "foreach": None, "capturable": False}  # which older ones lack


class BlockwiseAdam(Optimizer):
    r"""Adam whose second moment is, for each block of a partition, the mean of its squares.

    .. math::
        m_i &\leftarrow \beta_1 m_i + (1 - \beta_1) g_i \\
        v_b &\leftarrow \beta_2 v_b + (1 - \beta_2) \tfrac{1}{d_b} \textstyle\sum_{i \in b} g_i^2 \\
        \theta_i &\leftarrow (1 - \eta \lambda) \theta_i
            - \eta \, \hat m_i / (\sqrt{\hat v_b} + \epsilon)

    with :math:`\hat m, \hat v` corrected for their start at 0. Blocks of one entry make it
    :class:`torch.optim.AdamW` with the same arguments; a single block makes it
    :class:`~lightning_linf.optim.AdaSGD`.

    A block may span tensors and parameter groups; it then has one second moment, over the entries
    that have a gradient in this step. Groups in which it lies must agree in beta2, ``eps``,
    ``eps_inside`` and ``capturable``. A parameter whose gradient is None is left as it is.

    The state has ``step`` and ``exp_avg`` for every parameter, and B numbers for the second
    moments of B blocks: the first parameter of a block, or all blocks of a parameter, holds
    ``exp_avg_sq``, float32 or wider, of shape (blocks,), or of the parameter's if every entry is a
    block, with its own count ``exp_avg_sq_step``.

    Parameters may be sharded (DTensors, as of ``fully_shard``), also over several dimensions of a
    mesh, and beside whole ones. Blocks are those of the whole tensors, so a step is that of one
    process up to rounding. ``exp_avg`` is sharded as its parameter is, and so is the ``exp_avg_sq``
    of blocks of one entry; other blocks' lie on every rank. Whether a gradient is None must be the
    same on all ranks, as it is under ``fully_shard``.

    Args:
        params: Parameters, pairs of name and parameter, or parameter groups of either. Real. Only
            named ones are matched with a ``Partition`` by name.
        lr: Learning rate; may be a tensor of shape (), which a captured graph then reads.
        betas: Decay of the mean gradient and of the mean square.
        eps: Added to the root of the mean square.
        weight_decay: Decoupled, as in AdamW: multiplied by ``lr``, not by the adaptive rate.
        partition: ``"coordinate"``, ``"tensor"``, ``"global"``, or a ``Partition`` of exactly
            these parameters; without names, in its order.
        eps_inside: Add ``eps`` to the mean square, not to its root.
        maximize: Ascend.
        foreach: Update many tensors with each call, which is faster on a GPU and holds a few more
            temporary tensors. Default: on a GPU.
        capturable: Keep the counts on the parameters' device, for CUDA graphs.

    Raises:
        ValueError: If an argument is out of range, the parameters are not those of the partition,
            or complex, lazy or flattened by the older ``FullyShardedDataParallel``.

    Source:
        Blockwise Adam of Xie, Mohamadi & Li, arXiv:2410.08198, where ``eps`` is inside the root;
        bias correction, decay and the place of ``eps`` are AdamW's (Loshchilov & Hutter,
        arXiv:1711.05101), so that blocks of one entry are AdamW. Cost: on the CPU, for one block
        per tensor, somewhat more than AdamW's fused step (``benchmarks/optimizers.py``); half its
        memory. If there are sharded parameters, one all-reduce a step of a number for each block
        (of more than one entry) and tensor, on each dimension of a mesh.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> rows = Partition.of(model, "row")
        >>> optimizer = BlockwiseAdam(model.named_parameters(), lr=1e-3, partition=rows)
        >>> model(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["exp_avg_sq"].shape
        torch.Size([2])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        partition: Literal["coordinate", "tensor", "global"] | Partition = "tensor",
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
        self._find_units()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; with a ``Partition``, which has all of its own, refuse to.

        Args:
            param_group: As for :class:`torch.optim.Optimizer`.

        Raises:
            ValueError: As the constructor.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
            if hasattr(self, "_units"):  # else the constructor still adds groups
                self._find_units()
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: Evaluates the loss again, with its gradients.

        Returns:
            What the closure returns, or None.

        Raises:
            ValueError: If a gradient is sparse, or groups that share a block do not agree.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_shared()
        found = [work for unit in self._units if (work := self._work(unit)) is not None]
        works = defaultdict(list)
        for work in join_ranks(found) if self._spans_ranks else found:
            works[_form(work)].append(work)
        for update, alike in works.items():
            update(alike)
        return loss

    def expanded_exp_avg_sq(self) -> dict[Tensor, tuple[Tensor, float]]:
        """Give every parameter the second moments of its entries, for another optimizer.

        Returns:
            By parameter: its block's ``exp_avg_sq`` for every entry, in the parameter's shape,
            and the number of updates in it, which its bias correction needs. Do not write to the
            tensors: entries of a block may share memory. Parameters whose block has had no
            gradient are left out.
        """
        result = {}
        for unit in self._units:
            state = self.state.get(unit.owner, {})
            if "exp_avg_sq" in state:
                v, count = state["exp_avg_sq"], float(state["exp_avg_sq_step"])
                values = local(v).reshape(-1)
                for p in unit.params:
                    result[p] = from_local(unit.expand(values, local(p)), p), count
        return result

    @torch.no_grad()
    def load_exp_avg_sq(self, values: Mapping[Tensor, tuple[Tensor, float]]) -> None:
        """Set every block's second moment to the mean of its entries', as of another optimizer.

        The counterpart of :meth:`expanded_exp_avg_sq`, whose result leaves all blocks as they are.
        The other state stays as it is.

        Args:
            values: By parameter: second moments of its entries, in its shape, of the same beta2
                and without bias correction; and the number of updates in them. Where the numbers
                differ within a block, its own is the largest, and the means are taken of corrected
                values. Parameters that are absent, or have 0 updates, do not count in the means;
                blocks of none but such stay as they are.

        Raises:
            ValueError: If a parameter is not this optimizer's, or has values of another shape.
        """
        known = {p for unit in self._units for p in unit.params}
        for p, (value, _) in values.items():
            if p not in known or value.shape != p.shape:
                raise ValueError(
                    f"{type(self).__name__}.load_exp_avg_sq: expected values in the shapes of the "
                    f"optimizer's parameters, got {tuple(value.shape)} for "
                    f"{f'shape {tuple(p.shape)}' if p in known else 'a parameter that it lacks'}. "
                    "Take the parameters from its param_groups."
                )
        for unit in self._units:
            given = [(p, *values[p]) for p in unit.params if p in values and values[p][1] > 0]
            if not given:
                continue
            most = max(count for _, _, count in given)
            state, beta2 = self._init_blocks(unit), self._options(unit)["betas"][1]
            v = local(state["exp_avg_sq"])
            wide = [
                part_of(value, p).to(v) * ((1 - beta2**most) / (1 - beta2**count))
                for p, value, count in given
            ]
            v.copy_(unit.mean([p for p, _, _ in given], wide).view(v.shape))
            state["exp_avg_sq_step"].fill_(most)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of the same parameters and partition.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            ValueError: If it has moments of other shapes, of another partition or another order of
                named parameters, or is not sharded as the parameters are; torch's
                ``set_optimizer_state_dict`` shares it out. The optimizer then is as it was.
        """
        load_as_a_whole(self, state_dict, self._prepared, self._restore)

    def _prepared(self, saved: dict[str, Any]) -> dict[str, Any]:
        name, groups = type(self).__name__, self.param_groups
        if not has_these_groups(groups, saved):
            return saved
        saved = completed(name, groups, saved, _REQUIRED, _OLDER)
        for group in saved["param_groups"]:
            check_betas(name, group["betas"])
        check_saved(name, self._units, groups, saved)
        return saved

    def _restore(self, saved: dict[str, Any]) -> None:
        restore_saved(self._units, self.param_groups, self.state, saved)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "partition": self.partition}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._find_units()

    def _check_group(self, group: dict[str, Any]) -> None:
        name = type(self).__name__
        for key in ("lr", "eps", "weight_decay"):
            check_nonnegative(name, key, group[key])
        check_betas(name, group["betas"])
        check_params(name, group["params"])

    def _find_units(self) -> None:
        self._units = match(type(self).__name__, self.param_groups, self.partition)
        self._spans_ranks = any(unit.spans_ranks for unit in self._units)
        self._check_shared()

    def _check_shared(self) -> None:
        """Raise a ValueError if groups in which a block lies differ in what forms its rate."""
        for pair in {(unit.groups[0], other) for unit in self._units for other in unit.groups}:
            ours, theirs = (_shared_options(self.param_groups[index]) for index in pair)
            if ours != theirs:
                raise ValueError(
                    f"{type(self).__name__}: expected parameter groups {pair[0]} and {pair[1]}, "
                    "which share a block, to agree in beta2, eps, eps_inside and capturable, got "
                    f"{ours} and {theirs}. Set them alike, or use a partition in which they share "
                    "none."
                )

    def _options(self, unit: Unit) -> dict[str, Any]:
        return self.param_groups[unit.groups[0]]

    def _work(self, unit: Unit) -> Work | None:
        """Collect what has a gradient, with its state."""
        params, grads, exp_avgs, steps, groups = [], [], [], [], []
        for p, index in zip(unit.params, unit.groups, strict=True):
            grad = p.grad
            if grad is None:
                continue
            if grad.is_sparse:
                refuse_sparse(type(self).__name__, grad)
            group, state = self.param_groups[index], self.state[p]
            if "step" not in state:
                state["step"] = zero_count(p, group)
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            params.append(p)
            grads.append(grad)
            exp_avgs.append(state["exp_avg"])
            steps.append(state["step"])
            groups.append(group)
        if not params:
            return None
        unit.move_index()
        state, given = self._init_blocks(unit), params
        v, count = state["exp_avg_sq"], state["exp_avg_sq_step"]
        if unit.is_sharded:
            grads = [local_grad(p, grad) for p, grad in zip(given, grads, strict=True)]
            params, exp_avgs, v = list(map(local, given)), list(map(local, exp_avgs)), local(v)
        if unit.is_identity:
            v = v.view(-1)
        options = self._options(unit)
        return Work(unit, options, v, count, params, grads, exp_avgs, steps, groups, given)

    def _init_blocks(self, unit: Unit) -> dict[str, Any]:
        """State of the unit's owner, with second moments."""
        p = unit.owner
        state: dict[str, Any] = self.state[p]
        if "exp_avg_sq" not in state:
            if unit.is_identity:
                form = torch.contiguous_format
                v = torch.zeros_like(p, dtype=unit.dtype, memory_format=form)
            else:
                v = local(p).new_zeros(unit.num_blocks, dtype=unit.dtype)
            state["exp_avg_sq"] = v
            state["exp_avg_sq_step"] = zero_count(p, self._options(unit))
        return state


def _form(work: Work) -> Callable[[list[Work]], None]:
    """Choose the form of the step."""
    foreach = work.options["foreach"]
    if foreach or (foreach is None and work.exp_avg_sq.is_cuda):
        return update_together
    is_traced = torch.compiler.is_compiling()  # numbers that are read would break its graph
    if foreach is False or is_traced or not work.unit.is_whole or work.options["capturable"]:
        return update_one_by_one
    dtype = work.exp_avg_sq.dtype  # narrower ones lose up to 15 % of a step in torch's kernel
    for p, g, m, group in zip(work.params, work.grads, work.exp_avgs, work.groups, strict=True):
        contiguous = p.is_contiguous() and g.is_contiguous() and m.is_contiguous()
        alike = p.is_cpu and p.dtype == g.dtype == m.dtype == dtype
        alike = alike and p.shape == g.shape == m.shape  # torch's kernel does not ask
        if not (contiguous and alike and group["betas"][0] > 0):  # 0: it wants no momentum
            return update_one_by_one
    return update_fused


def _shared_options(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return group["betas"][1], group["eps"], group["eps_inside"], group["capturable"]
