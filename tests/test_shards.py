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
from processes_runs import torchrun
from runs import command, one_line
from safetensors.torch import save_file
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import plan
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
def test_the_shards_of_all_processes_are_the_whole(checkpoint, pretend, nf4, tied):
    """Row by row, also where rows do not divide: three processes, 32 or 48 rows, odd scales."""
    folder = checkpoint(tie_word_embeddings=tied)
    whole = load_base(folder, torch.float32, nf4=nf4)
    whole = dict(whole.named_parameters()) | {
        name: b for name, b in whole.named_buffers() if name in whole.state_dict() and b.dim()}
    parts = []
    for rank in range(3):
        pretend(3, rank)
        model = load_shards(folder, torch.float32, torch.device("cpu"), nf4, torch.float32)
        parts.append(dict(model.named_parameters()))
        assert all(processes.is_shard(p) for p in model.parameters())
        dist.destroy_process_group()
    assert parts[0].keys() == whole.keys()
    for name, tensor in whole.items():
        assert parts[1][name].shape == tensor.shape
        assert torch.equal(torch.cat([local(part[name]) for part in parts]), tensor), name
        if tensor.dtype == torch.uint8:
            assert not parts[0][name].requires_grad


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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
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
    expected = sent_per_step(plan.Sizes(ModelConfig.from_pretrained(folder), config, 4), 4)
    counted = counted.sent
    assert counted["allgather_base"] == pytest.approx(expected.get("gathered weights", 0), rel=5e-3)
    gradients = counted["reduce_scatter_base"] + counted["allreduce"]
    assert gradients == pytest.approx(expected["sum of gradients"], rel=5e-3)
    assert (counted["reduce_scatter_base"] > 0) == (fsdp and method == "full")


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


# ----- memory at loading --------------------------------------------------------------------------

MEASURE = """
import json, os, sys
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
print(json.dumps([before * 1e9, peak_gb(cpu) * 1e9]), flush=True)
"""
QWEN = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151_936, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def half_billion(tmp_path_factory):
    """A checkpoint of Qwen2.5-0.5B's shapes with random weights: 0.99 GB in bfloat16."""
    folder = tmp_path_factory.mktemp("half_billion")
    tensors = {name: torch.empty(p.shape, dtype=torch.bfloat16).normal_(std=0.02) for name, p in
               Transformer.empty(ModelConfig.from_hf(QWEN)).named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(QWEN))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("kind", ["bfloat16", "nf4"])
def test_peak_at_loading_is_the_share_and_a_layer(half_billion, checkpoint, tmp_path, kind, n):
    """Of the process's memory. The largest "layer" is the embedding; quantizing one of the layers'
    maps takes float32 and indices of the same shape. 0.05 GB are for holes that malloc keeps."""
    (tmp_path / "measure.py").write_text(MEASURE)
    code, out, err = torchrun(n, [REPO, half_billion, kind, checkpoint()],
                              script=tmp_path / "measure.py", MALLOC_MMAP_THRESHOLD_="65536")
    assert code == 0, err
    c = ModelConfig.from_pretrained(half_billion)
    method = "qlora" if kind == "nf4" else "lora"
    z = plan.Sizes(c, setting(half_billion, method=method, dtype="bfloat16"), n)
    layers, embedding = gathered_bytes(z)
    layer = layers / z.L + (4864 * 896 * 24 if kind == "nf4" else 0)
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == n
    for before, peak in lines:
        print(f"{kind}, {n} processes: {(peak - before) / 1e9:.3f} GB at the peak of loading; "
              f"share {(layers + embedding) / n / 1e9:.3f}, embedding {embedding / 1e9:.3f}, "
              f"whole {(layers + embedding) / 1e9:.3f}")
        assert peak - before < (layers + embedding) / n + embedding + layer + 0.05e9
