"""Training on several processes: the numbers of one, whatever the shares; and how it goes wrong."""
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPO
from runs import command, numbers, write_chat
from safetensors.torch import load_file

from plumbing import processes
from plumbing.files import read_json


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """18 samples of very different lengths: batches of 8, 8 and 2, so that some share is empty."""
    return write_chat(tmp_path_factory.mktemp("uneven"), n_train=18)


def torchrun(n, argv, wait=True, **env):
    """`torchrun --nproc_per_node=N train.py ...` on a port of its own."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    line = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}",
            f"--master_port={port}", str(REPO / "train.py"), *map(str, argv)]
    process = subprocess.Popen(line, env=os.environ | env, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)
    if wait:
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err
    return process


def weights(out):
    return load_file(next(out.glob("*model.safetensors")))


SETTINGS = {"lora": {}, "full": {"method": "full", "lr": 2e-3}, "qlora": {"method": "qlora"},
            "adalora": {"method": "adalora", "max_steps": 10}}


@pytest.fixture(scope="module")
def alone(checkpoint, uneven, tmp_path_factory):
    """alone(name) -> the folder of the run on one process, made once."""
    import train
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("alone") / name
            train.main(argv_of(name, checkpoint, uneven, made[name]))
        return made[name]
    return make


def argv_of(name, checkpoint, uneven, out, *flags):
    how = {"micro_bs": 2, "warmup_ratio": 0.2, "schedule": "cosine"} | SETTINGS[name]
    return command(checkpoint(), uneven, out, *flags, **how)


@pytest.mark.parametrize("name, n", [
    ("lora", 3), pytest.param("lora", 2, marks=pytest.mark.slow),
    pytest.param("full", 2, marks=pytest.mark.slow),
    pytest.param("qlora", 3, marks=pytest.mark.slow),
    pytest.param("adalora", 2, marks=pytest.mark.slow)])
def test_several_processes_give_the_numbers_of_one(checkpoint, uneven, alone, name, n, tmp_path):
    """A step has four micro-batches, or one at the epoch's end: a process may have nothing."""
    code, out, err = torchrun(n, argv_of(name, checkpoint, uneven, tmp_path / "run"))
    assert code == 0, err
    expected, got = numbers(alone(name)), numbers(tmp_path / "run")
    assert len(got) == len(expected) > 3
    for row, other in zip(expected, got):
        for column, value in row.items():
            if isinstance(value, float):
                assert other[column] == pytest.approx(value, rel=1e-5), column
            else:
                assert other[column] == value
    ours, theirs = weights(alone(name)), weights(tmp_path / "run")
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-4, atol=2e-5)
    assert out.count("the first sample") == 1 and out.count("question ") == 1   # one speaks
    assert read_json(tmp_path / "run/run.json")["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [(2, 1), (1, 3)])
def test_a_run_goes_on_on_another_number_of_processes(
        checkpoint, uneven, alone, first, second, tmp_path):
    """Killed after its second evaluation or later."""
    out = tmp_path / "run"
    argv = argv_of("lora", checkpoint, uneven, out, "--max_steps=40")
    process = torchrun(first, argv, wait=False)
    log = out / "log.csv"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, _, err = torchrun(second, [*argv, "--resume"])
    assert code == 0, err
    import train
    train.main(argv_of("lora", checkpoint, uneven, tmp_path / "whole", "--max_steps=40"))
    for row, other in zip(numbers(tmp_path / "whole"), numbers(out), strict=True):
        assert other["test_nll"] == pytest.approx(row["test_nll"], rel=1e-4)


def test_a_finished_run_says_so_once(checkpoint, uneven, tmp_path):
    argv = argv_of("lora", checkpoint, uneven, tmp_path / "run")
    assert torchrun(2, argv)[0] == 0
    code, out, _ = torchrun(2, argv)
    assert code == 0 and out.count("holds this run, finished") == 1


@pytest.mark.slow
def test_a_process_that_dies_ends_all_and_the_run_goes_on(checkpoint, uneven, alone, tmp_path):
    out = tmp_path / "run"
    argv = argv_of("lora", checkpoint, uneven, out, "--max_steps=300")
    process = torchrun(2, argv, wait=False)
    log = out / "log.csv"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], text=True, capture_output=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    begun = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - begun < 60
    code, _, err = torchrun(2, [*argv[:-1], "--max_steps=300", "--resume"])
    assert code == 0, err


def test_a_port_that_is_taken_ends_in_one_line(checkpoint, uneven, tmp_path):
    """Of a process that is told, as torchrun tells it, to open a port that another one has."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": str(s.getsockname()[1])}
        argv = argv_of("lora", checkpoint, uneven, tmp_path / "run")
        done = subprocess.run([sys.executable, REPO / "train.py", *map(str, argv)], text=True,
                              env=os.environ | env, capture_output=True, timeout=60)
    assert done.returncode == 2 and "the processes cannot meet" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_processes_with_other_data_are_told(checkpoint, uneven, chat, tmp_path):
    """Two processes by hand, with one port and other data."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank, data in enumerate((uneven, chat)):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        argv = command(checkpoint(), data, tmp_path / "run")
        started.append(subprocess.Popen(
            [sys.executable, REPO / "train.py", *map(str, argv)], text=True,
            env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2 and "have different settings" in err


def test_with_one_process_nothing_is_communicated():
    p = torch.nn.Parameter(torch.ones(3))
    processes.sum_gradients([p])
    assert p.grad is None and processes.take_share([1, 2, 3]) == [1, 2, 3]
    assert processes.sum_over_processes(2.5, 3) == [2.5, 3] and processes.world() == 1


def test_gradients_are_sent_in_buckets():
    tensors = [torch.zeros(n) for n in (5, 4, 3, 20, 1)]
    processes_bucket, processes.BUCKET = processes.BUCKET, 10
    try:
        sizes = [[t.numel() for t in bucket] for bucket in processes.buckets_of(tensors)]
    finally:
        processes.BUCKET = processes_bucket
    assert sizes == [[5, 4], [3], [20], [1]]
