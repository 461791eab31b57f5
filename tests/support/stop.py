"""A stand-in for signals."""


class StopAfter:
    """Asks for a stop after so many steps, as a signal would."""

    def __init__(self, steps: int | None = None) -> None:
        self.left = float("inf") if steps is None else steps + 1  # a run asks before every step

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left <= 0

    def close(self) -> None:
        pass
