"""Make the base model of nano, data/nano/base/, from nothing.

    pip install tokenizers
    python data/nano/pretrain.py        # about an hour; --resume continues after a stop

A tokenizer is learned from the corpus (corpus.py), then a decoder of Qwen2's architecture is
trained on it. The decoder (model.py) and the optimizer step (train.py) are those that fine-tuning
uses. Five things differ, and they are here: the weights start at random, every token is supervised,
the text is an endless stream cut into blocks, the learning rate decays, and the matrix products are
in bfloat16 where the processor has it.
"""
import argparse
import json
import math
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn as nn

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parents[1])]
from corpus import conversations  # noqa: E402

from model import ModelConfig, Transformer  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402
from optim import expected_tensors, restore_tensor, state_tensors  # noqa: E402
from plumbing.state import load_state, save_state  # noqa: E402
from train import optimizer_step  # noqa: E402

STEPS, BATCH, BLOCK = 11_000, 8, 256        # 22.5M tokens
LR, WARMUP, DECAY, WEIGHT_DECAY = 3e-3, 200, 0.3, 0.1
SAVE_EVERY = 200                            # steps; then the held-out NLL is measured, too
SEED, HELD_OUT_SEED = 1, 2
VOCAB = 1792
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>"]             # ordinary tokens, not special ones, as in Qwen3
SPLIT = "|".join((                          # what is a word: Qwen2's own pattern
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",        # an English contraction
    r"[^\r\n\p{L}\p{N}]?\p{L}+",            # letters, with one character before them
    r"\p{N}",                               # a single digit
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",           # symbols
    r"\s*[\r\n]+",                          # line ends
    r"\s+(?!\S)|\s+",                       # spaces, but not the one before a word
))
TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCAB,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


# ----- tokenizer -----

def make_tokenizer(folder: Path):
    """Learn a byte-level BPE from the corpus; write tokenizer.json and tokenizer_config.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(ADDED), special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    messages = (message for talk in islice(conversations(SEED), 20_000) for message in talk)
    bpe.train_from_iterator((text for m in messages for text in m.values()), trainer)
    bpe.add_tokens(ADDED)
    bpe.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "model_max_length": 1024,
        "chat_template": TEMPLATE,
        "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text)


# ----- text -----

def cut_batches(tokenizer, seed: int):
    """Yield batches of ids (BATCH, BLOCK), cut from all conversations in one endless stream."""
    stream = []
    for messages in conversations(seed):
        stream += tokenizer.encode(tokenizer.apply_chat_template(messages))
        if len(stream) >= BATCH * BLOCK:
            yield torch.tensor(stream[:BATCH * BLOCK]).view(BATCH, BLOCK)
            stream = stream[BATCH * BLOCK:]


# ----- weights -----

def initialize_weights(model: Transformer):
    """GPT-2's start: weights from N(0, 0.02^2), biases 0.

    Each of the L layers adds two outputs to the residual stream. So the projections that write
    them start smaller by sqrt(2 L), and their sum has the same size for every L.
    """
    for name, p in model.named_parameters():
        std = 0.02
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * model.config.num_hidden_layers)
        if p.dim() == 2:
            nn.init.normal_(p, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


@torch.no_grad()
def raise_gains(model: Transformer, c: float = 128.0, d: float = 16.0):
    """Make activations larger and weights smaller, so that learning rates of large models suit.

    The outputs of norms are multiplied by c, those of v_proj and up_proj by d, and the weights that
    read them are divided by the same number. Powers of two change no digit of a float, so the
    function stays the same to the last bit in float32 and bfloat16.

    AdamW moves a weight by about the learning rate, so a step changes an output the more, the more
    and the larger its inputs are, and this model has a fifth of the inputs of one with half a
    billion parameters. Larger inputs make up for that: at 2e-4, 200 steps of LoRA with r = 64 end
    at a test NLL of 0.086 with these c and d, and at 0.115 with twice as large ones.
    """
    def scale_down(factor, layers):
        for layer in layers:
            layer.weight.div_(factor)

    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        layer.input_layernorm.weight.mul_(c)
        scale_down(c, (attention.q_proj, attention.k_proj, attention.v_proj))
        layer.post_attention_layernorm.weight.mul_(c)
        scale_down(c, (mlp.gate_proj, mlp.up_proj))
        for p in (*attention.v_proj.parameters(), *mlp.up_proj.parameters()):
            p.mul_(d)
        scale_down(d, (attention.o_proj, mlp.down_proj))


# ----- training -----

def has_bfloat16() -> bool:
    """Does the processor multiply bfloat16 in hardware? Others emulate it, slower than float32.

    The two questions have no public name in torch yet. Where they are missing, the answer is no.
    """
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16())


def schedule_lr(step: int) -> float:
    """Linear warm-up, then LR, and over the last DECAY of the steps a straight line down to 0."""
    return LR * min(1, (step + 1) / WARMUP, (STEPS - step) / (DECAY * STEPS))


@torch.no_grad()
def measure_held_out_nll(model, tokenizer) -> float:
    """Nats per token on four batches that are never trained on."""
    total, tokens = 0.0, 0
    for ids in islice(cut_batches(tokenizer, HELD_OUT_SEED), 4):
        with autocast():
            nll, n = model.loss(ids, ids)
        total += nll.item()
        tokens += n
    return total / tokens


def begin_or_resume(state: Path) -> tuple[Transformer, torch.optim.Optimizer, dict]:
    """The model, its optimizer and how far they are: as in the file `state`, if it exists."""
    torch.manual_seed(SEED)
    model = Transformer(ModelConfig.from_hf(CONFIG))
    initialize_weights(model)
    trained = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        trained.values(), LR, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)
    progress = {"step": 0, "seconds": 0.0}
    if state.exists():
        progress = load_state(state, partial(expected_tensors, trained, optimizer),
                              partial(restore_tensor, trained, optimizer))
    parameters = sum(p.numel() for p in trained.values())
    print(f"{parameters:,} parameters, {STEPS * BATCH * BLOCK / 1e6:.1f}M tokens, after step "
          f"{progress['step']}, bfloat16: {has_bfloat16()}", flush=True)
    return model, optimizer, progress


def main(out: Path, resume: bool):
    # ----- tokenizer, model, optimizer -----
    out.mkdir(parents=True, exist_ok=True)
    state = out / "state.safetensors"
    if not resume:
        state.unlink(missing_ok=True)
    if not state.exists():
        make_tokenizer(out)
    tokenizer = Tokenizer.from_pretrained(out)
    model, optimizer, progress = begin_or_resume(state)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    # ----- train -----
    for ids in islice(cut_batches(tokenizer, SEED), progress["step"], STEPS):
        start = time.perf_counter()
        nll, tokens = optimizer_step(
            model, optimizer, scaler, [(ids, ids)], autocast, schedule_lr(progress["step"]),
            grad_clip=1.0)
        progress["step"] += 1
        progress["seconds"] += time.perf_counter() - start
        if progress["step"] % SAVE_EVERY == 0 or progress["step"] == STEPS:
            held_out = measure_held_out_nll(model, tokenizer)
            print(f"step {progress['step']:>5}  train NLL {nll / tokens:.4f}  "
                  f"held-out NLL {held_out:.4f}  {progress['seconds']:.0f} s", flush=True)
            save_state(state, state_tensors(dict(model.named_parameters()), optimizer), progress)

    # ----- save -----
    raise_gains(model)
    model.bfloat16().save_pretrained(out)
    state.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "base", help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="continue where it stopped")
    main(**vars(parser.parse_args()))
