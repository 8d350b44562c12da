"""On a GPU: the numbers of the CPU. Skipped on a machine without CUDA."""
import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import REPO

import stack
import train
from engine import load_base, mean_nll
from methods import setup_of
from model import left_padding_mask
from plumbing.device import send
from plumbing.records import read_rows
from quant import quantize_nf4
from settings import Config, settled

PROMPTS = [list(range(5, 45)), [7, 8, 9], list(range(100, 111))]
STEPS = 3
# AdaLoRA has a penalty and a hook after the update, prefix_embedding ids beyond the vocabulary.
METHODS = ("lora", "qlora", "full", "dora", "adalora", "prefix_embedding")


@pytest.fixture(autouse=True)
def needs_cuda():
    if not torch.cuda.is_available():       # asked here, so that collecting touches no GPU
        pytest.skip("needs a GPU")


def set_up(chat, device, **changes) -> train.Run:
    config = Config(model="nano", data=str(chat), rank=8, max_steps=STEPS, device=device)
    config = dataclasses.replace(config, **changes)
    data = train.read_data(config)
    config = settled(config, len(data.train_set))
    return train.set_up(config, data, train.model_for(config))


def curve(chat, device, **changes) -> list[float]:
    """The loss of each step, and the test NLL after the last one."""
    run = set_up(chat, device, **changes)
    losses = [train.make_step(run) for _ in range(STEPS)]
    test = train.dataset.micro_batches(run.data.test_set, 4)
    return [*losses, mean_nll(run.model, test, run.autocast)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_three_steps_are_the_cpus(chat, method, dtype, tolerance):
    if method == "qlora":
        tolerance = max(tolerance, 1e-3)    # another rounding of a scale can move a code by one
    expected = curve(chat, "cpu", method=method)
    untrained = curve(chat, "cpu", method=method, lr=1e-9)
    assert abs(expected[-1] - untrained[-1]) > 1e-2     # else the steps would not be compared
    got = curve(chat, "cuda", method=method, dtype=dtype)
    assert got == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("changes", [
    {"gradient_checkpointing": True}, {"optimizer": "paged_adamw"},
    {"optimizer": "paged_adamw8bit"}], ids=str)
def test_what_saves_memory_changes_no_step(chat, changes):
    expected = curve(chat, "cuda", dtype="float32")
    tolerance = 2e-2 if changes.get("optimizer") == "paged_adamw8bit" else 1e-4
    got = curve(chat, "cuda", dtype="float32", **changes)
    assert got == pytest.approx(expected, rel=tolerance)


@pytest.mark.slow
def test_compiled_layers_make_the_same_steps(chat):
    pytest.importorskip("triton")
    torch.compiler.reset()
    got = curve(chat, "cuda", dtype="float32", compile=True)
    assert got == pytest.approx(curve(chat, "cuda", dtype="float32"), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_host_waits_for_no_micro_batch(chat, method):
    """Forward and backward, and an evaluation but for its last number."""
    run = set_up(chat, "cuda", method=method, dtype="bfloat16")
    train.make_step(run)                    # what is made once may wait
    batches = train.dataset.micro_batches(run.data.train_set[:16], 4)
    device = torch.device("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for ids, labels in batches:
            with run.autocast():
                nll, _ = run.model.loss(send(ids, device), labels)
            nll.backward()
        if run.method and run.method.penalty:
            run.method.penalty(run.model, setup_of(run.config)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in run.trained.values())


def test_stacked_runs_are_the_cpus(chat):
    """Four in one pass, of different ranks and rates, next to each alone on the CPU."""
    points = [(1, 1e-2), (4, 1e-3), (8, 3e-3), (8, 1e-4)]
    expected = [curve(chat, "cpu", rank=rank, lr=lr) for rank, lr in points]
    assert len({run[-1] for run in expected}) == 4      # else the runs could be mixed up
    config = Config(model="nano", data=str(chat), max_steps=STEPS, device="cuda", dtype="float32")
    data = train.read_data(config)
    configs = [settled(dataclasses.replace(config, rank=rank, lr=lr), len(data.train_set))
               for rank, lr in points]
    together = stack.stack_runs(configs, data, train.model_for(configs[0]))
    list(stack.stacked_steps(together))
    for run, alone in zip(together.runs, expected):
        assert run.progress.rows[-1]["test_nll"] == pytest.approx(alone[-1], rel=1e-4)


def test_greedy_answers_are_the_cpus():
    """Three prompts, padded on the left; each alone; and by the whole text again per token."""
    on_cpu, model = (load_base("nano", torch.float32, torch.device(device)).eval()
                     for device in ("cpu", "cuda"))
    expected = on_cpu.generate(PROMPTS, 40)
    assert model.generate(PROMPTS, 40) == expected
    assert [model.generate([prompt], 40)[0] for prompt in PROMPTS] == expected
    rows = torch.tensor(expected[:1], device="cuda")
    with torch.no_grad():
        assert model(rows)[0, len(PROMPTS[0]) - 1:-1].argmax(-1).tolist() == \
            expected[0][len(PROMPTS[0]):]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_takes_a_fused_kernel(dtype):
    """Not the mathematical one, which holds all scores in float32."""
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    model = load_base("nano", dtype, torch.device("cuda")).eval()
    pad = torch.tensor([[0], [3]], device="cuda")
    ids, columns = torch.full((2, 40), 5, device="cuda"), torch.arange(40, device="cuda")
    kernels = [torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION,
               torch.nn.attention.SDPBackend.FLASH_ATTENTION]
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(kernels):
        model.hidden(ids, mask=left_padding_mask(pad, columns, 40))
        model.hidden(ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_four_bits_are_read_as_on_the_cpu(dtype):
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 128), (7, 33)):      # the second has a block that is not full
        weight = quantize_nf4(torch.randn(shape, generator=generator))
        expected = weight.dequantize(dtype)
        assert torch.equal(weight.to("cuda").dequantize(dtype).cpu(), expected)


def test_a_sweep_in_two_processes(chat, tmp_path):
    """Both have the GPU, and each run has a peak of its own."""
    grid = tmp_path / "grid.toml"
    grid.write_text('[[rates]]\nmethod = "lora"\nrank = 4\nlr = [1e-3, 3e-3, 1e-2]\n')
    argv = ["sweep.py", "rates", f"--grid={grid}", "--model=nano", f"--data={chat}", "--jobs=2",
            "--max_steps=2", "--eval_steps=2", f"--out={tmp_path / 'out'}"]
    for device in ("cuda", "cuda:0"):
        made = subprocess.run([sys.executable, *argv, f"--device={device}"], cwd=REPO, text=True,
                              capture_output=True)
        assert made.returncode == 0, made.stderr
        files = sorted((tmp_path / "out").glob("*.csv"))
        assert len(files) == 3
        for file in files:
            peaks = [row["peak_gb"] for row in read_rows(file)]
            assert len(peaks) == 2 and all(0 < peak < 10 for peak in peaks)
            file.unlink()
