"""Whether a process runs, for tests of what must not outlive a killed program."""

import os
from pathlib import Path


def is_running(pid: int) -> bool:
    """A zombie does not: it ended, and whoever inherited it has not looked yet."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
