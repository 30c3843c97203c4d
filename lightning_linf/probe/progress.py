"""A progress bar of Hessian-vector products, in a terminal or a notebook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


@contextmanager
def products_shown(
    total: int, on_hvps: Callable[[int], object] | None, *, is_shown: bool
) -> Iterator[Callable[[int], object] | None]:
    """Give what to call with numbers of products: it moves a bar, and calls ``on_hvps``.

    The bar is Lightning's own form of tqdm, which in a notebook with ipywidgets is a widget.

    Args:
        total: The most products there may be.
        on_hvps: What is called besides.
        is_shown: False: there is no bar, and ``on_hvps`` is given as it is.
    """
    if not is_shown:
        yield on_hvps
        return
    with products_bar(total) as bar:

        def advance(count: int) -> None:
            bar.update(count)
            if on_hvps is not None:
                on_hvps(count)

        yield advance


@contextmanager
def products_bar(total: int) -> Iterator[Tqdm]:
    """Show a bar of at most ``total`` products, which goes when they end."""
    with Tqdm(desc="Probing", total=total, leave=False, dynamic_ncols=True, unit="HVP") as bar:
        yield bar
        bar.total = bar.n  # a bar that ends before its total is a failure in a notebook
