"""Paged AdamW against torch's, bit for bit; 8-bit states against what they stand for, their size, and AdamW's own path."""
import copy
import weakref

import pytest
import torch
import torch.nn as nn

import optim
import train
from settings import Config
from optim import OPTIMIZERS
from quant import dequantize_dynamic, dynamic_code

SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6}


def parameters(seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in [(300, 200), (64,), (70, 90), (5000,)]]


def groups(params):
    return [{"params": params[:3], "weight_decay": 0.1}, {"params": params[3:], "weight_decay": 0.0}]


def train_with(name, steps=8, fused=True, params=None, optimizer=None, seed=1):
    """`steps` updates with random gradients, of another size in each row and of which some are missing."""
    params = params or parameters()
    optimizer = optimizer or OPTIMIZERS[name](groups(params), fused=fused, **SETTINGS)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS["lr"] / (step + 1)
        for p in params:
            noise = torch.randn(p.shape, generator=generator)
            noise = noise.to(p.device)
            p.grad = noise * torch.logspace(-3, 0, len(p), device=p.device).view(-1, *[1] * (p.dim() - 1))
        if step == 2:
            params[2].grad = None
        optimizer.step()
    return params, optimizer


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bucket", [1, 6000, 2 ** 24])
@pytest.mark.parametrize("fused", [True, False])
def test_paged_is_adamw_to_the_last_bit(fused, bucket, device, monkeypatch):
    monkeypatch.setattr(optim, "BUCKET", bucket)
    expected, theirs = train_with("adamw", fused=fused, params=parameters(device=device))
    got, ours = train_with("paged_adamw", fused=fused, params=parameters(device=device))
    for state in ours.state.values():
        assert state["exp_avg"].device.type == "cpu" and state["exp_avg"].is_pinned() == (device == "cuda")
    for p, q in zip(expected, got):
        assert torch.equal(p, q) and p.std() > 0
        assert {key: t.tolist() for key, t in theirs.state[p].items()} == {key: t.tolist() for key, t in ours.state[q].items()}


def test_never_more_than_two_buckets_are_on_the_device(monkeypatch):
    """Counted by weak references to what `fetch` returns."""
    alive, most = weakref.WeakSet(), []

    class Watched(dict):
        __hash__ = object.__hash__

    class Optimizer(optim.AdamW):
        def fetch(self, bucket):
            here, event = super().fetch(bucket)
            here = [Watched(state) for state in here]
            alive.update(here)
            most.append(len(alive))
            return here, event

    monkeypatch.setattr(optim, "BUCKET", 1)
    params = parameters()
    train_with("", steps=1, params=params, optimizer=Optimizer(groups(params), paged=True))
    assert most == [1, 2, 2, 2]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_dict_keeps_codes_and_places(name):
    """torch's own load_state_dict would make float32 of every state."""
    params, optimizer = train_with(name, steps=3)
    again = [nn.Parameter(p.detach().clone()) for p in params]
    fresh = OPTIMIZERS[name](groups(again), fused=True, **SETTINGS)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, again):
        for key, t in optimizer.state[p].items():
            assert t.dtype == fresh.state[q][key].dtype and torch.equal(t, fresh.state[q][key])
    a, _ = train_with(name, steps=3, params=params, optimizer=optimizer, seed=5)
    b, _ = train_with(name, steps=3, params=again, optimizer=fresh, seed=5)
    assert all(torch.equal(p, q) for p, q in zip(a, b))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_that_lies_otherwise_in_memory(name):
    """The fused update walks memory, so the moments have to lie as the weight does."""
    p, q = nn.Parameter(torch.randn(64, 100).T), nn.Parameter(torch.empty(100, 64))
    q.data.copy_(p.data)
    assert not p.is_contiguous() and q.is_contiguous()
    generator = torch.Generator().manual_seed(0)
    optimizers = [OPTIMIZERS[name]([x], fused=True, **SETTINGS) for x in (p, q)]
    for _ in range(3):
        g = torch.randn(100, 64, generator=generator)
        p.grad, q.grad = torch.empty_like(p).copy_(g), g
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


def test_buckets_are_of_that_size_and_leave_nothing_out(monkeypatch):
    params = parameters()
    for p in params:
        p.grad = p.detach()
    for size, expected in [(1, [1, 1, 1, 1]), (60064, [2, 2]), (11300, [1, 2, 1]), (2 ** 24, [4])]:
        monkeypatch.setattr(optim, "BUCKET", size)
        runs = optim.buckets(params)
        assert [len(run) for run in runs] == expected and [id(p) for run in runs for p in run] == [id(p) for p in params]
    params[0].grad = None
    assert [len(run) for run in optim.buckets(params)] == [3]


@pytest.mark.parametrize("paged", ["", "paged_"])
def test_eight_bits_are_a_quarter_of_the_size(paged):
    """2 bytes a parameter and 2 float32 scales for 256: 2.03 instead of 8. What is small stays in float32."""
    params, optimizer = train_with(f"{paged}adamw8bit", steps=1)
    for p in params:
        nbytes = sum(t.nbytes for key, t in optimizer.state[p].items() if key != "step")
        assert nbytes == (8 * p.numel() if p.numel() < 4096 else 2 * p.numel() + 8 * -(-p.numel() // 256))


def slow_8bit(p, grads, lrs, weight_decay):
    """AdamW written out, its moments rounded to the nearest of 256 values times their block's largest after each step."""
    def rounded(x, signed, keep):
        rows = nn.functional.pad(x.flatten(), (0, -x.numel() % 256)).view(-1, 256)
        scale = rows.abs().amax(1, keepdim=True)
        code = dynamic_code(signed)[keep:]
        nearest = code[((rows / scale)[..., None] - code).abs().argmin(-1)]
        return (nearest * scale).flatten()[:x.numel()].view_as(x)

    m, v, (b1, b2) = torch.zeros_like(p), torch.zeros_like(p), SETTINGS["betas"]
    for t, (g, lr) in enumerate(zip(grads, lrs), 1):
        p = p * (1 - lr * weight_decay)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - lr * (m / (1 - b1 ** t)) / ((v / (1 - b2 ** t)).sqrt() + SETTINGS["eps"])
        m, v = rounded(m, True, 0), rounded(v, False, 1)
    return p


def test_eight_bits_against_a_slow_twin():
    generator = torch.Generator().manual_seed(0)
    start, grads, lrs = torch.randn(5000, generator=generator), torch.randn(4, 5000, generator=generator), [1e-2, 5e-3, 2e-3, 1e-3]
    p = nn.Parameter(start.clone())
    optimizer = OPTIMIZERS["adamw8bit"]([p], weight_decay=0.1, **SETTINGS)
    for g, lr in zip(grads, lrs):
        p.grad, optimizer.param_groups[0]["lr"] = g, lr
        optimizer.step()
    torch.testing.assert_close(p.detach(), slow_8bit(start, grads, lrs, 0.1), atol=1e-5, rtol=0)
    assert (p.detach() - slow_8bit(start, grads, lrs, 0.0)).abs().max() > 1e-4          # the decay is seen


def test_eight_bits_stay_near_adamw():
    """After eight steps no weight is further from AdamW's than a step is long, and on average a tenth of one."""
    expected, _ = train_with("adamw")
    got, _ = train_with("adamw8bit")
    assert torch.equal(expected[1], got[1])                                             # 64 elements: float32
    for p, q in [(expected[0], got[0]), (expected[3], got[3])]:
        assert 0 < (p - q).abs().mean() < 0.1 * SETTINGS["lr"] and (p - q).abs().max() < 2 * SETTINGS["lr"]


def test_a_small_gradient_beside_a_large_one_makes_no_long_step():
    """v = (3e-5)^2 of its block's largest is under the smallest code: rounded to zero it would make the step m / eps."""
    p = nn.Parameter(torch.zeros(4096))
    optimizer = OPTIMIZERS["adamw8bit"]([p], lr=1e-3, eps=1e-8)
    for _ in range(5):
        p.grad = torch.full((4096,), 3e-5)
        p.grad[::256] = 1.0
        before = p.detach().clone()
        optimizer.step()
        assert (p - before).abs().max() <= 1.5e-3
    codes, absmax = optimizer.state[p]["exp_avg_sq"], optimizer.state[p]["exp_avg_sq_absmax"]
    assert (dequantize_dynamic(codes, absmax, dynamic_code(False)) > 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_was_saved_goes_on_as_if_it_had_never_stopped(name, tmp_path):
    """Through train.py's own file, for which paged and not paged are the same."""
    params, optimizer = train_with(name, steps=3)
    trained = {str(i): p for i, p in enumerate(params)}
    train.save_state(tmp_path / "state", trained, optimizer, {"step": 3})
    again = {str(i): nn.Parameter(torch.zeros_like(p)) for i, p in enumerate(params)}
    other = name.removeprefix("paged_") if name.startswith("paged_") else f"paged_{name}"
    for resumed in (name, other):
        fresh = OPTIMIZERS[resumed](groups(list(again.values())), fused=True, **SETTINGS)
        assert train.load_state(tmp_path / "state", again, fresh) == {"step": 3}
        for p, q in zip(params, again.values()):
            assert torch.equal(p, q)
            assert optimizer.state[p].keys() == fresh.state[q].keys()
            assert all(torch.equal(optimizer.state[p][key], fresh.state[q][key]) for key in optimizer.state[p])
    a, _ = train_with(name, steps=3, params=params, optimizer=optimizer, seed=5)
    b, _ = train_with(other, steps=3, params=list(again.values()), optimizer=fresh, seed=5)
    assert all(torch.equal(p, q) for p, q in zip(a, b))


@pytest.mark.slow
def test_a_hundred_steps_of_full_fine_tuning_on_nano_end_where_adamws_end(tmp_path):
    """Within 1 % of its test NLL, by states of a quarter of the size."""
    settings = {"method": "full", "max_steps": 100, "eval_steps": 100, "eval_samples": 200}
    nll = {}
    for name in ("adamw", "adamw8bit"):
        config = Config(optimizer=name, out=str(tmp_path / name), **settings)
        first, last = train.train(config)
        nll[name] = last["test_nll"]
    assert last["test_nll"] < 0.6 * first["test_nll"]
    assert nll["adamw8bit"] == pytest.approx(nll["adamw"], rel=0.01) and nll["adamw8bit"] != nll["adamw"]
