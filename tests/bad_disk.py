"""A program on a disk that is slow, or full for one rank: `python -m tests.bad_disk apps.train config=FILE ...`.

SLOW_DISK: seconds by which opening a file under `checkpoints/`, renaming and removing take longer.
FILE_LIMIT: bytes that no file of rank FILE_LIMIT_RANK (0) may exceed; beyond them writing fails, as on a full disk.
"""

import os
import resource
import runpy
import sys
import time


def main():
    delay = float(os.environ.get("SLOW_DISK", 0))

    def slow(event, args):
        if event in ("os.rename", "os.remove", "os.rmdir") or (event == "open" and "/checkpoints/" in str(args[0])):
            time.sleep(delay)

    if delay:
        sys.addaudithook(slow)
    if os.environ.get("RANK", "0") == os.environ.get("FILE_LIMIT_RANK", "0") and "FILE_LIMIT" in os.environ:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FILE_LIMIT"]),) * 2)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
