"""Muon for the hidden matrices of a network and AdamW for all else, as one optimizer."""

from collections.abc import Callable, Collection, Iterator
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from lightning_linf.argument_checks import check_choice, check_whole
from lightning_linf.distributed.shards import is_flattened
from lightning_linf.optim.checked_optimizer import CheckedOptimizer
from lightning_linf.optim.hyperparameters import check_betas, check_nonnegative, refuse_sparse
from lightning_linf.optim.reparameterized.closure import global_step_hooks
from lightning_linf.optim.saved_state import Saved, check_shape, saved_entries

MatrixRate = Literal["match_rms_adamw", "original"]


class MuonWithAdamW(CheckedOptimizer):
    r"""Step hidden matrices by :class:`torch.optim.Muon`, and all other parameters by AdamW.

    Muon steps along the polar factor of a mean gradient M, which torch approximates in bfloat16:

    .. math::
        M &\leftarrow \beta_1 M + (1 - \beta_1) G \\
        W &\leftarrow (1 - \eta \lambda) W
            - 0.2 \, \eta \sqrt{\max(m, n)} \, \operatorname{polar}(\beta_1 M + (1 - \beta_1) G)

    for a matrix W of m rows and n columns. With the factor :math:`0.2 \sqrt{\max(m, n)}` an entry
    moves about as far as an entry in AdamW does, so one learning rate and one weight decay hold for
    both. Each step equals, bit for bit, that of the two optimizers of torch on their own
    parameters; schedulers, checkpoints and Lightning see one.

    Parameters may be sharded (DTensors). Each product in torch's iteration for the polar factor
    then sends parts of the matrix between ranks, and rounds otherwise than on one device.

    Args:
        params: Pairs of name and parameter, or parameter groups of such pairs.
        lr: Learning rate; may be a tensor of shape ().
        betas: Decay of the mean gradient, in both, and of the mean square, in AdamW.
        eps: Added to the root of the mean square, in AdamW.
        weight_decay: Decoupled weight decay.
        matrices: Names of the parameters for Muon, as
            :func:`~lightning_linf.partition.hidden_matrices` lists them. It may name others, which
            are not given, or frozen.
        nesterov: Whether the step adds the present gradient once more, as above; else it is that of
            M alone.
        ns_steps: Steps of torch's Newton-Schulz iteration for the polar factor.
        adjust_lr_fn: "match_rms_adamw": the factor above. "original": the first authors',
            :math:`\sqrt{\max(1, m / n)}`, with which a matrix needs a rate of its own.

    Raises:
        ValueError: If an argument is out of range, parameters have no names, one for Muon is not a
            matrix, there is none for Muon, or one is complex or flattened by
            ``FullyShardedDataParallel``.
        RuntimeError: If torch has no Muon: it came with torch 2.9.

    Source:
        Jordan et al., kellerjordan.github.io/posts/muon; the factor: Liu et al., Muon is Scalable
        for LLM Training, arXiv:2502.16982. Memory: one number for each entry of a matrix, two for
        each other parameter.

    Example:
        >>> from torch import nn
        >>> from lightning_linf.partition import hidden_matrices
        >>> module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> named = module.named_parameters()
        >>> optimizer = MuonWithAdamW(named, lr=1e-3, matrices=hidden_matrices(module))
        >>> module(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> [list(state) for state in optimizer.state.values()][:2]
        [['momentum_buffer'], ['step', 'exp_avg', 'exp_avg_sq']]
    """

    decoupled_weight_decay = True
    _added_options: ClassVar = {}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        matrices: Collection[str],
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: MatrixRate = "match_rms_adamw",
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RuntimeError(
                "MuonWithAdamW: expected torch 2.9 or newer, which has torch.optim.Muon, got "
                f"{torch.__version__}. Update torch."
            )
        self.matrices = tuple(matrices)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)
        if not any(is_matrix for _, _, is_matrix in self._parameters()):
            raise ValueError(
                "MuonWithAdamW: expected names of parameters in `matrices`, got "
                f"{list(self.matrices)}, of which none is given. Use hidden_matrices(module), or "
                "AdamW where there is no hidden matrix."
            )

    def is_matrix(self, p: Tensor) -> bool:
        """Tell whether Muon steps a parameter."""
        return any(each is p and is_matrix for each, _, is_matrix in self._parameters())

    def _parameters(self) -> Iterator[tuple[Tensor, int, bool]]:
        """Yield every parameter, the number of its group, and whether Muon steps it."""
        known = set(self.matrices)
        for index, group in enumerate(self.param_groups):
            for name, p in zip(group["param_names"], group["params"], strict=True):
                yield p, index, name in known

    def _check_group(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_nonnegative("MuonWithAdamW", name, group[name])
        check_betas("MuonWithAdamW", group["betas"])
        check_whole("MuonWithAdamW", "ns_steps", group["ns_steps"], 1)
        check_choice("MuonWithAdamW", "adjust_lr_fn", group["adjust_lr_fn"], get_args(MatrixRate))
        if "param_names" not in group:
            raise ValueError(
                "MuonWithAdamW: expected parameters with names, by which `matrices` are found, got "
                "some without. Pass module.named_parameters(), or groups of pairs from it."
            )
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if is_flattened(p):
                got = f"{name} flattened by FullyShardedDataParallel. Shard it by fully_shard"
            elif p.is_complex():
                got = f"{name} of {p.dtype}. Optimize its real and imaginary parts"
            elif name in self.matrices and p.ndim != 2:
                got = f"{name} of shape {tuple(p.shape)} in `matrices`. Leave it out there"
            else:
                continue
            raise ValueError(
                "MuonWithAdamW: expected real parameters in their own shapes, for Muon of two "
                f"dimensions, got {got}."
            )

    def _check_saved(self, saved: Saved) -> None:
        groups = self.param_groups
        kinds = {p: is_matrix for p, _, is_matrix in self._parameters()}
        for _, p, entry in saved_entries(groups, saved):
            names = ("momentum_buffer",) if kinds[p] else ("exp_avg", "exp_avg_sq")
            for name in names if entry else ():
                check_shape("MuonWithAdamW", groups, p, name, entry.get(name))
            if entry and not kinds[p]:
                shape = torch.Size([])
                check_shape("MuonWithAdamW", groups, p, "step", entry.get("step"), shape)

    def _updates(self) -> list[Callable[[], None]]:
        return [self._step]  # torch's optimizers prepare their steps themselves

    def _step(self) -> None:
        for p, _, _ in self._parameters():
            if p.grad is not None and p.grad.is_sparse:
                refuse_sparse("MuonWithAdamW", p.grad)
        with global_step_hooks():  # torch calls those for this optimizer
            for part in self._parts():
                part.step()

    def _parts(self) -> tuple[Optimizer, Optimizer]:
        """Make torch's two optimizers, with the state and the present options of this one."""
        muon: list[dict[str, Any]] = []
        adamw: list[dict[str, Any]] = []
        for group in self.param_groups:
            both = {"lr": float(group["lr"]), "weight_decay": group["weight_decay"]}
            own = {name: group[name] for name in ("nesterov", "ns_steps", "adjust_lr_fn")}
            muon.append({**both, **own, "momentum": group["betas"][0], "params": []})
            adamw.append({**both, "betas": group["betas"], "eps": group["eps"], "params": []})
        for p, index, is_matrix in self._parameters():
            (muon if is_matrix else adamw)[index]["params"].append(p)
        parts = torch.optim.Muon(muon), AdamW(adamw)
        for part in parts:
            part.state = self.state
        return parts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "matrices": self.matrices}
