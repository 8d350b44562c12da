"""Paged AdamW against torch's, bit for bit; 8-bit moments against a slow twin, and their size."""
import copy
import weakref
from functools import partial

import pytest
import torch
import torch.nn as nn

import optim
import train
from optim import OPTIMIZERS, expected_tensors, restore_tensor, state_tensors
from plumbing.errors import UserError
from plumbing.state import load_state, save_state
from quant import dequantize_dynamic, dynamic_code
from settings import OPTIMIZER_NAMES, Config

SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6}
SHAPES = [(300, 200), (64,), (70, 90), (5000,)]


def test_the_flag_offers_what_there_is():
    """settings.py loads no torch, so it has the names a second time."""
    assert OPTIMIZER_NAMES == tuple(OPTIMIZERS)


def parameters(seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SHAPES]


def groups(params):
    decayed, rest = params[:3], params[3:]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]


def train_with(name, steps=8, fused=True, params=None, optimizer=None, seed=1):
    """`steps` updates with random gradients, each row of its own size; one gradient is missing."""
    params = params or parameters()
    optimizer = optimizer or OPTIMIZERS[name](groups(params), fused=fused, **SETTINGS)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS["lr"] / (step + 1)
        for p in params:
            noise = torch.randn(p.shape, generator=generator).to(p.device)
            sizes = torch.logspace(-3, 0, len(p), device=p.device)
            p.grad = noise * (sizes if p.dim() == 1 else sizes[:, None])
        if step == 2:
            params[2].grad = None
        optimizer.step()
    return params, optimizer


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


def as_lists(state):
    return {key: t.tolist() for key, t in state.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bucket", [1, 6000, 2 ** 24])
@pytest.mark.parametrize("fused", [True, False])
def test_paged_is_adamw_to_the_last_bit(fused, bucket, device, monkeypatch):
    monkeypatch.setattr(optim, "BUCKET", bucket)
    expected, theirs = train_with("adamw", fused=fused, params=parameters(device=device))
    got, ours = train_with("paged_adamw", fused=fused, params=parameters(device=device))
    for state in ours.state.values():
        assert state["exp_avg"].device.type == "cpu"
        assert state["exp_avg"].is_pinned() == (device == "cuda")
    for p, q in zip(expected, got):
        assert torch.equal(p, q) and p.std() > 0
        assert as_lists(theirs.state[p]) == as_lists(ours.state[q])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_may_be_empty(name):
    """train.py's group of vectors is, under LoRA; a method without matrices has the other one."""
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    OPTIMIZERS[name]([{"params": []}, {"params": [p]}], lr=0.1).step()
    assert (p - 0.899).abs().max() < 1e-5           # decayed by lr 0.01, then a step of lr


def test_never_more_than_two_buckets_are_on_the_device(monkeypatch):
    """Counted by weak references to what `fetch` returns."""
    alive, most = weakref.WeakSet(), []

    class Watched(dict):
        __hash__ = object.__hash__

    class Optimizer(optim.AdamW):
        def fetch(self, bucket):
            states, arrived = super().fetch(bucket)
            states = [Watched(state) for state in states]
            alive.update(states)
            most.append(len(alive))
            return states, arrived

    monkeypatch.setattr(optim, "BUCKET", 1)
    params = parameters()
    train_with("", steps=1, params=params, optimizer=Optimizer(groups(params), paged=True))
    assert most == [1, 2, 2, 2]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_dict_keeps_codes_and_places(name):
    """torch's own load_state_dict would turn the codes into float32."""
    params, optimizer = train_with(name, steps=3)
    again = [nn.Parameter(p.detach().clone()) for p in params]
    fresh = OPTIMIZERS[name](groups(again), fused=True, **SETTINGS)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, again):
        for key, t in optimizer.state[p].items():
            assert t.dtype == fresh.state[q][key].dtype and torch.equal(t, fresh.state[q][key])
    a, _ = train_with(name, 3, params=params, optimizer=optimizer, seed=5)
    b, _ = train_with(name, 3, params=again, optimizer=fresh, seed=5)
    assert all(torch.equal(p, q) for p, q in zip(a, b))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_with_other_strides(name):
    """The fused update goes through memory in order, so the moments need the weight's strides."""
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
        buckets = optim.split_into_buckets(params)
        assert [len(bucket) for bucket in buckets] == expected
        assert [id(p) for bucket in buckets for p in bucket] == [id(p) for p in params]
    params[0].grad = None
    assert [len(bucket) for bucket in optim.split_into_buckets(params)] == [3]


@pytest.mark.parametrize("paged", ["", "paged_"])
def test_eight_bits_are_a_quarter_of_the_size(paged):
    """2 + 8 / 256 = 2.03 bytes per parameter instead of 8; what is small stays in float32."""
    params, optimizer = train_with(f"{paged}adamw8bit", steps=1)
    for p in params:
        nbytes = sum(t.nbytes for key, t in optimizer.state[p].items() if key != "step")
        n = p.numel()
        assert nbytes == (8 * n if n < 4096 else 2 * n + 8 * -(-n // 256))


def test_one_byte_of_a_moment_by_hand():
    """0.003 in a block whose largest is 0.4: the byte 154, which stands for 0.00746875 of it."""
    p = nn.Parameter(torch.zeros(4096))
    p.grad = torch.zeros(4096)
    p.grad[0], p.grad[1] = 4.0, 0.03            # m = (1 - b1) g
    optimizer = OPTIMIZERS["adamw8bit"]([p], betas=(0.9, 0.999))
    optimizer.step()
    state = optimizer.state[p]
    assert state["exp_avg"][:2].tolist() == [255, 154]
    assert state["exp_avg_absmax"][0].item() == pytest.approx(0.4)
    m = optim.dequantize_moment(p, state, "exp_avg")
    assert m[1].item() == pytest.approx(0.0029875, rel=1e-5)


def round_slowly(x, code):
    """Each x to the nearest of `code` times the largest of its block of 256, by all distances."""
    rows = nn.functional.pad(x, (0, -len(x) % 256)).view(-1, 256)
    scale = rows.abs().amax(1, keepdim=True)
    nearest = code[((rows / scale)[..., None] - code).abs().argmin(-1)]
    return (nearest * scale).flatten()[:len(x)]


def adamw_in_8_bits_slowly(p, grads, lrs, weight_decay):
    """AdamW written out, m and v rounded after each step, v never to zero."""
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    b1, b2 = SETTINGS["betas"]
    for t, (g, lr) in enumerate(zip(grads, lrs), 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1 ** t), v / (1 - b2 ** t)
        p = p * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + SETTINGS["eps"])
        m, v = round_slowly(m, dynamic_code(True)), round_slowly(v, dynamic_code(False)[1:])
    return p


def test_eight_bits_against_a_slow_twin():
    generator = torch.Generator().manual_seed(0)
    start, grads = torch.randn(5000, generator=generator), torch.randn(4, 5000, generator=generator)
    lrs = [1e-2, 5e-3, 2e-3, 1e-3]
    p = nn.Parameter(start.clone())
    optimizer = OPTIMIZERS["adamw8bit"]([p], weight_decay=0.1, **SETTINGS)
    for g, lr in zip(grads, lrs):
        p.grad, optimizer.param_groups[0]["lr"] = g, lr
        optimizer.step()
    expected = adamw_in_8_bits_slowly(start, grads, lrs, 0.1)
    torch.testing.assert_close(p.detach(), expected, atol=1e-5, rtol=0)
    without_decay = adamw_in_8_bits_slowly(start, grads, lrs, 0.0)
    assert (p.detach() - without_decay).abs().max() > 1e-4


def test_eight_bits_stay_near_adamw():
    """After eight steps by at most two steps' length, and on average by a tenth of one."""
    expected, _ = train_with("adamw")
    got, _ = train_with("adamw8bit")
    assert torch.equal(expected[1], got[1])                         # 64 elements: float32
    for p, q in [(expected[0], got[0]), (expected[3], got[3])]:
        assert 0 < (p - q).abs().mean() < 0.1 * SETTINGS["lr"]
        assert (p - q).abs().max() < 2 * SETTINGS["lr"]


def test_a_small_gradient_next_to_a_large_one_makes_no_long_step():
    """v = (3e-5)^2 of its block's maximum is below the smallest code. From v = 0 the steps would be
    too long; the last one, where the gradient is 0, would be m / eps."""
    p = nn.Parameter(torch.zeros(4096))
    optimizer = OPTIMIZERS["adamw8bit"]([p], lr=1e-3, eps=1e-8)
    for small in (3e-5, 3e-5, 3e-5, 3e-5, 3e-5, 0.0):
        p.grad = torch.full((4096,), small)
        p.grad[::256] = 1.0
        before = p.detach().clone()
        optimizer.step()
        assert (p - before).abs().max() <= 1.5e-3
    codes, absmax = optimizer.state[p]["exp_avg_sq"], optimizer.state[p]["exp_avg_sq_absmax"]
    assert (dequantize_dynamic(codes, absmax, dynamic_code(False)) > 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_was_saved_goes_on_as_if_it_had_never_stopped(name, tmp_path):
    """Through a file. The paged optimizer and the other one go on alike."""
    params, optimizer = train_with(name, steps=3)
    trained = {str(i): p for i, p in enumerate(params)}
    save_state(tmp_path / "state", state_tensors(trained, optimizer), {"step": 3})
    again = {key: nn.Parameter(torch.zeros_like(p)) for key, p in trained.items()}
    other = name.removeprefix("paged_") if name.startswith("paged_") else f"paged_{name}"
    for resumed in (name, other):
        fresh = OPTIMIZERS[resumed](groups(list(again.values())), fused=True, **SETTINGS)
        expect, give_back = (partial(how, again, fresh)
                             for how in (expected_tensors, restore_tensor))
        assert load_state(tmp_path / "state", expect, give_back) == {"step": 3}
        for p, q in zip(params, again.values()):
            assert torch.equal(p, q)
            assert as_lists(optimizer.state[p]) == as_lists(fresh.state[q])
            for key, t in optimizer.state[p].items():
                assert t.dtype == fresh.state[q][key].dtype
    a, _ = train_with(name, 3, params=params, optimizer=optimizer, seed=5)
    b, _ = train_with(other, 3, params=list(again.values()), optimizer=fresh, seed=5)
    assert all(torch.equal(p, q) for p, q in zip(a, b))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_file_has_all_of_a_parameters_moments_or_none(name, tmp_path):
    """In the form of its number of bits. Otherwise nothing is given back."""
    params, optimizer = train_with(name, steps=3)
    trained = {str(i): p for i, p in enumerate(params)}
    tensors = state_tensors(trained, optimizer)
    bits = 8 if "8" in name else 32
    moments = [key for key in tensors if key.startswith("0/") and key != "0/weight"]
    assert len(moments) == (5 if bits == 8 else 3)
    expect = partial(expected_tensors, trained, optimizer)

    def load(tensors):
        given = []
        save_state(tmp_path / "state", tensors, {})
        try:
            load_state(tmp_path / "state", expect, lambda key, _: given.append(key))
        except UserError:
            assert not given
            return False
        return set(given) == set(tensors)

    def without(*keys):
        return {key: t for key, t in tensors.items() if key not in keys}

    assert load(tensors) and load(without(*moments))
    for key in moments:
        assert not load(without(key))
        assert not load(tensors | {key: tensors[key][None].clone()})
        assert not load(tensors | {key: tensors[key].double()})
    _, other = train_with("adamw" if bits == 8 else "adamw8bit", steps=3, params=params)
    assert not load(state_tensors(trained, other))


@pytest.mark.slow
def test_a_hundred_steps_of_full_fine_tuning_on_nano_end_where_adamws_end(tmp_path):
    """Within 1 % of its test NLL, with moments a quarter as large."""
    settings = {"method": "full", "max_steps": 100, "eval_steps": 100, "eval_samples": 100,
                "micro_bs": 4}
    nll = {}
    for name in ("adamw", "adamw8bit"):
        config = Config(optimizer=name, out=str(tmp_path / name), **settings)
        first, last = train.train(config)
        nll[name] = last["test_nll"]
    assert last["test_nll"] < 0.6 * first["test_nll"]
    assert nll["adamw8bit"] == pytest.approx(nll["adamw"], rel=0.01)
    assert nll["adamw8bit"] != nll["adamw"]
