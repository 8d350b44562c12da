"""Train several runs, one after another, in the processes that torchrun has started.

    torchrun --nproc_per_node=2 tests/several_runs.py runs.json     # a list of lists of flags

Starting a process costs seconds, and a run of the tests' size takes less than one.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train  # noqa: E402

for flags in json.loads(Path(sys.argv[1]).read_text()):
    train.main(flags)
