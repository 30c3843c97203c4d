"""The index of the gallery: what is seen on each page, written from the kept records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from exhibits import pages
from exhibits.measured import Measured
from exhibits.sentences import diverging, gpt2, resnet, rotated, vit
from prediction.markdown import paragraph

INDEX = pages.GALLERY / "index.md"


@dataclass(frozen=True)
class Entry:
    """What the index says of a page.

    Args:
        title: Its heading.
        picture: What its picture shows, in words.
        sentences: A function of the page's runs, which gives what is seen and what is normal of it.
    """

    title: str
    picture: str
    sentences: Callable[..., Iterator[str]]


ENTRIES = {
    "gpt2": Entry(
        "A GPT-2 on source code",
        "The verdict over the steps: how far Adam's step lowers the loss, over SGD's",
        gpt2,
    ),
    "resnet": Entry(
        "A ResNet-18 on digits",
        "Loss and learning rate, edge of stability and best multiple of the last step",
        resnet,
    ),
    "vit": Entry(
        "A vision transformer on digits",
        "The gradient's density in every layer, over the steps and at the last one",
        vit,
    ),
    "rotated": Entry(
        "The GPT-2 beside itself in rotated coordinates",
        "Smoothness along l-infinity and l2 of both runs",
        rotated,
    ),
    "diverging": Entry(
        "A run that diverges",
        "Loss and learning rate, edge of stability and best multiple of the last step",
        diverging,
    ),
}


def index() -> str:
    """Write the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    runs = {name: Measured(pages.RUNS / name) for each in pages.PAGES.values() for name in each}
    params = [run.num_params for run in runs.values()]
    steps = [run.settings["max_steps"] for run in runs.values()]
    yield "# Gallery"
    yield from paragraph(
        "Finished trainings, each as the one HTML file that `lightning-linf report` writes of "
        "it, with the records of all five monitors: GradientHeterogeneityMonitor, "
        "GradientNoiseMonitor, LinfSmoothnessMonitor, EdgeMonitor and StepMonitor. What each "
        "panel shows is in [panels](../panels.md)."
    )
    yield from paragraph(
        f"The networks have {min(params):,} to {max(params):,} parameters and trained for "
        f"{min(steps)} to {max(steps)} steps on one thread of a CPU, with one seed. So what "
        "stands here is true of these runs, and no rule. It is written from their records in "
        "`docs/gallery/runs`: no measured figure is typed, and a sentence that the records do "
        "not bear out is not written. The pages are part of the documentation's site, and not of "
        "the repository, where `make gallery` makes them from the records in seconds; `python "
        "recipes/gallery.py --again RUN` trains a run anew."
    )
    for name, entry in ENTRIES.items():
        yield from ("", f"## {entry.title}")
        yield from ("", f"![{entry.picture}](../pictures/gallery-{name}.png)")
        own = [runs[run] for run in pages.PAGES[name]]
        yield from paragraph(_setting(own[-1]))
        yield from paragraph(" ".join(entry.sentences(*own)))
        yield from ("", f"[The whole page]({name}.html)")


def _setting(run: Measured) -> str:
    """Say with what it was trained and how often it was measured."""
    config = run.settings
    name = {"adamw": "AdamW", "sgd": "SGD with momentum"}[config["optimizer"]]
    where = " in globally rotated coordinates" if config["rotation"] else ""
    clip = config["gradient_clip_val"]
    clipped = f"gradients clipped to a norm of {clip:g}" if clip else "gradients not clipped"
    warmup, steps = config["warmup_steps"], config["max_steps"]
    schedule = f"a learning rate that rises to {config['lr']:g} "
    if warmup == steps - 1:
        schedule += "at the last step"
    else:
        schedule += f"in {warmup} steps and falls to a tenth of it by a cosine"
    return (
        f"{run.num_params:,} parameters, {steps} steps of {config['batch_size']} samples, "
        f"{name}{where}, {schedule}, {clipped}. Measured every {config['smoothness_every']} "
        "steps, on the batch of the step."
    )
