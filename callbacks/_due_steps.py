"""Why a training has ended without a measurement."""


def why_nothing(
    first: int, end: int, every_n_steps: int, *, passed_over: str | None, chooses_itself: bool
) -> str:
    """Say it in two sentences, the second of which is the remedy.

    Args:
        first: Number of the first step of the training, counted from 0.
        end: How many steps there were at its end.
        every_n_steps: Of the monitor.
        passed_over: What the due steps lacked, and what to do. None: none was due.
        chooses_itself: The monitor has a ``should_measure`` of its own.
    """
    if passed_over is not None:
        lack, remedy = passed_over.split(". ", 1)
        return f"no step from the first due one on had {lack}, so nothing was measured. {remedy}"
    if chooses_itself:
        return (
            f"`should_measure` chose none of steps {first + 1} to {end}, so nothing was measured. "
            "Let it choose one."
        )
    if end // every_n_steps == first // every_n_steps:
        return (
            f"steps {first + 1} to {end} of this training hold no multiple of `every_n_steps`="
            f"{every_n_steps}, so nothing was measured. Lower it."
        )
    return (
        f"no optimizer of the trainer stepped at the due ones of steps {first + 1} to {end}, so "
        "nothing was measured. Step what self.optimizers() gives."
    )
