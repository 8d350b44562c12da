"""The decoder against transformers: same files, same logits, losses, gradients and tokens."""
import contextlib
import functools
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import REPO, TINY
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from lora import apply_lora, lora_layers
from model import (PLAIN_PAYS, Gate, LinearNLL, ModelConfig, Normalise, Transformer, draw_token,
                   left_padding_mask, plain_attention, plain_is_faster)
from plumbing.device import multiplies_bfloat16
from plumbing.errors import UserError

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
MILLION = {"rope_type": "default", "rope_theta": 1e6}
SHARDED = {"shard": "20KB", "rms_norm_eps": 0.1}
CASES = {
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": MILLION}),
    "qwen2-untied-sharded": ("qwen2", {"tie_word_embeddings": False} | SHARDED),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-one-kv-head-sharded": ("qwen3", {"num_key_value_heads": 1} | SHARDED),
    "qwen3-bias": ("qwen3", {"attention_bias": True}),
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama3-scaling": ("llama", {"rope_parameters": LLAMA3, "hidden_size": 64,
                                 "tie_word_embeddings": True}),
    "llama-biases-head-dim": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 20,
                                        "shard": "20KB"}),
}


@pytest.fixture(params=CASES)
def pair(request, checkpoint):
    """(ours, transformers') of the same files."""
    family, changes = CASES[request.param]
    folder = checkpoint(family, **changes)
    return Transformer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def model(checkpoint):
    return Transformer.from_pretrained(checkpoint("qwen2", tie_word_embeddings=True))


def batch(B=3, T=50, seed=0):
    """Random ids, and labels that supervise about half of them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(TINY["vocab_size"], (B, T), generator=generator)
    return ids, ids.where(torch.rand(B, T, generator=generator) < 0.5, -100)


def differ(a, b):
    """The largest difference, relative to the largest entry of b."""
    return ((a - b).abs().max() / b.abs().max()).item()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# ----- parity -------------------------------------------------------------------------------------

def test_logits(pair):
    ours, theirs = pair
    ids, _ = batch()
    with torch.no_grad():
        logits, expected = ours(ids), theirs(ids).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_loss_and_every_gradient(pair):
    ours, theirs = pair
    ids, labels = batch()
    nll, n = ours.loss(ids, labels)
    (nll / n).backward()
    expected = theirs(ids, labels=labels).loss
    expected.backward()
    assert n == (labels[:, 1:] != -100).sum()
    assert abs((nll / n - expected) / expected) < 1e-4
    g, e = gradients(ours), gradients(theirs)
    assert g.keys() == e.keys() == dict(theirs.named_parameters()).keys()
    assert all(e[name].abs().max() > 0 for name in e)
    assert {name: d for name in e if (d := differ(g[name], e[name])) > 1e-4} == {}


def test_tokens_to_the_right_are_not_seen(pair):
    """Padding on the right changes nothing, so training needs no mask."""
    ours, _ = pair
    ids, _ = batch(B=1)
    short = ours(ids[:, :20])
    padded = ours(torch.cat((ids[:, :20], torch.zeros_like(ids)), dim=1))
    torch.testing.assert_close(padded[:, :20], short, atol=1e-5, rtol=0)


def left_padded(rows):
    T = max(map(len, rows))
    ids = torch.tensor([[0] * (T - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def test_greedy_generation_token_for_token(pair):
    """Prompts of different lengths in one batch. The stop tokens are taken from the continuations
    of two of them, so that these end early and the others go on."""
    ours, theirs = pair
    ids, _ = batch(B=4, T=30, seed=1)
    rows = [row[:length] for row, length in zip(ids.tolist(), (30, 3, 17, 1))]
    free = ours.generate(rows, 16)
    stop = {free[1][3 + 4], free[2][17 + 7]}
    got = ours.generate(rows, 16, stop)

    padded, mask = left_padded(rows)
    out = theirs.generate(input_ids=padded, attention_mask=mask, max_new_tokens=16, do_sample=False,
                          eos_token_id=list(stop), pad_token_id=0)
    for row, mine, expected in zip(rows, got, out[:, padded.shape[1]:].tolist()):
        ends = [i + 1 for i, token in enumerate(expected) if token in stop] + [len(expected)]
        assert mine == row + expected[:ends[0]]
    new = [len(mine) - len(row) for row, mine in zip(rows, got)]
    assert min(new) <= 8 and len(set(new)) > 1, new


def test_bfloat16_rounds_where_transformers_rounds(pair):
    ours, theirs = pair
    folder, (ids, _) = theirs.name_or_path, batch()
    theirs16 = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        exact = theirs(ids).logits
        logits = Transformer.from_pretrained(folder, dtype=torch.bfloat16)(ids).float()
        expected = theirs16(ids).logits.float()
    assert (logits - expected).abs().mean() < 0.1 * (expected - exact).abs().mean()


# ----- parts with a backward pass of their own, and their slow twins ------------------------------

def output_and_gradients(function, *inputs, seed=0):
    """-> (output, gradient of each input) for a random gradient that arrives."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    torch.manual_seed(seed)
    return out, *torch.autograd.grad(out, inputs, torch.randn(out.shape).to(out.dtype))


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_rms_norm_has_the_gradients_that_autograd_finds(dtype, within):
    torch.manual_seed(1)
    x, w = 3 * torch.randn(2, 5, 24), 1 + 0.3 * torch.randn(24)

    def twin(x, w):
        return w * x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt()

    got = output_and_gradients(lambda x, w: Normalise.apply(x, w, 1e-2), x.to(dtype), w.to(dtype))
    exact = output_and_gradients(twin, x.to(dtype).double(), w.to(dtype).double())
    for mine, expected in zip(got, exact):
        assert mine.dtype == dtype
        assert (mine.double() - expected).norm() < within * expected.norm()


def test_the_gate_has_autograds_own_numbers():
    torch.manual_seed(1)
    gate, up = torch.randn(2, 7, 40, 24)
    twins = zip(output_and_gradients(Gate.apply, gate, up),
                output_and_gradients(lambda gate, up: F.silu(gate) * up, gate, up))
    assert all(torch.equal(mine, expected) for mine, expected in twins)


@pytest.mark.parametrize("mask", ["causal", "left padding", "none"])
def test_plain_attention_is_torchs(mask):
    torch.manual_seed(1)
    q, k, v = (torch.randn(3, n, 17, 16) for n in (6, 2, 2))
    how = {"enable_gqa": True, "is_causal": mask == "causal"}
    if mask == "left padding":
        how["attn_mask"] = left_padding_mask(torch.tensor([[0], [3], [5]]), torch.arange(17), 17)
    got = output_and_gradients(functools.partial(plain_attention, **how), q, k, v)
    expected = output_and_gradients(
        functools.partial(F.scaled_dot_product_attention, **how), q, k, v)
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    half = [x.bfloat16() for x in (q, k, v)]        # what it is for
    got = output_and_gradients(functools.partial(plain_attention, **how), *half)
    expected = output_and_gradients(functools.partial(F.scaled_dot_product_attention, **how),
                                    *(x.double() for x in half))
    for mine, exact in zip(got, expected):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - exact).norm() < 1e-2 * exact.norm()


def test_one_token_shares_keys_as_many_do(checkpoint):
    """Query heads that share a key are laid one below the other for a single token alone."""
    model = Transformer.from_pretrained(
        checkpoint("qwen3", num_attention_heads=6, head_dim=8, num_key_value_heads=2)).double()
    rows = [[5, 6, 7, 8, 9], [7, 8, 9]]             # the second is padded
    ids, cache = model.start_cache(rows, 1)
    with torch.no_grad():
        model.hidden_after(ids, cache)
        cache.used += ids.shape[1]
        h = model.hidden_after(torch.tensor([[3], [4]]), cache)
        for row, token, mine in zip(rows, (3, 4), h):
            exact = model.hidden(torch.tensor([[*row, token]]))[0, -1]
            torch.testing.assert_close(mine[0], exact, rtol=0, atol=1e-10)


def test_plain_attention_is_taken_for_steps_in_bfloat16_alone(monkeypatch):
    assert PLAIN_PAYS == (multiplies_bfloat16() == "avx512")       # not on AMX
    monkeypatch.setattr("model.PLAIN_PAYS", True)
    assert plain_is_faster("cpu", torch.bfloat16, 384)
    assert not plain_is_faster("cpu", torch.bfloat16, 385)
    assert not plain_is_faster("cpu", torch.float32, 8)
    assert not plain_is_faster("cuda", torch.bfloat16, 8)
    with torch.no_grad():
        assert not plain_is_faster("cpu", torch.bfloat16, 8)
    monkeypatch.setattr("model.PLAIN_PAYS", False)
    assert not plain_is_faster("cpu", torch.bfloat16, 8)


# ----- config.json --------------------------------------------------------------------------------

def classic(hf: dict) -> dict:
    """config.json as transformers 4 wrote it: with rope_theta and rope_scaling."""
    rope = dict(hf["rope_parameters"])
    old = {key: value for key, value in hf.items() if key != "rope_parameters"}
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = rope if rope["rope_type"] == "llama3" else None
    return old


def test_of_two_ropes_transformers_chooses(checkpoint):
    """The old style's counts where a file has both."""
    hf = json.loads((checkpoint() / "config.json").read_text())
    for old in ({"rope_type": "default"}, {"rope_type": "default", "rope_theta": 3e5}):
        both = hf | {"rope_theta": 5e5, "rope_scaling": old,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}
        theirs = AutoConfig.for_model(**both).rope_parameters["rope_theta"]
        assert ModelConfig.from_hf(both).rope_theta == theirs


@pytest.mark.parametrize("case", CASES)
def test_both_styles_of_config_are_the_same_model(case, checkpoint, tmp_path):
    family, changes = CASES[case]
    folder = checkpoint(family, **changes)
    hf = json.loads((folder / "config.json").read_text())
    old = classic(hf)
    a, b = ModelConfig.from_hf(hf), ModelConfig.from_hf(old)
    a.hf = b.hf = {}
    assert a == b and (a.rope_scaling is not None) == (case == "llama3-scaling")

    for file in folder.glob("*.safetensors*"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(old))
    ids, _ = batch()
    with torch.no_grad():
        ours = Transformer.from_pretrained(tmp_path)(ids)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize("change, message", [
    ({"model_type": "gpt2"}, "model_type 'gpt2': it must be qwen2 or qwen3 or"),
    ({"model_type": None}, "model_type null: it must be qwen2"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu': it must be silu"),
    ({"use_sliding_window": True}, "use_sliding_window true: it must be false"),
    ({"quantization_config": {"quant_method": "gptq"}}, "this checkpoint is quantized"),
    ({"rope_parameters": YARN}, "rope_parameters.rope_type 'yarn': it must"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type 'linear': it must be"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic': it must be"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
    ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
])
def test_a_model_that_would_be_computed_differently_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        ModelConfig.from_hf(TINY | {"model_type": "qwen2"} | change)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size",
                                 "num_hidden_layers", "num_attention_heads"])
def test_a_missing_key_is_named(key):
    hf = TINY | {"model_type": "llama"}
    del hf[key]
    with pytest.raises(UserError, match=f"config.json: {key} is missing"):
        ModelConfig.from_hf(hf)


# ----- files --------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_save_pretrained_round_trips_and_opens_in_transformers(pair, dtype, tmp_path):
    ours = pair[0].to(dtype)
    ours.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    weights, expected = again.state_dict(), theirs.state_dict()
    assert weights.keys() == expected.keys() == ours.state_dict().keys()
    for name, p in ours.state_dict().items():
        assert weights[name].dtype == expected[name].dtype == dtype
        assert torch.equal(weights[name], p) and torch.equal(expected[name], p)
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    assert tied == ours.config.tie_word_embeddings


def test_dtype_converts(checkpoint):
    folder = checkpoint("qwen2", tie_word_embeddings=True)
    kept = Transformer.from_pretrained(folder)
    cast = Transformer.from_pretrained(folder, dtype=torch.bfloat16)
    for (name, p), q in zip(kept.named_parameters(), cast.parameters()):
        assert p.dtype == torch.float32 and torch.equal(p.bfloat16(), q), name


# A checkpoint of 200 MB in float32 is loaded, with or without a conversion, and the resident memory
# is read whenever a tensor has been put in its place. Pages of the file that the kernel may drop at
# any time (RssFile) are not counted as memory held: an unconverted model consists of them.
LOAD = """
import re, sys, torch
from model import Transformer
from plumbing.device import DTYPES
def resident(kind):
    status = open("/proc/self/status").read()
    return int(re.search(rf"^{kind}:\\s+(\\d+)", status, re.M)[1]) * 1024
put, anon = Transformer.put, []
def watched(*args):
    put(*args)
    anon.append(resident("RssAnon"))
Transformer.put = watched
Transformer.from_pretrained(sys.argv[3])            # what torch itself loads at the first use
before = resident("RssAnon"), resident("VmRSS")
model = Transformer.from_pretrained(sys.argv[1], dtype=DTYPES.get(sys.argv[2]))
sum(p.view(-1)[::512].float().sum() for p in model.parameters())
size = sum(p.nbytes for p in model.parameters())
print(max(anon) - before[0], resident("VmHWM") - before[1], size)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    hf = TINY | {"model_type": "llama", "vocab_size": 8192, "hidden_size": 1024,
                 "intermediate_size": 4096, "num_hidden_layers": 2}
    Transformer(ModelConfig.from_hf(hf)).save_pretrained(folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", ["as-it-is", "bfloat16"])
def test_loading_never_holds_the_model_twice(large, dtype, checkpoint):
    command = [sys.executable, "-c", LOAD, large, dtype, checkpoint("llama")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    anon, peak, model = map(int, done.stdout.split())
    file = (large / "model.safetensors").stat().st_size
    print(f"{anon=:,} {peak=:,} {model=:,} {file=:,}")
    slack = 30e6                # one tensor on its way: 8192 x 1024 in bfloat16 are 17 MB
    share = 0.5 if dtype == "bfloat16" else 1.0
    assert file > 190e6 and model == pytest.approx(share * file, rel=0.01)
    assert anon < model + slack, f"{anon:,} bytes in addition to the file"
    # while a tensor is read, the mapped part of the file counts here
    assert peak < model + 2 * slack, f"{peak:,} bytes at the peak"


# ----- the loss -----------------------------------------------------------------------------------

def nll_and_gradients(f, h, W, target, factor=0.37):
    """factor is not 1, so that a backward that forgets its argument is seen."""
    h, W = h.clone().requires_grad_(), W.clone().requires_grad_()
    nll = f(h, W, target)
    (nll * factor).backward()
    return nll, h.grad, W.grad


def plain(h, W, target):
    return F.cross_entropy(h @ W.T, target, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 7, 64, 99, 1000])
def test_chunked_nll_is_cross_entropy(chunk, monkeypatch):
    monkeypatch.setattr(LinearNLL, "CHUNK", chunk)
    data = torch.randn(99, 16), torch.randn(50, 16), torch.randint(50, (99,))
    got, expected = nll_and_gradients(LinearNLL.apply, *data), nll_and_gradients(plain, *data)
    for g, e in zip(got, expected):
        assert differ(g, e) < 1e-5


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_chunked_nll_in_16_bits(dtype, limit, monkeypatch):
    monkeypatch.setattr(LinearNLL, "CHUNK", 32)
    h, W = torch.randn(99, 16).to(dtype), torch.randn(50, 16).to(dtype)
    target = torch.randint(50, (99,))
    got = nll_and_gradients(LinearNLL.apply, h, W, target)
    expected = nll_and_gradients(plain, h.float(), W.float(), target)
    assert [t.dtype for t in got] == [torch.float32, dtype, dtype]
    assert [differ(g.float(), e) < limit for g, e in zip(got, expected)] == [True] * 3


@pytest.mark.parametrize("W_dtype", [torch.float16, torch.float32])
def test_small_gradients_survive_float16(W_dtype):
    """Tokens predicted with a confidence of 1 - 5e-5 to 1 - 5e-7, and a gradient scaler's factor.

    Each wrong token has p - y = e^-14 to e^-18.5, 8e-7 to 9e-9. float16 has only multiples of 6e-8
    there. All logits are exact in float16, so the reference in float64 has the same p.
    """
    N, V, C, scaler = 10, 50, 16, 65536.0
    h = torch.zeros(N, C, dtype=torch.float16)
    h[:, 0] = 14 + 0.5 * torch.arange(N)
    W = torch.randn(V, C, generator=torch.Generator().manual_seed(0)).half().to(W_dtype)
    W[:, 0] = -1            # logits: -h[:, 0] for every wrong token ...
    W[0] = 0                # ... and 0 for the target, which therefore adds nothing to dh
    target = torch.zeros(N, dtype=torch.long)
    _, dh, dW = nll_and_gradients(LinearNLL.apply, h, W, target, scaler / N)
    _, dh64, dW64 = nll_and_gradients(plain, h.double(), W.double(), target, scaler / N)
    assert (dh.dtype, dW.dtype) == (torch.float16, W_dtype)
    dh_error = (dh.double() - dh64).norm(dim=1) / dh64.norm(dim=1)          # of each row
    dW_error = (dW[1:].double() - dW64[1:]).norm() / dW64[1:].norm()
    assert dh_error.max() < 0.005 and dW_error < 0.005, (dh_error, dW_error)


def test_bfloat16_does_not_round_the_factor_of_the_gradient():
    """A factor half-way between two bfloat16 numbers: rounded, it would scale dh by 0.3 %."""
    h, W = torch.randn(64, 32).bfloat16(), torch.randn(50, 32)
    target = torch.randint(50, (64,))
    _, exact, _ = nll_and_gradients(LinearNLL.apply, h, W, target, 1.0)
    factor = 181.5 / 2 ** 15                # bfloat16 has 181 and 182
    _, dh, _ = nll_and_gradients(LinearNLL.apply, h, W, target, factor)
    ratio = (dh.double() * exact.double()).sum() / exact.double().square().sum()
    assert ratio.item() == pytest.approx(factor, rel=5e-4)


def test_the_worst_gradient_fits_float16():
    """p = 1 for a wrong token in 600 rows, with weights of the largest size promised, 31.

    Without the scale, dW = 600 * 0.5 = 300; with it, it fits into float32 only.
    """
    W = torch.full((3, 4), -31.0, dtype=torch.float16)
    W[1] = 31
    h, target = torch.full((600, 4), 0.5).half(), torch.zeros(600, dtype=torch.long)
    _, dh, dW = nll_and_gradients(LinearNLL.apply, h, W, target)
    _, dh64, dW64 = nll_and_gradients(plain, h.double(), W.double(), target)
    assert dh64.max() == pytest.approx(2 * 31 * 0.37)
    assert differ(dh.double(), dh64) < 1e-3 and differ(dW.double(), dW64) < 1e-3


@pytest.mark.parametrize("frozen", ["h", "W"])
def test_chunked_nll_with_one_side_frozen(frozen):
    h, W, target = torch.randn(9, 16), torch.randn(50, 16), torch.randint(50, (9,))
    free = W if frozen == "h" else h
    free.requires_grad_()
    LinearNLL.apply(h, W, target).backward()
    got, free.grad = free.grad, None
    plain(h, W, target).backward()
    assert differ(got, free.grad) < 1e-5


def test_nothing_supervised_is_a_loss_of_zero(model):
    ids, labels = batch()
    nll, n = model.loss(ids, torch.full_like(labels, -100))
    nll.backward()
    assert nll == 0 and n == 0
    assert all(g.eq(0).all() for g in gradients(model).values())


def test_a_loss_with_labels_on_the_host_asks_nothing_of_the_device(monkeypatch):
    """On the meta device there are no values that one could ask for, or wait for. Autocast does not
    know it."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model = Transformer.empty(ModelConfig.from_hf(TINY | {"model_type": "qwen2"}))
    ids, labels = batch()
    nll, n = model.loss(ids.to("meta"), labels)
    nll.backward()
    assert n == (labels[:, 1:] != -100).sum()
    assert all(p.grad.is_meta for p in model.parameters())


def test_a_row_without_supervision_adds_nothing(model):
    ids, labels = batch()
    labels[1] = -100
    whole = model.loss(ids, labels)
    rest = model.loss(ids[[0, 2]], labels[[0, 2]])
    assert whole[1] == rest[1] and abs(whole[0] - rest[0]) < 1e-3


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns, and the rows of logits that are
    normalised."""

    def __init__(self):
        super().__init__()
        self.numel = self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if torch.is_tensor(t):
                self.numel = max(self.numel, t.numel())
        if func is torch.ops.aten._log_softmax.default:
            self.rows += out.shape[0]
        return out


@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_tensor_of_all_logits_exists_in_training(method, monkeypatch):
    V, C, B, T, chunk = 4000, 32, 4, 64, 32
    monkeypatch.setattr(LinearNLL, "CHUNK", chunk)
    model = Transformer(ModelConfig.from_hf(TINY | {"model_type": "qwen2", "vocab_size": V}))
    if method == "lora":
        apply_lora(model, 4)
    ids = torch.randint(V, (B, T))
    labels = ids.where(torch.arange(T) >= 16, -100)
    with Largest() as largest:
        nll, n = model.loss(ids, labels)
        nll.backward()
    assert largest.numel == max(chunk, C) * V < B * T * V / 4
    assert largest.rows == n == B * (T - 16)


# ----- the rotary frequencies ---------------------------------------------------------------------

class Copies(TorchDispatchMode):
    """How many tensors are copied from one device to another."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.count += out.device != args[0].device
        return out


def test_the_frequencies_are_moved_to_the_device_once():
    model = Transformer(ModelConfig.from_hf(TINY | {"model_type": "qwen2"})).to("meta")
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    with Copies() as first:
        model(ids)
    with Copies() as second:
        model(ids)
    assert (first.count, second.count) == (1, 0)


def test_the_frequencies_stay_in_float32(model):
    """At position 500 a frequency rounded to bfloat16 would be wrong by up to a radian."""
    before = model.theta.clone()
    model.bfloat16()(batch()[0])
    assert model.theta.dtype == torch.float32 and torch.equal(model.theta, before)


# ----- gradient checkpointing ---------------------------------------------------------------------

@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_gives_the_same_gradients(model, method):
    """With LoRA the embedding is frozen and its output has no gradient. The re-entrant kind of
    checkpointing gives no gradients at all then."""
    if method == "lora":
        torch.manual_seed(0)
        apply_lora(model, 4)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B)
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    ids, labels = batch()

    def step(checkpointing):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        model.loss(ids, labels)[0].backward()
        return {name: g.clone() for name, g in gradients(model).items()}

    expected, got = step(False), step(True)
    assert len(calls) == 3      # once, then twice: in the forward pass and again in the backward
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    count = 2 * 7 * 2 if method == "lora" else len(list(model.parameters()))
    assert list(expected) == trainable and len(trainable) == count
    assert all(g.abs().max() > 0 and torch.equal(got[name], g) for name, g in expected.items())


# ----- generation ---------------------------------------------------------------------------------

def test_generation_with_the_cache_is_generation_without(model):
    ids, _ = batch(B=2, T=12)
    slow = ids
    for _ in range(10):
        slow = torch.cat((slow, model(slow)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(model.generate(ids, 10), slow)


def test_a_tensor_is_filled_up_with_the_stop_token(model):
    ids, _ = batch(B=2, T=12)
    free = model.generate(ids, 10)
    stop = next(token for token in free[0, 12:].tolist() if token not in free[1, 12:])
    end = free[0].tolist().index(stop, 12) + 1
    out = model.generate(ids, 10, {stop})
    assert end < 22 and torch.equal(out[0, :end], free[0, :end]) and out[0, end:].eq(stop).all()
    assert torch.equal(out[1], free[1])
    assert list(map(len, model.generate(ids.tolist(), 10, {stop}))) == [end, 22]
    # nothing more is computed when all have ended
    assert torch.equal(model.generate(ids[:1], 10, {stop}), free[:1, :end])
    assert torch.equal(model.generate(ids, 0), ids)


def test_the_mask_of_left_padding():
    """The mask is the one drawn in its docstring, for all columns and for the last."""
    lines = [line for line in left_padding_mask.__doc__.splitlines() if line.count(" x") >= 3]
    cells = torch.tensor([[cell == "x" for cell in line.split()] for line in lines])    # (4, 15)
    seen = torch.stack([cells[:, 1:5], cells[:, 6:10], cells[:, 11:15]])                # (3, 4, 4)
    pad = torch.tensor([[0], [2], [1]])
    assert torch.equal(left_padding_mask(pad, torch.arange(4), 4), seen[:, None])
    assert torch.equal(left_padding_mask(pad, torch.tensor([3]), 4), seen[:, None, 3:])


def test_finished_sequences_leave_the_batch_when_they_are_half_of_it(model, monkeypatch):
    """One of four ends after the first token, another after the third: then both are evicted."""
    ids, _ = batch(B=4, T=12)
    chosen = iter([[5, 7, 7, 7], [5, 7, 7, 7], [6, 5, 7, 7], [7, 7], [5, 7], [7], [7], [7]])
    monkeypatch.setattr("model.draw_token", lambda *_: torch.tensor(next(chosen))[:, None])
    sizes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda x, *args: sizes.append(len(x)) or hidden(x, *args))
    new = list(model.stream(ids.tolist(), 8, {5}))
    assert sizes == [4, 4, 4, 2, 2, 1, 1, 1]
    assert new == [{0: 5, 1: 7, 2: 7, 3: 7}, {1: 7, 2: 7, 3: 7}, {1: 5, 2: 7, 3: 7},
                   {2: 7, 3: 7}, {2: 5, 3: 7}, {3: 7}, {3: 7}, {3: 7}]


PARAMETERS = [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (0.7, 0.4), (1.0, 0.0)]


@pytest.mark.parametrize("temperature, top_p", PARAMETERS)
def test_sampling_draws_from_the_same_distribution_as_transformers(temperature, top_p):
    torch.manual_seed(3)
    logits, n = 2 * torch.randn(1, 8), 40_000
    p = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    p = TopPLogitsWarper(top_p)(None, p).softmax(-1)[0]
    generator = torch.Generator().manual_seed(0)
    drawn = draw_token(logits.expand(n, -1), temperature, top_p, generator)
    share = drawn[:, 0].bincount(minlength=8) / n
    assert torch.equal(share > 0, p > 0)
    assert ((share - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all(), (share, p)


def test_sampling_depends_on_the_generator_alone(model):
    ids, _ = batch(B=2, T=5)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return model.generate(ids, 12, temperature=1.0, generator=generator)

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    likeliest_only = model.generate(ids, 12, temperature=1.0, top_p=0.0)
    assert torch.equal(likeliest_only, model.generate(ids, 12))
