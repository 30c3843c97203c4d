"""What pages take from results about errors of estimates."""

import math

import read_results as read
from formatting import by_name, percent, table

_WIDE = "rank 1 + dense"  # whose stated error is too narrow
_CASES = {
    "gpt2": "GPT-2, 9,152 parameters",
    "mlp": "MLP with LayerNorm, 5,114 parameters",
    "blocks of 5": "blocks of 5 on the diagonal",
}


def errors_by_probes() -> str:
    """Write the error of the (1,1)-norm by number of probes, against the plain and the median."""
    lines = read.one_one_norm()
    titles = ["HVPs"]
    for name in _CASES.values():
        titles += [f"{name}: ours", "plain", "median"]
    rows = []
    for probes in dict.fromkeys(line.probes for line in lines):
        row = [str(probes)]
        for case in _CASES:
            (line,) = (x for x in lines if (x.case, x.probes) == (case, probes))
            row += [f"**{line.rmse}**", line.plain, line.median]
        rows.append(row)
    return table(titles, rows)


def errors_at_16() -> str:
    """Write the error of the (1,1)-norm at 16 probes for all cases."""
    titles = (
        "matrix or network", "bias", "RMSE", "stated error", "two of it cover", "plain", "full",
        "median",
    )  # fmt: skip
    rows = (
        (x.case, x.bias, f"**{x.rmse}**", x.stated, f"{x.covered} %", x.plain, x.full, x.median)
        for x in read.one_one_norm()
        if x.probes == 16
    )
    return table(titles, rows)


def errors_of_gpt2() -> str:
    """Give the error of the (1,1)-norm of a GPT-2 by number of probes."""
    found = [line for line in read.one_one_norm() if line.case == "gpt2" and line.probes >= 16]
    each = [f"{100 * float(line.rmse):.1f} % with {line.probes}" for line in found]
    return f"{', '.join(each[:-1])} and {each[-1]}"


def one_one_norm_over_best() -> str:
    """Give the most that the error is over that of the better of two simpler estimates."""
    return f"{max(line.over_best for line in read.one_one_norm()):.2f}"


def one_one_norm_covered() -> str:
    """Give how many errors two stated ones cover, of all cases but one."""
    found = [line.covered for line in read.one_one_norm() if line.case != _WIDE]
    return f"{min(found):.0f} to {max(found):.0f} %"


def one_one_norm_too_narrow() -> str:
    """Give the same of the one case, by number of probes."""
    found = [line for line in read.one_one_norm() if line.case == _WIDE and line.covered < 90]
    each = ", ".join(f"{line.covered:.0f} % at {line.probes}" for line in found)
    return f"{each} HVPs"


def groups_of_16() -> str:
    """Give by how much the error grew, at most, where 16 coordinates share a multiplier."""
    return percent(max(read.errors_of_groups()[16]) - 1)


def groups_of_256() -> str:
    """Give the same where 256 do."""
    return percent(max(read.errors_of_groups()[256]) - 1)


def groups_left() -> str:
    """Give how many groups those were."""
    found = read.numbers_of_groups(256)
    return f"{min(found)} to {max(found)}"


def block_bounds() -> str:
    """Write the error of the bound of H by network and partition, at 16 probes."""
    titles = ("network", "Φ", "bias", "RMSE", "stated error", "plain: bias", "plain: RMSE")
    rows = (
        [case, f"`{name}`", bias, f"**{rmse}**", stated, *plain]
        for case, name, bias, rmse, stated, *plain in read.bounds_of_blocks()
    )
    return table(titles, rows)


def tf32_most() -> str:
    """Give the most that TF32 moved norms, eigenvalues, curvatures and lower ends."""
    parts = ("(1,1)-norm/d", "lambda_max", "N/d lower", "curvature")
    found = [x for name, x in read.largest_differences().items() if name.startswith(parts)]
    return f"{math.ceil(10 * max(found)) / 10:.1f} %"


def tf32_upper_ends() -> str:
    """Give the most that it moved upper ends of N."""
    found = [x for n, x in read.largest_differences().items() if n.startswith("N/d upper")]
    return f"{max(found):.0f} %"


PLACES = by_name(
    errors_by_probes,
    errors_at_16,
    errors_of_gpt2,
    groups_left,
    one_one_norm_over_best,
    one_one_norm_covered,
    one_one_norm_too_narrow,
    groups_of_16,
    groups_of_256,
    block_bounds,
    tf32_most,
    tf32_upper_ends,
)
