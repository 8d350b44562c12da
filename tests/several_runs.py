"""Train several runs, one after another, in the processes that torchrun has started.

    torchrun --nproc_per_node=2 tests/several_runs.py runs.json     # a list of lists of flags

Starting a process costs seconds, and a run of the tests' size takes less than one. The processes
meet once: torchrun's store would give a second group the addresses of the first.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train  # noqa: E402
from plumbing import processes  # noqa: E402

processes.join_processes("cpu")
processes.join_processes = lambda device: None
leave, processes.leave_processes = processes.leave_processes, lambda: None
for flags in json.loads(Path(sys.argv[1]).read_text()):
    train.main(flags)
leave()
