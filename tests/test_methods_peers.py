"""Each method against an independent one: PEFT's, or the paper's formula written naively."""
import math

import peft
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from adapters import LINEARS, in_peft, logits
from test_methods import adapted, setup, shake
from transformers import AutoModelForCausalLM

from lora import adapted_layers, apply_lora, lora_layers, merge_lora
from methods import find_method, open_adapter, put_on, switch_adapter, trained_parameters
from methods.adalora import PARTS, after_update, budget_at, phases
from methods.dora import DoRALinear
from methods.mora import MoRALinear
from methods.pissa import PiSSALinear
from model import Transformer
from train import make_optimizer, optimizer_step
from settings import Config


def assert_near(mine, theirs, within=1e-4):
    """By the norm of the whole, so that small entries need not be as near."""
    assert theirs.norm() > 0 and (mine - theirs).norm() < within * theirs.norm()


def assert_same_gradients(mine: dict, theirs: dict, ids, *models):
    """Of one loss through both models. mine, theirs: {name: parameter}."""
    for model in models:
        out = model(ids)
        F.cross_entropy(getattr(out, "logits", out).flatten(0, 1)[:-1],
                        ids.flatten()[1:]).backward()
    for name in mine:
        assert_near(mine[name].grad, theirs[name].grad)


@pytest.fixture
def ids():
    return torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(0))


def theirs(folder, config):
    """PEFT's model with everything that it trains shaken."""
    torch.manual_seed(1)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model.eval()


LORA = {"task_type": "CAUSAL_LM", "target_modules": LINEARS}
PEERS = {
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, **LORA),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, **LORA),
    "pissa_rslora": lambda: peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa",
                                            use_rslora=True, **LORA),
    "pissa": lambda: peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", **LORA),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=6, target_r=4, lora_alpha=6, total_step=20, tinit=2, tfinal=6, **LORA),
    "prefix_embedding": lambda: peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5),
}


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("name", PEERS)
def test_peft_in_ours_and_back(checkpoint, name, family, ids, tmp_path):
    """Logits of files both ways: theirs is read here, written again, and read there."""
    folder = checkpoint(family)
    peer = theirs(folder, PEERS[name]())
    peer.save_pretrained(tmp_path / "theirs")
    expected = logits(peer, ids)[:, -20:]
    base = logits(Transformer.from_pretrained(folder), ids)
    assert (expected - base).abs().max() > 0.1              # it does something
    model = Transformer.from_pretrained(folder)
    adapter = open_adapter(tmp_path / "theirs", model)
    switch_adapter(model, adapter, merge=False)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-4)
    how = setup(name.removesuffix("_rslora"), rank=4, alpha=6.0,
                options="init_rank=6" if name == "adalora" else "")
    method = find_method(name.removesuffix("_rslora"))
    method.save(model, tmp_path / "ours", str(folder), how)
    again = in_peft(folder, tmp_path / "ours").eval()
    torch.testing.assert_close(logits(again, ids)[:, -20:], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["dora", "rslora", "pissa", "prefix_embedding"])
def test_gradients_are_pefts(folder, name, ids, tmp_path):
    peer = theirs(folder, PEERS[name]())
    peer.save_pretrained(tmp_path)
    model = Transformer.from_pretrained(folder)
    switch_adapter(model, open_adapter(tmp_path, model), merge=False)
    labels = ids.clone()
    labels[:, 0] = -100         # with virtual tokens PEFT predicts the first token, too
    nll, n = model.loss(ids, labels)
    (nll / n).backward()
    loss = peer(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.testing.assert_close((nll / n).item(), loss.item(), rtol=1e-5, atol=0)
    grads = {n: p.grad for n, p in peer.named_parameters() if p.requires_grad}
    names = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight",
             "magnitude": "lora_magnitude_vector.default.weight"}
    for parameter, p in trained_parameters(model).items():
        layer, _, leaf = parameter.rpartition(".")
        key = ("prompt_encoder.default.embedding.weight" if leaf == "P"
               else f"base_model.model.{layer}.{names[leaf]}")
        difference = (p.grad - grads[key]).norm() / grads[key].norm()
        assert difference < 1e-4, parameter


def train_steps(model, config, method, batches, weight_decay=0.0):
    optimizer = make_optimizer(config, trained_parameters(model), method)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    import contextlib
    for batch in batches:
        optimizer_step(model, optimizer, scaler, [(batch, batch)], contextlib.nullcontext,
                       config.lr, 0)


def test_lora_plus_is_pefts_optimizer(folder, ids):
    """The weights after five steps."""
    from peft.optimizers import create_loraplus_optimizer
    config = Config(model=str(folder), method="loraplus", rank=4, alpha=6.0, lr=1e-3, max_steps=5,
                    device="cpu", options="ratio=7.0")
    model = adapted(folder, "loraplus", rank=4, options="ratio=7")
    peer = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder),
                               peft.LoraConfig(r=4, lora_alpha=6, **LORA))
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            there = peer.get_submodule(f"base_model.model.{name}")
            nn.init.normal_(layer.lora_B, std=0.1)
            there.lora_A.default.weight.copy_(layer.lora_A)
            there.lora_B.default.weight.copy_(layer.lora_B)
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(320, (2, 20), generator=generator) for _ in range(5)]
    train_steps(model, config, find_method("loraplus"), batches)
    optimizer = create_loraplus_optimizer(
        peer, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=7, weight_decay=0.0)
    for batch in batches:
        peer(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, layer in lora_layers(model).items():
        there = peer.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(layer.lora_A, there.lora_A.default.weight, rtol=0, atol=2e-5)
        torch.testing.assert_close(layer.lora_B, there.lora_B.default.weight, rtol=0, atol=2e-5)


# ----- DoRA ---------------------------------------------------------------------------------------

def test_dora_is_equation_5_and_a_random_length_scales_a_row(folder):
    model = shake(adapted(folder, "dora"))
    layer = adapted_layers(model)["model.layers.0.mlp.up_proj"]
    x = torch.randn(3, layer.base.in_features)
    V = layer.base.weight + 2.0 * layer.lora_B @ layer.lora_A               # s = 6 / 3
    W = torch.stack([m * row / row.norm() for m, row in zip(layer.magnitude, V)])
    torch.testing.assert_close(layer(x), x @ W.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.weight, W, rtol=0, atol=1e-5)


def test_a_small_change_of_a_length_survives_bfloat16():
    """c = 1.003 would be rounded to 1 in bfloat16, where 1 has steps of 0.8 %."""
    base = nn.Linear(64, 32).to(torch.bfloat16)
    layer = DoRALinear(base, 4, 4.0)
    x = torch.randn(256, 64, dtype=torch.bfloat16)
    before = layer(x).float()
    layer.magnitude.data *= 1.003
    grown = ((layer(x).float() - before) * (before - base.bias.float())).sum()
    assert 0.0025 < grown / (before - base.bias.float()).square().sum() < 0.0035


def test_a_row_of_zeros_stays_one():
    layer = DoRALinear(nn.Linear(8, 3), 2, 2.0)
    layer.base.weight.data[1] = 0
    layer = DoRALinear(layer.base, 2, 2.0)
    assert layer(torch.randn(5, 8)).isfinite().all() and layer.delta().isfinite().all()


# ----- PiSSA --------------------------------------------------------------------------------------

@pytest.mark.parametrize("niter, atol", [(0, 1e-5), (16, 2e-3)])
def test_pissa_takes_the_largest_directions_out_of_W(niter, atol):
    torch.manual_seed(0)
    base = nn.Linear(40, 30)
    U, V = (torch.linalg.qr(torch.randn(size, 30)).Q for size in (30, 40))
    base.weight.data = (U * 0.8 ** torch.arange(30)) @ V.T      # a randomized SVD needs a decay
    layer = PiSSALinear(base, 6, 9.0, niter)
    S = torch.linalg.svdvals(base.weight.detach().double())
    residual = base.weight - 1.5 * layer.B0 @ layer.A0
    left = torch.linalg.svdvals(residual.detach().double())
    torch.testing.assert_close(left[:24], S[6:], rtol=0, atol=atol)
    root = torch.linalg.svdvals(layer.lora_A.detach().double())
    torch.testing.assert_close(root, (S[:6] / 1.5).sqrt(), rtol=0, atol=atol)


def test_pissa_begins_as_pefts(folder):
    """The residual is the same. (Two randomized SVDs of matrices as random as these differ.)"""
    model = adapted(folder, "pissa", rank=4)
    peer = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), PEERS["pissa"]())
    for name, layer in lora_layers(model).items():
        residual = layer.base.weight - layer.scale * layer.B0 @ layer.A0
        theirs = peer.get_submodule(f"base_model.model.{name}").base_layer.weight
        torch.testing.assert_close(residual, theirs, rtol=0, atol=1e-5)
        assert (residual - layer.base.weight).abs().max() > 1e-2


def test_pissa_without_its_residual_would_count_W_twice(folder, ids, tmp_path):
    """The pitfall: the trained A and B on the untouched base. What is saved is another adapter."""
    model = adapted(folder, "pissa", rank=4)
    untouched = logits(Transformer.from_pretrained(folder), ids)
    method = find_method("pissa")
    method.save(model, tmp_path, str(folder), setup("pissa", rank=4))
    torch.testing.assert_close(logits(in_peft(folder, tmp_path), ids), untouched, rtol=0, atol=1e-4)
    plain = Transformer.from_pretrained(folder)
    apply_lora(plain, 4, 6.0)
    with torch.no_grad():
        for name, layer in lora_layers(plain).items():
            layer.lora_A.copy_(lora_layers(model)[name].lora_A)
            layer.lora_B.copy_(lora_layers(model)[name].lora_B)
    assert (logits(plain, ids) - untouched).abs().max() > 0.5


# ----- AdaLoRA ------------------------------------------------------------------------------------

def test_adalora_ranks_as_peft_over_a_run(folder, tmp_path):
    """From the same start: scores at each step, what is off, and the ranks that survive."""
    steps, alpha = 20, 6
    how = setup("adalora", rank=2, alpha=alpha, options="init_rank=4", steps=steps)
    first, last = phases(steps)
    model = Transformer.from_pretrained(folder)
    method = find_method("adalora")
    torch.manual_seed(5)
    put_on(model, method, how)
    peer = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=alpha, total_step=steps, tinit=first,
        tfinal=steps - last, deltaT=1, orth_reg_weight=0.5, **LORA))
    layers = adapted_layers(model)
    there = {name: peer.get_submodule(f"base_model.model.{name}") for name in layers}
    with torch.no_grad():
        for name, layer in layers.items():
            for part, theirs in PARTS.items():
                getattr(there[name], theirs).default.copy_(getattr(layer, part))
    ours_adam = torch.optim.AdamW(trained_parameters(model).values(), 1e-2, weight_decay=0)
    their_adam = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], 1e-2,
                                   weight_decay=0)
    allocator = peer.base_model.rankallocator
    generator = torch.Generator().manual_seed(3)
    for step in range(1, steps + 1):
        ids = torch.randint(320, (2, 20), generator=generator)
        nll, n = model.loss(ids, ids)
        loss = nll / n + method.penalty(model, how)
        loss.backward()
        their_loss = peer(input_ids=ids, labels=ids).loss
        their_loss.backward()
        torch.testing.assert_close(loss.item(), their_loss.item(), rtol=1e-4, atol=0)
        ours_adam.step()
        their_adam.step()
        after_update(model, step, how)
        peer.base_model.update_and_allocate(step)
        ours_adam.zero_grad()
        their_adam.zero_grad()
        if step < last:
            for name, layer in layers.items():
                for part, theirs in PARTS.items():
                    key = f"{name}.{theirs}.default"
                    for mine, peers in (("I", allocator.exp_avg_ipt), ("U", allocator.exp_avg_unc)):
                        assert_near(getattr(layer, f"{mine}_{part}"), peers[key])
        on = {name: layer.on[:, 0].tolist() for name, layer in layers.items()}
        if step > first:
            pattern = peer.peft_config["default"].rank_pattern
            assert on == {name: pattern[f"{name}.lora_E.default"] for name in on}, step
            assert sum(map(sum, on.values())) == budget_at(step, how, len(layers))
    ranks = [sum(some) for some in on.values()]
    assert sum(ranks) == 2 * len(layers) and min(ranks) < max(ranks)
    for name, layer in layers.items():
        theirs = there[name].get_delta_weight("default")
        if any(on[name]):
            assert_near(layer.delta(), theirs)
        else:
            assert not layer.delta().any() and not theirs.any()
    # files of ranks that differ, both ways
    method.save(model, tmp_path / "ours", str(folder), how)
    peer.save_pretrained(tmp_path / "theirs")
    expected = logits(model, ids)
    assert (expected - logits(Transformer.from_pretrained(folder), ids)).abs().max() > 1e-3
    torch.testing.assert_close(logits(in_peft(folder, tmp_path / "ours"), ids), expected,
                               rtol=0, atol=1e-4)
    here = switch_adapter(Transformer.from_pretrained(folder), open_adapter(tmp_path / "theirs"))
    torch.testing.assert_close(logits(here, ids), expected, rtol=0, atol=1e-4)


def test_adalora_ignores_a_step_that_overflows(folder, ids):
    """As AdamW does under a gradient scaler; then the budget is what it would be."""
    how = setup("adalora", rank=2, options="init_rank=4", steps=20)
    model = shake(adapted(folder, "adalora", rank=2, options="init_rank=4"))
    for step in range(1, 21):
        model.loss(ids, ids)[0].backward()
        if step == 1:
            next(iter(trained_parameters(model).values())).grad[0] = math.inf
        after_update(model, step, how)
        for p in trained_parameters(model).values():
            p.grad = None
    on = sum(int(layer.on.sum()) for layer in adapted_layers(model).values())
    assert on == budget_at(20, how, 14) == 28


@pytest.mark.parametrize("step, budget", [
    (0, 120), (2, 120), (3, 110), (8, 85), (14, 80), (20, 80)])
def test_the_budget_falls_as_a_cubic(step, budget):
    """20 steps, 20 targets: 6 each until step 2, 4 each from step 14."""
    how = setup("adalora", rank=4, options="init_rank=6", steps=20)
    assert budget_at(step, how, 20) == budget


# ----- MoRA ---------------------------------------------------------------------------------------

def naive_mora(size_in, size_out, M, form):
    """dW (out, in) entry by entry, from equations 6 and 9."""
    k = len(M)
    n = math.ceil(size_in / k)
    W = torch.zeros(size_out, size_in, dtype=torch.float64)
    for o in range(size_out):
        for i in range(size_in):
            if form == "sharing":
                W[o, i] = M[o % k, i // n]
                continue
            piece, column = i // k, i % k
            if (o // k) % n != piece:
                continue
            pair, second = column % (k // 2), column >= k // 2
            angle = piece * 10000.0 ** (-2 * pair / k)
            first_row, second_row = M[o % k, pair], M[o % k, pair + k // 2]
            if second:      # b: it goes into a as -sin, into b as cos
                W[o, i] = -first_row * math.sin(angle) + second_row * math.cos(angle)
            else:
                W[o, i] = first_row * math.cos(angle) + second_row * math.sin(angle)
    return W


@pytest.mark.parametrize("form", ["sharing", "rotation"])
@pytest.mark.parametrize("size_in, size_out, rank", [
    (32, 32, 2), (32, 48, 3), (48, 32, 3), (31, 7, 2), (7, 31, 2), (16, 16, 8), (5, 5, 30)])
def test_mora_is_the_dense_matrix_that_it_stands_for(form, size_in, size_out, rank):
    layer = MoRALinear(nn.Linear(size_in, size_out), rank, alpha=2.0 * rank, form=form)
    nn.init.normal_(layer.M)
    k = len(layer.M)
    assert k == math.isqrt(rank * (size_in + size_out)) // (2 if form == "rotation" else 1) * (
        2 if form == "rotation" else 1)
    dW = 2 * naive_mora(size_in, size_out, layer.M.detach().double(), form)
    torch.testing.assert_close(layer.delta().double(), dW, rtol=0, atol=1e-5)
    x, dy = torch.randn(4, 3, size_in), torch.randn(4, 3, size_out)
    y = layer(x)
    torch.testing.assert_close(y - layer.base(x), x @ dW.float().T, rtol=0, atol=1e-4)
    y.backward(dy)
    M = layer.M.detach().double().requires_grad_()
    (2 * x.double() @ naive_mora(size_in, size_out, M, form).T).backward(dy.double())
    assert_near(layer.M.grad.double(), M.grad)


@pytest.mark.parametrize("form, rank", [("sharing", 22), ("rotation", 64)])
def test_the_rank_of_mora_is_above_r(form, rank):
    layer = MoRALinear(nn.Linear(64, 64), 4, 4.0, form)
    nn.init.normal_(layer.M)
    assert len(layer.M) == 22 and layer.M.numel() <= 4 * 128
    assert torch.linalg.matrix_rank(layer.delta()) == rank


# ----- BitFit, prefixes, adapter layers -----------------------------------------------------------

def test_bitfit_is_pytorch_with_everything_else_frozen(checkpoint):
    """Five steps on q, k and v, which have biases in Qwen2."""
    folder = checkpoint("qwen2")
    targets = "q_proj,k_proj,v_proj"
    model = adapted(folder, "bitfit", targets=targets)
    peer = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    biases = [p.requires_grad_(True) for n, p in peer.named_parameters() if n.endswith("bias")]
    adam = torch.optim.AdamW(biases, 1e-2, weight_decay=0.0)
    config = Config(method="bitfit", rank=4, alpha=4.0, lr=1e-2, max_steps=5, device="cpu")
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(320, (2, 20), generator=generator) for _ in range(5)]
    train_steps(model, config, find_method("bitfit"), batches)
    for batch in batches:
        peer(input_ids=batch, labels=batch).loss.backward()
        adam.step()
        adam.zero_grad()
    for name, layer in adapted_layers(model).items():
        torch.testing.assert_close(layer.bias, peer.get_submodule(name).bias.detach(), rtol=0,
                                   atol=2e-5)
    merge_lora(model)
    torch.testing.assert_close(logits(model, batches[0]), logits(peer, batches[0]), rtol=0,
                               atol=1e-4)


def naive_prefix(model, ids):
    """Layer by layer on one sequence, with the virtual tokens written into each layer's output."""
    inner = model.model
    prefix = inner.embed_tokens.P
    x = torch.cat((prefix, inner.embed_tokens.base(ids)))[None]
    T = x.shape[1]
    angles = torch.arange(T)[None, None, :, None] * model.theta
    for layer in inner.layers:
        x = getattr(layer, "base", layer)(x, angles.cos(), angles.sin())
        if hasattr(layer, "P"):
            x = torch.cat((layer.P[None], x[:, len(prefix):]), 1)
    return model.lm_head(inner.norm(x))[0, len(prefix):]


@pytest.mark.parametrize("name", ["prefix_embedding", "prefix_layer"])
def test_prefixes_are_a_naive_loop(folder, name, ids):
    model = shake(adapted(folder, name, rank=5))
    for row in ids:
        torch.testing.assert_close(logits(model, ids[:1] * 0 + row)[0], naive_prefix(model, row),
                                   rtol=0, atol=1e-4)
    trained, grads = trained_parameters(model), []
    for run in (lambda: model(ids[:1])[0], lambda: naive_prefix(model, ids[0])):
        F.cross_entropy(run()[:-1], ids[0, 1:]).backward()
        grads.append({name: p.grad.clone() for name, p in trained.items()})
        model.zero_grad()
    for key in trained:
        assert_near(grads[0][key], grads[1][key])


@pytest.mark.parametrize("name", ["prefix_embedding", "prefix_layer"])
def test_the_loss_of_a_prefix_ignores_padding_and_virtual_tokens(folder, name, ids):
    """A row padded on the right has the loss that it has alone; labels count text alone."""
    model = shake(adapted(folder, name, rank=5))
    short, labels = ids[:1, :8], ids.clone()
    labels[0, 8:] = -100
    padded = ids.clone()
    padded[0, 8:] = 0
    alone, n_alone = model.loss(short, short)
    other, n_other = model.loss(ids[1:], ids[1:])
    both, n = model.loss(padded, labels)
    assert (n_alone, n_other, n) == (7, 19, 26)
    torch.testing.assert_close(both, alone + other, rtol=1e-5, atol=0)


def test_prefix_layer_begins_as_prefix_embedding(folder, ids):
    torch.testing.assert_close(logits(adapted(folder, "prefix_layer"), ids),
                               logits(adapted(folder, "prefix_embedding"), ids), rtol=0, atol=1e-5)


def test_adapter_layers_are_a_naive_module(folder, ids):
    model = shake(adapted(folder, "adapter", rank=5))
    peer = AutoModelForCausalLM.from_pretrained(folder)
    mine, theirs = {}, {}
    for k, layer in enumerate(peer.model.layers):
        for part in ("self_attn", "mlp"):
            block = model.get_submodule(f"model.layers.{k}.{part}")
            bottleneck = nn.Sequential(nn.Linear(32, 5), nn.GELU(), nn.Linear(5, 32))
            with torch.no_grad():
                for p, q in zip(bottleneck.parameters(), (block.down, block.down_bias, block.up,
                                                          block.up_bias)):
                    p.copy_(q)
                    mine[k, part, p.shape], theirs[k, part, p.shape] = q, p

            def behind(module, args, output, bottleneck=bottleneck):
                h = output[0] if isinstance(output, tuple) else output
                h = h + bottleneck(h)
                return (h, *output[1:]) if isinstance(output, tuple) else h

            getattr(layer, part).register_forward_hook(behind)
    torch.testing.assert_close(logits(model, ids), logits(peer, ids), rtol=0, atol=1e-4)
    assert_same_gradients(mine, theirs, ids, model, peer)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    assert trained == 2 * 2 * (2 * 32 * 5 + 5 + 32)
