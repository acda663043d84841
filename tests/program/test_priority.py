"""What a run does outside the window has a low priority; what it does inside has none."""

from __future__ import annotations

import os

import pytest

from program.host import Host


@pytest.mark.parametrize(
    ("event", "expected"), [("stop", 0), ("capture", 0), ("examine", 10), ("archive", 10)]
)
def test_the_priority_of_the_host_program(host: Host, event: str, expected: int) -> None:
    """Children have the priority of the program that starts them."""
    record = "(STUB / 'priority').write_text(str(os.getpriority(os.PRIO_PROCESS, os.getppid())))"
    host.on(event, f"import os\n{record}")
    host.run().ends_with(0)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert (host.stub / "priority").read_text() == str(max(own, expected))
