"""The batch scripts in examples/: they are sound bash, and do what they say when SLURM runs them.

SLURM's own commands are pretended: `scontrol` names this machine, and `srun` starts the command
once per node, with the variables that SLURM sets in a task.
"""
import os
import shlex
import subprocess
import sys

import pytest
from conftest import REPO
from processes_runs import free_port
from runs import command, numbers, write_chat

from plumbing.records import read_rows

SCRIPTS = sorted((REPO / "examples").glob("*.sbatch"))
SCONTROL = "#!/bin/bash\necho 127.0.0.1\necho another-node\n"
SRUN = """#!/bin/bash
shift                                               # --kill-on-bad-exit=1
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
    SLURM_PROCID=$node SLURM_LOCALID=0 SLURM_STEP_NUM_TASKS=$SLURM_JOB_NUM_NODES "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit; done
"""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_sound_bash(path):
    assert len(SCRIPTS) == 2
    checked = subprocess.run(["bash", "-n", path], text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def run_script(name, argv, tmp_path, **slurm):
    """Run it as SLURM would: from the project's folder, with SLURM's variables and commands."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    interpreter = shlex.quote(sys.executable)
    pretended = {"scontrol": SCONTROL, "srun": SRUN,
                 "torchrun": f'#!/bin/bash\nexec {interpreter} -m torch.distributed.run "$@"\n',
                 "python": f'#!/bin/bash\nexec {interpreter} "$@"\n'}
    for program, text in pretended.items():
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | slurm
    ran = subprocess.run(["bash", REPO / "examples" / name, *map(str, argv)], cwd=REPO, env=env,
                         text=True, capture_output=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_a_run_over_two_nodes(checkpoint, tmp_path):
    """With two processes on each. Submitted again, it says that the run is finished."""
    data = write_chat(tmp_path, n_train=18)
    base = checkpoint(tie_word_embeddings=True)
    # the script's port is 20000 + the job's number % 10000
    slurm = {"SLURM_JOB_ID": str(free_port() % 10000 + 70000), "SLURM_JOB_NODELIST": "two-nodes",
             "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "2", "SLURM_NTASKS": "2"}
    argv = command(base, data, tmp_path / "run", "--fsdp", method="full")
    run_script("train.sbatch", argv, tmp_path, **slurm)
    import train
    train.main(command(base, data, tmp_path / "alone", method="full"))
    for row, other in zip(numbers(tmp_path / "run"), numbers(tmp_path / "alone"), strict=True):
        assert row["test_nll"] == pytest.approx(other["test_nll"], rel=1e-5)
    again = run_script("train.sbatch", argv, tmp_path, **slurm)
    assert again.count("holds this run, finished") == 1


@pytest.mark.slow
def test_a_sweep_as_an_array(checkpoint, tmp_path):
    """Its two elements, one after the other: the first has nothing left for the second to do."""
    data, base = write_chat(tmp_path, n_train=18), checkpoint()
    (tmp_path / "grid.toml").write_text(
        'flags = "--max_steps 2"\n[[rates]]\nmethod = "lora"\nrank = 2\nlr = [1e-3, 2e-3, 4e-3]\n')
    argv = [f"--grid={tmp_path / 'grid.toml'}", f"--model={base}", f"--data={data}",
            f"--out={tmp_path / 'out'}", "--device=cpu"]
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_NTASKS": "1"}
    shown = [run_script("sweep.sbatch", argv, tmp_path, SLURM_ARRAY_TASK_ID=task, **array)
             for task in ("2", "1")]
    # element 2 is rank 1 of 2, so it begins with the second of the three rates, and then helps
    first = next(line for line in shown[0].splitlines() if line.startswith("run 1 of 3"))
    assert "lr=0.002" in first and "3 of 3 runs" in shown[0] and "3 of 3 runs" in shown[1]
    assert "run 1 of 3" not in shown[1]
    rates = {read_rows(path)[-1]["lr"] for path in (tmp_path / "out").glob("*.csv")}
    assert rates == {1e-3, 2e-3, 4e-3}
