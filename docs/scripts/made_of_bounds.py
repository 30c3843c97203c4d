"""What pages take from results about bounds of the Hessian, and about what follows from them."""

import math
from collections.abc import Iterable

import read_results as read
from formatting import by_name, percent, table

_BUDGETS_OF_LAMBDA = (32, 64)
_ALONG = "from the curvature along the step"
_LATE = 50  # from this step on the measures of an advantage are compared


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


def gpt2_constants() -> str:
    """Give how many times as large N(global) is as N(coordinate), of the most products."""
    budgets, lines = read.brackets()
    adam, sgd = lines[len(budgets) - 1], lines[-1]
    least, most = float(sgd.lower) / float(adam.upper), float(sgd.upper) / float(adam.lower)
    return f"{least:.0f} to {most:.0f}"


def adam_after_16() -> str:
    """Give both ends of N of coordinates, over d, that 16 products left."""
    return _ends_of_adam(16)


def adam_after_64() -> str:
    """Give those that 64 products left."""
    return _ends_of_adam(64)


def numbers_of_blocks() -> str:
    """Give how many blocks that network has, by partition."""
    _, lines = read.brackets()
    blocks = {line.partition: line.blocks for line in lines}
    return ", ".join(f"{blocks[name]} for `{name}`" for name in ("row", "head", "tensor"))


def norm_over_upper_end() -> str:
    """Give how many times as large the (1,1)-norm is as the upper end of N, of six networks."""
    budgets, lines = read.brackets()
    ratios = [float(lines[0].bound) / float(lines[len(budgets) - 1].upper)]
    for found in read.reports().values():
        ratios.append(found["(1,1)-norm/d"] / found["N/d upper/coordinate"])
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


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


def _ends_of_adam(budget: int) -> str:
    budgets, lines = read.brackets()
    line = lines[budgets.index(budget)]
    return f"{line.lower} to {line.upper}"


def _counted(found: Iterable[read.Pairs]) -> str:
    alike, total = (sum(each) for each in list(zip(*found, strict=True))[1:])
    return f"{alike} of {total}"


PLACES = by_name(
    brackets,
    gpt2_constants,
    adam_after_16,
    adam_after_64,
    numbers_of_blocks,
    norm_over_upper_end,
    adaptive_smoothness,
    adaptive_within_ten,
    adaptive_worst,
    brackets_exact,
    global_most,
    spectra,
    spectra_products,
    advantage,
    pairs_at_worst,
    pairs_along_late,
    pairs_along_early,
    gap_along_late,
    small_networks,
)
