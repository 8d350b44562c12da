"""A model in shards: what each process holds, what it sends, and what goes with --fsdp.

That its numbers are those of one process is in test_processes.py. Here one process is told that it
is one of several, by torch's fake process group: what the others would send is its own part again.
"""
import json
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from conftest import REPO
from processes_runs import in_threads, torchrun
from runs import command, one_line
from safetensors.torch import save_file
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import memory
import train
from communication import gathered_bytes, sent_per_step
from engine import load_base, load_shards, save_quantized
from model import ModelConfig, Transformer
from plumbing import processes, shards
from settings import Config, settled

# every number of rows divides by 4, and the scales' scales are a small part of four bits
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 320}


@pytest.fixture
def pretend():
    """pretend(n, rank=0): from here on this process is one of n."""
    def begin(n, rank=0):
        dist.init_process_group("fake", rank=rank, world_size=n, store=FakeStore())
    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


def setting(folder, **changes):
    default = {"model": str(folder), "rank": 4, "micro_bs": 2, "max_length": 16, "fsdp": True,
               "dtype": "float32", "device": "cpu", "grad_accum": 4}
    return settled(Config(**default | changes), 100)


# ----- what each process holds --------------------------------------------------------------------

def local(tensor):
    return tensor.to_local() if processes.is_shard(tensor) else tensor


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_process_keeps_its_rows_of_every_weight(checkpoint, pretend, nf4, tied):
    """The last of three, where neither 32 nor 320 rows divide evenly, nor do four bits' scales."""
    folder = checkpoint(tie_word_embeddings=tied)
    whole = load_base(folder, torch.float32, nf4=nf4)
    whole = dict(whole.named_parameters()) | {
        name: b for name, b in whole.named_buffers()
        if name in whole.state_dict() and b.dtype == torch.uint8}
    pretend(3, rank=2)
    cut = load_shards(folder, torch.float32, torch.device("cpu"), nf4, torch.float32)
    assert all(processes.is_shard(p) for p in cut.parameters())
    cut = dict(cut.named_parameters())
    assert cut.keys() == whole.keys()
    for name, tensor in whole.items():
        rows = -(-len(tensor) // 3)
        assert cut[name].shape == tensor.shape
        assert torch.equal(local(cut[name]), tensor[2 * rows:]), name
        assert cut[name].requires_grad == (tensor.dtype != torch.uint8 and tensor.requires_grad)


def test_scales_in_float32_are_not_gathered_in_16_bits(checkpoint, pretend):
    folder = checkpoint()
    whole = dict(load_base(folder, torch.bfloat16, nf4=True).named_buffers())
    pretend(2, 1)
    cut = load_shards(folder, torch.bfloat16, torch.device("cpu"), True, torch.bfloat16)
    kept = {name: b for name, b in cut.named_buffers() if name.endswith("absmax2")}
    assert len(kept) == 14
    for name, scales in kept.items():
        assert scales.dtype == torch.float32 and torch.equal(scales, whole[name])


def test_a_checkpoint_in_four_bits_is_cut_as_it_is_read(checkpoint, pretend, tmp_path):
    folder = checkpoint(**WIDE)
    model = load_base(folder, torch.float32, nf4=True)
    save_quantized(model, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    pretend(2, 1)
    cut = load_shards(tmp_path, torch.float32, torch.device("cpu"), True, torch.float32)
    held = sum(local(p).nbytes for p in cut.parameters())
    total = sum(t.nbytes for t in model.state_dict().values())
    assert held == pytest.approx(total / 2, rel=1e-3)
    packed = "model.layers.1.mlp.up_proj.weight.packed"
    half = model.state_dict()[packed].chunk(2)[1]
    assert torch.equal(local(dict(cut.named_parameters())[packed]), half)


def test_a_tensor_is_cut_as_its_weight_and_put_together_again(checkpoint, pretend):
    folder = checkpoint()
    pretend(2, 1)
    model = load_shards(folder, torch.float32, torch.device("cpu"), False, torch.float32)
    p = model.model.layers[0].mlp.up_proj.weight                            # (48, 32)
    moment = torch.randn(48, 32)
    assert torch.equal(shards.shard_like(moment, p).to_local(), moment[24:])
    assert shards.shard_like(torch.tensor(3.0), p) == 3         # AdamW's step count is one number
    assert shards.shard_like(moment, torch.zeros(48, 32)) is moment
    assert shards.gather({"p": p}) == {}                        # the first process has it
    dist.destroy_process_group()
    assert shards.gather({"moment": moment})["moment"] is moment


# ----- what is sent: every collective of torch, counted -------------------------------------------

class CountBytes(TorchDispatchMode):
    """Bytes that a process sends in a ring, by collective."""
    def __init__(self, n):
        super().__init__()
        self.part, self.sent = (n - 1) / n, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.overloadpacket.__name__
            largest = max((t.nbytes for t in tree_leaves(args) if torch.is_tensor(t)), default=0)
            if name.strip("_") in ("allgather_base", "reduce_scatter_base"):
                self.sent[name.strip("_")] += self.part * largest       # in parts, or of parts
            elif name.strip("_") in ("allreduce", "all_reduce"):
                self.sent["allreduce"] += 2 * self.part * largest
            else:
                assert name in ("wait_tensor", "barrier", "_wrap_tensor_autograd"), name
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype, checkpointing", [
    ("float32", False), pytest.param("float32", True, marks=pytest.mark.slow),
    pytest.param("bfloat16", False, marks=pytest.mark.slow),
    pytest.param("bfloat16", True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_bytes_sent_in_a_step(checkpoint, pretend, method, fsdp, dtype, checkpointing):
    """Four processes and six micro-batches: two for each, of which some are blank."""
    folder = checkpoint(**WIDE, tie_word_embeddings=False)
    config = setting(folder, method=method, fsdp=fsdp, dtype=dtype, grad_accum=6, rank=64,
                     gradient_checkpointing=checkpointing)
    pretend(4)
    model = train.model_for(config)
    run = train.set_up(config, None, model)
    ids = torch.randint(320, (2, 16))
    with CountBytes(4) as counted:
        train.optimizer_step(model, run.optimizer, run.scaler, [(ids, ids)] * 6, run.autocast,
                             1e-4, grad_clip=1.0)
    expected = sent_per_step(memory.Sizes(ModelConfig.from_pretrained(folder), config, 4), 4)
    counted = counted.sent
    assert counted["allgather_base"] == pytest.approx(expected.get("gathered weights", 0), rel=5e-3)
    gradients = counted["reduce_scatter_base"] + counted["allreduce"]
    assert gradients == pytest.approx(expected["sum of gradients"], rel=5e-3)
    assert (counted["reduce_scatter_base"] > 0) == (fsdp and method == "full")


# ----- the gradient -------------------------------------------------------------------------------

def step_by_gradient(config):
    """A step of plain descent, which a wrong factor of the gradient shows; AdamW's steps hide it.

    Three micro-batches of 6, 30 and 18 supervised tokens -> {name: what is trained, whole}.
    """
    run = train.set_up(config, None, train.model_for(config))
    draw = torch.Generator().manual_seed(0)
    micro_batches = []
    for supervised in (3, 15, 9):
        ids = torch.randint(300, (2, 16), generator=draw)
        labels = ids.clone()
        labels[:, :-supervised] = -100
        micro_batches.append((ids, labels))
    with torch.no_grad():
        for p in run.trained.values():          # B, too, so that A has a gradient
            if config.method != "full":
                p.copy_(0.1 * torch.randn(p.shape, generator=draw))
    descent = torch.optim.SGD(run.trained.values(), lr=1.0)
    train.optimizer_step(run.model, descent, run.scaler, micro_batches, run.autocast, 1.0, 0)
    return shards.gather({name: p.detach() for name, p in run.trained.items()})


@pytest.mark.parametrize("method, fsdp", [
    ("full", False), ("full", True), ("lora", False), ("lora", True), ("qlora", True),
    ("dora", False), ("pissa", False), ("prefix_embedding", False), ("prefix_layer", False)])
def test_the_gradient_of_several_processes_is_that_of_one(checkpoint, monkeypatch, method, fsdp):
    """Summed over the processes, not averaged; sent in many buckets, some of one large tensor."""
    monkeypatch.setattr(processes, "BUCKET", 400)
    config = setting(checkpoint(tie_word_embeddings=True), method=method, fsdp=fsdp)
    one = step_by_gradient(config)
    two, _ = in_threads(2, lambda: step_by_gradient(config))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)


# ----- what goes with --fsdp ----------------------------------------------------------------------

def test_one_process_has_nothing_to_cut(checkpoint, chat, tmp_path):
    """Without torchrun --fsdp changes nothing."""
    argv = command(checkpoint(), chat, tmp_path / "run", "--fsdp", max_steps=1)
    assert len(train.train(train.parse(argv))) == 2


@pytest.mark.parametrize("method", ["dora", "pissa", "prefix_embedding", "prefix_layer"])
def test_methods_that_begin_from_whole_weights_say_so(method, checkpoint, chat, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(command(checkpoint(), chat, tmp_path / "run", "--fsdp", method=method))
    line = one_line(stop.value.code, capsys.readouterr().err)
    assert f"--fsdp does not go with --method {method}" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["adamw8bit", "paged_adamw"])
def test_blocks_of_moments_cannot_be_cut(optimizer, checkpoint, chat, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(command(checkpoint(), chat, tmp_path, "--fsdp", method="full",
                           optimizer=optimizer))
    assert f"--optimizer {optimizer}" in one_line(stop.value.code, capsys.readouterr().err)


# ----- memory: of real processes ------------------------------------------------------------------

STEP = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
import torch
import train
from plumbing import processes
from plumbing.device import peak_gb
from settings import Config, settled
cpu = torch.device("cpu")

def two_steps(config):
    model = train.model_for(config)
    run = train.set_up(config, None, model)
    ids = torch.randint(300, (config.micro_bs, config.max_length))
    for _ in range(2):
        train.optimizer_step(model, run.optimizer, run.scaler, [(ids, ids)] * config.grad_accum,
                             run.autocast, 1e-4, 1.0)

processes.join_processes("cpu")
config = settled(Config(**json.loads(sys.argv[2])), 1)
two_steps(dataclasses.replace(config, model=sys.argv[3], rank=1, max_length=8))
processes.wait_for_all()
before = peak_gb(cpu)
two_steps(config)
sys.stdout.write(json.dumps([before * 1e9, peak_gb(cpu) * 1e9]) + "\\n")    # at once
"""
MIDDLING = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 2048,
            "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 8,
            "vocab_size": 16_000, "tie_word_embeddings": True}


def write_random(folder, hf, dtype):
    """A checkpoint with random weights, without a tokenizer."""
    folder.mkdir(exist_ok=True)
    tensors = {name: torch.empty(p.shape, dtype=dtype).normal_(std=0.02) for name, p in
               Transformer.empty(ModelConfig.from_hf(hf)).named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf))
    return folder


def measured(folder, script, n, argv):
    """[before, peak] of each process's memory in bytes, of a script that prints them."""
    (folder / "measure.py").write_text(script)
    code, out, err = torchrun(n, [REPO, *argv], script=folder / "measure.py",
                              MALLOC_MMAP_THRESHOLD_="65536")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == n
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_memory_of_a_step_is_as_planned(checkpoint, tmp_path, method, fsdp):
    """Two processes with two micro-batches each. In float32, because a CPU's 16-bit products take
    memory of their own."""
    folder = write_random(tmp_path / "model", MIDDLING, torch.float32)
    config = {"model": str(folder), "method": method, "fsdp": fsdp, "dtype": "float32", "rank": 16,
              "device": "cpu", "micro_bs": 1, "grad_accum": 4, "max_length": 64}
    c = ModelConfig.from_pretrained(folder)
    planned = memory.peak_bytes(c, settled(Config(**config), 1), 2)
    for before, peak in measured(tmp_path, STEP, 2, [json.dumps(config), checkpoint()]):
        print(f"{method}, {'shards' if fsdp else 'whole'}: {(peak - before) / 1e6:.0f} MB measured,"
              f" {planned / 1e6:.0f} MB planned")
        assert peak - before == pytest.approx(planned, rel=0.15)


LOADING = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from plumbing import processes
from plumbing.device import peak_gb
from engine import load_shards
folder, nf4 = sys.argv[2], sys.argv[3] == "nf4"
processes.join_processes("cpu")
import torch.distributed.fsdp
cpu = torch.device("cpu")
load_shards(sys.argv[4], torch.bfloat16, cpu, nf4, torch.bfloat16)      # loads what libraries load
processes.wait_for_all()
before = peak_gb(cpu)
load_shards(folder, torch.bfloat16, cpu, nf4, torch.bfloat16)
sys.stdout.write(json.dumps([before * 1e9, peak_gb(cpu) * 1e9]) + "\\n")    # at once
"""
QWEN = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151_936, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def half_billion(tmp_path_factory):
    """A checkpoint of Qwen2.5-0.5B's shapes with random weights: 0.99 GB in bfloat16."""
    return write_random(tmp_path_factory.mktemp("half_billion"), QWEN, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("kind", ["bfloat16", "nf4"])
def test_peak_at_loading_is_the_share_and_a_layer(half_billion, checkpoint, tmp_path, kind, n):
    """Of the process's memory. Of a layer in 16 bits even that is not held, but quantizing one of
    its maps takes float32 and indices of its shape. 0.04 GB are for holes that malloc keeps."""
    c = ModelConfig.from_pretrained(half_billion)
    method = "qlora" if kind == "nf4" else "lora"
    z = memory.Sizes(c, setting(half_billion, method=method, dtype="bfloat16"), n)
    layers, embedding = gathered_bytes(z)
    layer = 4864 * 896 * 24 if kind == "nf4" else layers / z.L
    for before, peak in measured(tmp_path, LOADING, n, [half_billion, kind, checkpoint()]):
        print(f"{kind}, {n} processes: {(peak - before) / 1e9:.3f} GB at the peak of loading; "
              f"share {(layers + embedding) / n / 1e9:.3f}, whole {(layers + embedding) / 1e9:.3f}")
        assert peak - before < (layers + embedding) / n + layer + 0.04e9
