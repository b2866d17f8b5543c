"""Worker processes of data_prep end with who started them."""

import subprocess
import sys
import time

from tests.processes import is_running

PROGRAM = """
import sys, time
from data_prep.workers import make_pool

if __name__ == "__main__":
    pool = make_pool(2)
    pool.submit(time.sleep, 0).result()
    print(*pool._processes, flush=True)
    time.sleep(600)
"""


def test_workers_do_not_outlive_a_killed_program(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert workers
        assert all(map(is_running, workers))
        process.kill()
    deadline = time.monotonic() + 60  # a busy machine may take a while
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)
