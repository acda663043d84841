"""The signals that end a run, as an exception at a moment when nothing is half-done."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Ended(BaseException):
    """A signal arrived. Not an Exception, so that nothing takes it for a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__("ended by a signal")
        self.code = 128 + number


class Signals:
    """Only the first signal counts. Children get the default handlers, as at any exec."""

    def __init__(self) -> None:
        self.depth = 0  # of blocks that must not be interrupted
        self.pending = 0
        self.ignored = False

    def catch(self) -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.receive)

    def receive(self, number: int, _: FrameType | None) -> None:
        self.pending = self.pending or number
        self.check()

    def ignore(self) -> None:
        """From now on the run cleans up."""
        self.ignored = True

    def check(self) -> None:
        if self.pending and not self.depth and not self.ignored:
            self.ignored = True
            raise Ended(self.pending)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal takes effect after the block, also when the block fails."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            self.check()


signals = Signals()
