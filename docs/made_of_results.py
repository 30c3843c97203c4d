"""What pages take from `benchmarks/results/` and from other pages, by the name of its place."""

import math
from collections.abc import Callable, Iterable, Sequence

import made_of_trainings
import read_results as read

_BUDGETS_OF_LAMBDA = (32, 64)
_LATE = 50  # from this step on the measures of an advantage are compared
_WIDE = "rank 1 + dense"  # whose stated error is too narrow
_CASES = {
    "gpt2": "GPT-2, 9,152 parameters",
    "mlp": "MLP with LayerNorm, 5,114 parameters",
    "blocks of 5": "blocks of 5 on the diagonal",
}


def brackets() -> str:
    """Write both ends of N by partition and budget."""
    budgets, lines = read.brackets()
    titles = ["Φ", "blocks", *(f"N(Φ)/d, {n} HVPs" for n in budgets), "bound of H(Φ)/d"]
    rows = []
    for first in range(0, len(lines), len(budgets)):
        ends = lines[first : first + len(budgets)]
        bound = ends[0].bound or ends[-1].upper  # of one block H is N
        cells = (f"{line.lower} – {line.upper}" for line in ends)
        rows.append([f"`{ends[0].partition}`", ends[0].blocks, *cells, bound])
    return table(titles, rows)


def adaptive_smoothness() -> str:
    """Write both ends of Λ, over its known value, by network and partition."""
    lines = read.adaptive_smoothness()
    titles = ["network", "d", "Φ"]
    for budget in _BUDGETS_OF_LAMBDA:
        titles += [f"{budget} HVPs: N, lower", "Λ, lower", "upper", "upper / lower of Λ"]
    rows: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        start = [line.network, line.num_params, f"`{line.partition}`"]
        row = rows.setdefault((line.network, line.partition), start)
        row += [f"{x:.3f}" for x in (line.lower_norm, line.lower, line.upper, line.ratio)]
    return table(titles, rows.values())


def adaptive_within_ten() -> str:
    """Count the pairs of network and partition whose ends 32 products leave within 10 %."""
    ratios = [line.ratio for line in read.adaptive_smoothness() if line.budget == 32]
    return f"{sum(ratio <= 1.10 for ratio in ratios)} of {len(ratios)}"


def adaptive_worst() -> str:
    """Give the widest distance of both ends at 32 products."""
    return percent(max(x.ratio for x in read.adaptive_smoothness() if x.budget == 32) - 1)


def advantage() -> str:
    """Write the advantages that were observed, and as predicted, by step."""
    lines = read.advantages()
    names = [name for name in dict.fromkeys(x.partition for x in lines) if name != "global"]
    rows = []
    for step in dict.fromkeys(line.step for line in lines):
        at = {line.partition: line for line in lines if line.step == step}
        cells = (
            f"**{at[name].observed:.2f}**; "
            + ("–" if math.isnan(at[name].along) else f"{at[name].along:.2f}")
            + f"; {at[name].at_worst}"
            for name in names
        )
        rows.append([str(step), at["global"].loss, *cells])
    return table(["step", "loss", *(f"`{name}`" for name in names)], rows)


def pairs_at_worst() -> str:
    """Count the pairs that the advantage from N orders as observed, at all steps."""
    return _counted(read.pairs("from N(Phi)"))


def pairs_along_late() -> str:
    """Count the pairs that the advantage along steps orders as observed, but for the first."""
    return _counted(x for x in read.pairs(_ALONG) if x.step >= _LATE)


def pairs_along_early() -> str:
    """Count the same at step 20."""
    return _counted(x for x in read.pairs(_ALONG) if x.step == 20)


def gap_along_late() -> str:
    """Give the largest distance of the advantage along steps from the observed one, later on."""
    late = (line for line in read.advantages() if line.step >= _LATE)
    return percent(max(abs(line.along / line.observed - 1) for line in late))


def brackets_exact() -> str:
    """Write both ends of N of coordinates, over the best value known, by network and budget."""
    lines = [line for line in read.brackets_exact() if line.partition == "coordinate"]
    budgets = list(dict.fromkeys(line.budget for line in lines))
    titles = ["network", "as if of", *(f"{n} HVPs: lower, upper" for n in budgets)]
    rows: dict[tuple[str, int], list[str]] = {}
    for line in lines:
        start = [line.case, f"{line.likeness:,} d parameters" if line.likeness > 1 else "d"]
        row = rows.setdefault((line.case, line.likeness), start)
        row.append(f"{line.lower} ({line.least}), {line.upper} ({line.most})")
    return table(titles, rows.values())


def global_most() -> str:
    """Give by how much the upper end of the largest eigenvalue was too high, at most."""
    found = [float(x.most) for x in read.brackets_exact() if x.partition == "global"]
    return percent(max(found) - 1)


def spectra() -> str:
    """Write how often a stated end of the largest eigenvalue was too low."""
    rows = [[name, products, f"{low} of {all_}"] for name, products, low, all_ in read.spectra()]
    return table(["largest eigenvalues", "HVPs", "upper end below the truth"], rows)


def spectra_products() -> str:
    """Give how many products the largest eigenvalue took in these cases."""
    found = [round(float(products)) for _, products, _, _ in read.spectra()]
    return f"{min(found)} to {max(found)}"


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


def small_networks() -> str:
    """Write the constants of Adam's and of SGD's geometry beside each other, and what follows."""
    titles = (
        "network", "d", "d λ_max / (1,1)-norm", "d λ_max / N(`coordinate`)", "density",
        "advantage at worst", "along the steps",
    )  # fmt: skip
    rows = []
    for name, found in read.reports().items():
        top = found["lambda_max"]
        least, most = (found[f"N/d {end}/coordinate"] for end in ("upper", "lower"))
        rows.append([
            name, f"{found['d']:,.0f}", f"{top / found['(1,1)-norm/d']:.2g}",
            f"{top / least:.2g} – {top / most:.2g}", f"{found['density']:.2g}",
            f"{found['advantage lower/coordinate']:.2g} – "
            f"{found['advantage upper/coordinate']:.2g}",
            f"{found['advantage along g/coordinate']:.2g}",
        ])  # fmt: skip
    return table(titles, rows)


def norm_over_upper_end() -> str:
    """Give how many times as large the (1,1)-norm is as the upper end of N, of six networks."""
    budgets, lines = read.brackets()
    ratios = [float(lines[0].bound) / float(lines[len(budgets) - 1].upper)]
    for found in read.reports().values():
        ratios.append(found["(1,1)-norm/d"] / found["N/d upper/coordinate"])
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


def gpt2_constants() -> str:
    """Give how many times as large N(global) is as N(coordinate), of the most products."""
    budgets, lines = read.brackets()
    adam, sgd = lines[len(budgets) - 1], lines[-1]
    least, most = float(sgd.lower) / float(adam.upper), float(sgd.upper) / float(adam.lower)
    return f"{least:.0f} to {most:.0f}"


def edges_settled() -> str:
    """Give the mean edges, at the end, of runs that reached it."""
    found = [edge for reached, edge in read.edges() if reached != "never"]
    return f"{min(found):.2f} to {max(found):.2f}"


def edges_reached() -> str:
    """Count the runs that reached the edge."""
    found = read.edges()
    return f"{sum(reached != 'never' for reached, _ in found)} of {len(found)}"


def stable_rates_early() -> str:
    """Give the largest stable rate over the one found by trying, early in training."""
    return _range(ratio for step, ratio in read.stable_rates() if step < 1600)


def stable_rates_late() -> str:
    """Give the same later on."""
    return _range(ratio for step, ratio in read.stable_rates() if step >= 1600)


def product_cost() -> str:
    """Give what a product costs."""
    return f"{read.measured('Hessian-vector product'):.2f}"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float) -> str:
    """Write a share that something is at most."""
    return f"{math.ceil(round(100 * share, 6))} %"


_ALONG = "from the curvature along the step"


def _counted(found: Iterable[read.Pairs]) -> str:
    alike, total = (sum(each) for each in list(zip(*found, strict=True))[1:])
    return f"{alike} of {total}"


def _range(found: Iterable[float]) -> str:
    values = list(found)
    return f"{min(values):.3g} to {max(values):.3g}"


PLACES: dict[str, Callable[[], str]] = {
    **{
        made.__name__.replace("_", " "): made
        for made in (
            brackets, adaptive_smoothness, adaptive_within_ten, adaptive_worst, advantage,
            pairs_at_worst, pairs_along_late, pairs_along_early, gap_along_late, brackets_exact,
            global_most, spectra, spectra_products, errors_by_probes, errors_at_16, one_one_norm_over_best,
            one_one_norm_covered, one_one_norm_too_narrow, groups_of_16, groups_of_256,
            block_bounds, tf32_most, tf32_upper_ends, edges_settled, edges_reached,
            stable_rates_early, stable_rates_late, product_cost, small_networks, gpt2_constants,
            norm_over_upper_end,
        )
    },
    **made_of_trainings.PLACES,
}  # fmt: skip
