"""bench.py: what is counted, where the time is said to go, and two sides in turn."""
import json

import pytest
from conftest import REPO
from runs import one_line
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bench
import dataset
import train
from plumbing.errors import UserError
from settings import Config


def flags(model, data, **more):
    settings = {"model": model, "data": data, "rank": 4, "micro_bs": 2, "grad_accum": 2,
                "device": "cpu"} | more
    return [f"--{name}={value}" for name, value in settings.items()]


def run_of(model, data, method, **more):
    return bench.start_run(Config(model=str(model), data=str(data), method=method, rank=4,
                                  device="cpu", dtype="float32", **more))


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_the_flops_that_a_step_needs_are_those_that_torch_counts(checkpoint, chat, method):
    run = run_of(checkpoint("llama"), chat, method)
    samples = bench.next_samples(run)
    one_by_one = dataset.micro_batches(samples, 1)          # nothing is padded
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        train.optimizer_step(run.model, run.optimizer, run.scaler, one_by_one, run.autocast, 1e-4,
                             1.0)
    counted = counter.get_total_flops()
    # torch counts all T^2 scores, and we the half that a causal mask leaves
    c = run.model.config
    query = c.num_attention_heads * c.head_dim * c.num_hidden_layers
    masked = 3 * 2 * query * sum(len(sample.ids) ** 2 for sample in samples)
    # the lowest layer needs no dx: nothing trained lies below it. With LoRA that is q, k, v's
    tokens = sum(len(sample.ids) for sample in samples)
    lowest = 0
    if method != "full":
        attention = run.model.model.layers[0].self_attn
        lowest = 2 * tokens * sum(
            layer.base.in_features * layer.base.out_features + layer.lora_A.numel()
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert bench.needed_flops(run, samples) == counted - masked + lowest


@pytest.mark.parametrize("method, checkpointing", [
    ("lora", False), ("full", False), ("qlora", False), ("lora", True)])
def test_every_moment_of_a_step_belongs_to_one_part(checkpoint, chat, method, checkpointing,
                                                    monkeypatch):
    clock = iter(range(10 ** 6))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    run = run_of(checkpoint("llama"), chat, method, gradient_checkpointing=checkpointing)
    watch = bench.Stopwatch(run)
    began = watch.last
    train.make_step(run)
    watch.tick()
    parts = {"input", "unembedding and loss", "optimizer", "products with W", "norms", "SwiGLU",
             "attention: RoPE, scores, softmax", "sums of the residual stream"}
    assert watch.seconds.keys() == (parts if method == "full" else parts | {"adapters"})
    assert sum(watch.seconds.values()) == watch.last - began
    assert len(watch.stack) == 1


def run_bench(capsys, *argv):
    """-> (exit code, what it printed, what it said to stderr)."""
    code = 0
    try:
        bench.main(list(map(str, argv)))
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


def test_a_peer_that_is_not_there_is_one_line(checkpoint, chat, tmp_path, capsys):
    (tmp_path / "bench.py").write_text("import no_such_library")
    code, _, error = run_bench(capsys, *flags(checkpoint("llama"), chat), "--peer", tmp_path,
                               "--turns", 3)
    line = one_line(code, error)
    assert "No module named 'no_such_library'" in line and "pip install" in line


@pytest.mark.parametrize("more, words", [
    (["--turns=2"], "--turns 2: it must be a whole number, at least 3"),
    (["--turns=9", "--max_steps=8"], "--turns 9 are more than the run's 8 steps"),
    (["--peer=transformers"], "--peer transformers answers (--generate)"),
    (["--peer=trl", "--generate"], "--peer trl makes steps"),
    (["--peer=trl", "--method=dora"], "--peer trl does full, lora and qlora"),
    (["--peer=dora", "--generate"], "--peer dora makes steps"),
    (["--generate", "--method=full"], "--generate is of the model as it is"),
    (["--generate", "--peer=transformers", "--nf4"], "--peer transformers has no four bits"),
    (["--profile", "--compile"], "--profile times each part"),
    (["--peer=lora"], "--peer lora: that is what --method says"),
    (["--peer=full", "--nf4"], "--nf4"),
    (["--peer=trl", "--peer_python=/nope"], "--peer_python /nope: there is no such program"),
    (["--peer=nowhere"], "--peer nowhere: it must be one of trl, transformers")])
def test_what_cannot_be_compared(more, words, capsys):
    code, _, error = run_bench(capsys, *more)
    assert words in one_line(code, error)


@pytest.mark.parametrize("reply", [b"", b"hello\n", b"\xff\n", b"{}\n", b'{"seconds": 0}\n',
                                   b'{"seconds": "1", "tokens": 4, "peak_gb": 1}\n'])
def test_a_peer_that_says_something_else_is_one_line(tmp_path, reply):
    """Its last words on stderr may be in any encoding."""
    (tmp_path / "bench.py").write_text(
        f"import sys; sys.stdin.readline(); sys.stdout.buffer.write({reply!r}); "
        "sys.stdout.flush(); sys.stderr.buffer.write(b'why \\xff')")
    side = bench.Side("ours", Config(), folder=tmp_path)
    try:
        expected = "a reply of ours: seconds " if b"{" in reply else "ours ended: "
        with pytest.raises(UserError, match=expected):
            side.take_turn()
    finally:
        side.leave()


def test_rates_are_of_all_turns_together(capsys):
    """Steps of other sizes: medians of tokens and of seconds would be of two different steps."""
    sides = [bench.Side.__new__(bench.Side) for _ in range(2)]
    for side, name, times in zip(sides, ("ours", "trl"), ([9, 1, 2, 4], [9, 3, 4, 4])):
        side.name, side.first_step = name, 1.0
        side.rows = [{"seconds": s, "tokens": n, "peak_gb": 1.0, "flops": n * 1e12, "loss": 1.0,
                      "ceiling": 70e12} for s, n in zip(times, (50, 70, 70, 210))]
    bench.show_sides(sides, {"per step": slice(1, None)})
    bench.show_mfu(sides)
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["seconds"][1:4] == ["2.333", "3.667", "2.00"]          # 7 / 3, 11 / 3; 3, 2, 1
    assert lines["tokens per second"][3:5] == ["50", "32"]              # 350 / 7 and / 11
    assert lines["MFU, %"][2:] == ["71", "45"]          # 350 of 7 x 70, of 11 x 70


def test_a_small_test_split_is_asked_again(chat):
    questions = bench.prompts_of(Config(data=str(chat)), 16)
    n = len(dataset.read_messages(chat / "test.jsonl"))
    assert n < 16 == len(questions) and questions[n] == questions[0] != questions[1]


def test_both_sides_get_the_rate_of_the_method():
    for method, lr in (("lora", 2e-4), ("full", 2e-5)):
        _, (config,) = bench.parse_bench([f"--method={method}", "--device=cpu"])
        assert config.lr == lr and config.alpha == 64 and config.max_steps == 200


@pytest.mark.slow
def test_two_copies_of_one_repository_take_turns(checkpoint, chat, capsys):
    code, text, error = run_bench(capsys, *flags(checkpoint("llama"), chat), "--peer", REPO,
                                  "--turns", 4)
    assert code == 0, error
    turns = [line for line in text.splitlines() if line.startswith("turn")]
    assert len(turns) == 3
    losses = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("losses")]
    assert losses[0] == losses[1] and len(losses[0].split()) == 4
    assert 0.2 < float(text.partition("\nseconds")[2].split()[2]) < 5          # the ratio


def test_two_methods_have_one_base_and_each_its_own_rate():
    _, (ours, peer) = bench.parse_bench(["--nf4", "--peer=dora", "--device=cpu"])
    assert ours.four_bits and peer.four_bits and ours.max_steps == peer.max_steps == 200
    _, (ours, peer) = bench.parse_bench(["--peer=loraplus", "--device=cpu"])
    assert (ours.lr, peer.lr) == (2e-4, 5e-5)


@pytest.mark.slow
def test_two_methods_take_turns(checkpoint, chat, capsys, monkeypatch):
    """And each has its own rate."""
    configs, popen = [], bench.subprocess.Popen
    monkeypatch.setattr(bench.subprocess, "Popen", lambda argv, **more: (
        configs.append(json.loads(argv[-1])), popen(argv, **more))[1])
    code, text, error = run_bench(capsys, *flags(checkpoint("llama"), chat), "--peer", "loraplus",
                                  "--turns", 3)
    assert code == 0, error
    assert [(c["method"], c["lr"]) for c in configs] == [("lora", 2e-4), ("loraplus", 5e-5)]
    assert "loraplus" in text and "MFU" not in text and "peak memory" in text


@pytest.mark.slow
def test_answers_are_the_same_tokens_as_transformers(checkpoint, chat, capsys):
    code, text, error = run_bench(capsys, *flags(checkpoint("llama"), chat), "--generate",
                                  "--peer", "transformers", "--turns", 3)
    assert code == 0, error
    assert "the same tokens in 17 of 17 answers" in text
