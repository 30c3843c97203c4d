"""Time spent on probes against time spent on training."""

import time

import torch

_ALLOWANCE_SECONDS = 2.0  # of probes in all: so little is not missed; a trial has all its steps


class TimeBudget:
    """Two clocks, in seconds: one for probes, and one for the rest of the training.

    Args:
        max_overhead: Probe time as a fraction of training time; None: no limit.
    """

    def __init__(self, max_overhead: float | None) -> None:
        self.max_overhead = max_overhead
        self.train_seconds = 0.0
        self.probe_seconds = 0.0
        self._last_probe_seconds = 0.0
        self._since = 0.0
        self._has_told = False  # in this training, of a probe that was too expensive

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs to go on with the same clocks."""
        return {
            "probe": self.probe_seconds,
            "train": self.train_seconds,
            "last": self._last_probe_seconds,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.probe_seconds, self.train_seconds = state["probe"], state["train"]
        self._last_probe_seconds = state["last"]

    def start_fit(self, device: torch.device) -> None:
        """A training begins, or is resumed."""
        self._has_told = False
        self.start_training(device)

    def start_training(self, device: torch.device) -> None:
        """Training begins, or goes on after a probe."""
        self._since = _now(device)

    def stop_training(self, device: torch.device) -> None:
        """A probe is due."""
        now = _now(device)
        self.train_seconds += now - self._since
        self._since = now

    def stop_probe(self, device: torch.device) -> None:
        """A probe has ended, well or not."""
        self._last_probe_seconds = self.seconds_of_probe(device)
        self.probe_seconds += self._last_probe_seconds

    def seconds_of_probe(self, device: torch.device) -> float:
        """How long the present probe has taken."""
        return _now(device) - self._since

    def overhead(self, present: float = 0.0) -> float:
        """Probe time over training time, with the seconds of a present probe."""
        return (self.probe_seconds + present) / self.train_seconds

    def is_affordable(self) -> bool:
        """Whether one more probe like the last stays within the limit; the first always may.

        Probes of two seconds in all always may, too.
        """
        if self.max_overhead is None or self.probe_seconds == 0.0:
            return True
        expected = self.probe_seconds + self._last_probe_seconds
        return expected <= max(self.max_overhead * self.train_seconds, _ALLOWANCE_SECONDS)

    def first_refusal(self) -> str | None:
        """Say why a probe is not made; None if this training has been told so before."""
        if self._has_told or self.max_overhead is None:
            return None
        self._has_told = True
        train, probe = self.train_seconds, self.probe_seconds
        return (
            f"not measured. With another probe of {self._last_probe_seconds:.2g} s, probes would "
            f"take more than `max_overhead`={self.max_overhead:g} of the training time (so far "
            f"{probe:.2g} s of probes in {train:.2g} s of training). This and later steps are left "
            "out until they fit. max_overhead=None measures every one."
        )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was launched is not done yet
    return time.perf_counter()
