"""Worker processes of data_prep end with who started them."""

import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import sys, time
from data_prep.workers import make_pool

if __name__ == "__main__":
    pool = make_pool(2)
    pool.submit(time.sleep, 0).result()
    print(*pool._processes, flush=True)
    time.sleep(600)
"""


def lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and whoever inherited it has not looked yet


def test_workers_do_not_outlive_a_killed_program(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert workers
        assert all(map(lives, workers))
        process.kill()
    deadline = time.monotonic() + 60  # a busy machine may take a while
    while any(map(lives, workers)):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)
