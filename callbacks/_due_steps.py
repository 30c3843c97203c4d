"""At which optimizer steps of a training a measurement is due, and why none was made."""

from collections.abc import Callable


class DueSteps:
    """What a monitor remembers of the steps of one training; steps are counted from 0."""

    def __init__(self) -> None:
        self.first: int | None = None  # step of this training, once a batch has started
        self._asked = -1  # the last step for which a choice was made
        self._due: int | None = None  # the last step at which a measurement was due
        self._is_postponed = False  # it could not be made, so the next step is due

    def begin(self, step: int) -> bool:
        """Take note of a batch of this step; tell whether it is the first of the training."""
        if self._due is not None:
            return False
        self.first, self._due = step, step - 1
        return True

    def ends_interval(self, step: int, every_n_steps: int) -> bool:
        """Whether a multiple of ``every_n_steps`` steps was reached since the last due one.

        Under manual optimization a batch may pass without a step, and with it a multiple.
        """
        assert self._due is not None  # a batch has started
        return (step + 1) // every_n_steps > (self._due + 1) // every_n_steps

    def is_due(self, step: int, choose: Callable[[], bool]) -> bool:
        """Whether to measure this step; asks ``choose`` once in it."""
        if step != self._asked:
            self._asked = step
            if choose() or self._is_postponed:
                self._due, self._is_postponed = step, False
        return step == self._due

    def postpone(self) -> None:
        """Have the next step measured instead of this one."""
        self._is_postponed = True

    def why_none(self, end: int, every_n_steps: int, *, needs: str, chooses_itself: bool) -> str:
        """Say why nothing was measured in a training that ended after ``end`` steps.

        In two sentences, the second of which is the remedy; so are ``needs``, what a step must have
        to be measured. ``chooses_itself``: the monitor has a ``should_measure`` of its own.
        """
        first = self.first
        assert first is not None
        if self._is_postponed:
            lack, remedy = needs.split(". ", 1)
            return (
                f"no step from the first due one on had {lack}, so nothing was measured. {remedy}"
            )
        if chooses_itself:
            return (
                f"`should_measure` chose none of steps {first + 1} to {end}, so nothing was "
                "measured. Let it choose one."
            )
        if end // every_n_steps == first // every_n_steps:
            return (
                f"steps {first + 1} to {end} of this training hold no multiple of `every_n_steps`="
                f"{every_n_steps}, so nothing was measured. Lower it."
            )
        return (
            f"no optimizer of the trainer stepped at the due ones of steps {first + 1} to {end}, "
            "so nothing was measured. Step what self.optimizers() gives."
        )
