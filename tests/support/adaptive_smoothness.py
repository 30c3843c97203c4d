"""The adaptive smoothness of a small dense matrix between two ends, by a barrier method.

It shares nothing with the library: both ends are feasible points, of the problem and of its dual.
"""

import torch


def adaptive_smoothness_by_barrier(matrix, partition, tol=1e-3, max_steps=2000):
    """Minimise ``sum_b d_b s_b`` over -S <= H <= S; gives a lower and an upper end within ``tol``.

    Newton steps on ``sum_b d_b s_b - mu (log det (S - H) + log det (S + H))``, whose gradient is
    ``d_b - mu trace_b(P + Q)`` for P = (S - H)^-1 and Q = (S + H)^-1; mu falls once they are short.
    A common factor makes P and Q feasible for the dual, whose value is <P - Q, H>.
    """
    unit = float(matrix.abs().max())
    matrix = matrix / unit
    sizes = partition.sizes(matrix)
    members = partition.expand(torch.eye(partition.num_blocks).to(matrix))  # (B, d)
    weights = 1.5 * torch.linalg.matrix_norm(matrix, 2).expand(partition.num_blocks)
    factors = _factors(matrix, partition.expand(weights))
    lower, upper, mu = 0.0, float("inf"), float(torch.linalg.matrix_norm(matrix, 2))
    for _ in range(max_steps):
        p, q = (torch.cholesky_inverse(factor) for factor in factors)
        traces = partition.block_sum(p.diagonal() + q.diagonal())
        upper = min(upper, float(weights @ sizes))
        lower = max(lower, float(((p - q) * matrix).sum() * (sizes / traces).min()))
        if upper <= lower * (1 + tol):
            return lower * unit, upper * unit
        curvature = members @ (p.square() + q.square()) @ members.T  # (B, B), over mu
        gradient = sizes / mu - traces  # over mu
        step = -torch.linalg.solve(curvature, gradient)
        length = float(-(gradient @ step).clamp(max=0)) ** 0.5
        if length < 0.3:
            mu *= 0.5
            continue
        step = step / (1 + length)  # of a self-concordant function: S - H and S + H stay positive
        weights = weights + step
        factors = _factors(matrix, partition.expand(weights))
    raise AssertionError(f"no convergence: {lower * unit} to {upper * unit}")


def _factors(matrix, diagonal):
    return [torch.linalg.cholesky(diagonal.diag() + sign * matrix) for sign in (-1, 1)]
