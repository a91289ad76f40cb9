"""A fork server for programs: `python -m meshgate_forks CONTROL LISTENER FOLDER MODULE…`, see `forking`.

What it becomes is begun from here, so that as little as possible of ours is below the program's frames.
"""
# ruff: noqa: INP001 - no package: it lies where PYTHONPATH leads

import importlib
import sys

if __name__ == "__main__":
    begin = importlib.import_module("_meshgate_child.forking").main(sys.argv[1:])
    if begin is not None:
        begin()
