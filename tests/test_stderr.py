import subprocess
import sys

SCRIPT = r"""
import os, sys
from oasisgen.stderr import without_ray_lines
with without_ray_lines():
    print("before", file=sys.stderr)
    os.write(2, b"[2026-11-25 16:00:01,234 E 123 456] core_worker.cc:2465: Actor with class name: 'X' has arguments\n")
    os.write(2, b"[2026-11-25 16:00:01,234 W 123 456] (raylet) node_manager.cc:12: something\n")
    os.write(2, b"[rank 0] a line of somebody else, with core_worker.cc:2465: in it\n")
    os.write(2, b"no newline at its end")
print(", after", file=sys.stderr)
"""


def test_only_the_lines_of_rays_core_are_left_out() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr == (
        "before\n[rank 0] a line of somebody else, with core_worker.cc:2465: in it\nno newline at its end, after\n"
    )
