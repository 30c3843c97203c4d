"""A layout for TensorBoard's tab CUSTOM SCALARS, which shows related quantities in one chart."""

from collections.abc import Iterable

from lightning_linf.quantities import ALL
from lightning_linf.quantity import PartitionScalar, Quantity, Scalar

Layout = dict[str, dict[str, list[object]]]  # category -> chart -> [kind, tags]


def custom_scalars(monitors: Iterable[str]) -> Layout:
    """Make the charts that the quantities of some monitors name.

    Args:
        monitors: Names of their classes; classes that are no monitors are passed over.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes.
    """
    charts: dict[str, list[str]] = {}
    for monitor in monitors:
        for quantity in ALL:
            if quantity.monitors[0].name == monitor:
                for title in quantity.charts:
                    charts.setdefault(title, []).append(_tags(quantity))
    return {"Geometry": {title: ["Multiline", tags] for title, tags in charts.items()}}


def _tags(quantity: Quantity) -> str:
    """Make a regular expression for the tags of a quantity.

    It ends in "$" because TensorBoard looks at the start of a tag only: "geometry/noise" alone
    would also find "geometry/noise_scale".
    """
    if isinstance(quantity, PartitionScalar):
        return quantity.of(".+$")
    assert isinstance(quantity, Scalar)  # columns are in no chart
    return quantity.tag + ("(/optimizer.+)?$" if quantity.monitors[0].per_optimizer else "$")
