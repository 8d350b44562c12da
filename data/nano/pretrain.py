"""Make nano's base model, data/nano/base/, from nothing: a tokenizer and a Qwen2-architecture decoder, trained on corpus.py.

    pip install tokenizers && python data/nano/pretrain.py          # --resume goes on where it was stopped

The model is this project's own (model.py), and so is its optimizer step (train.py). What differs from fine-tuning is stated
here: weights begin at random, every token is supervised, text is an endless stream cut into blocks, and the rate decays.
"""
import argparse
import json
import math
import sys
import time
from contextlib import nullcontext
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
from optim import restore_tensor, state_tensors  # noqa: E402
from plumbing.state import load_state, save_state  # noqa: E402
from train import optimizer_step  # noqa: E402

STEPS, BATCH, BLOCK = 5000, 8, 256          # 10.2M tokens
LR, WARMUP, WEIGHT_DECAY = 3e-3, 100, 0.1
SEED, HELD_OUT_SEED = 1, 2
VOCAB = 4096
SPECIAL, ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]     # as in Qwen3
# Qwen2's way to cut a text into words: contractions, words with the character before them, single digits, symbols, spaces
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCAB, "hidden_size": 192,
    "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_act": "silu",
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}


def make_tokenizer(folder: Path):
    """A byte-level BPE in Qwen2's manner, learned from the corpus, as tokenizer.json and tokenizer_config.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(ADDED), special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator((m["content"] for c in islice(conversations(SEED), 40_000) for m in c), trainer)
    bpe.add_tokens(ADDED)
    bpe.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024, "chat_template": TEMPLATE,
              "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def blocks(tokenizer, seed):
    """The corpus as one stream of ids, conversation after conversation, cut into batches (BATCH, BLOCK)."""
    stream = []
    for messages in conversations(seed):
        stream += tokenizer.encode(tokenizer.apply_chat_template(messages))
        if len(stream) >= BATCH * BLOCK:
            yield torch.tensor(stream[:BATCH * BLOCK]).view(BATCH, BLOCK)
            stream = stream[BATCH * BLOCK:]


def initialize(model: Transformer):
    """N(0, 0.02^2), the projections back into the residual stream smaller by sqrt(2 L), biases 0 (GPT-2's)."""
    for name, p in model.named_parameters():
        if p.dim() == 2:
            shrink = math.sqrt(2 * model.config.num_hidden_layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            nn.init.normal_(p, std=0.02 / shrink)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


@torch.no_grad()
def raise_gains(model: Transformer, c: float = 64.0, d: float = 8.0):
    """The same function, to the last bit in float32 and bfloat16, with larger activations and smaller weights.

    What norms give is multiplied by c, what v_proj and up_proj give by d, and the weights that read it are divided by it.

    AdamW moves a weight by about the learning rate, whatever the weight's size, and what that does to an output grows with
    the number of inputs and their size. This model has a fifth of the inputs of one of half a billion parameters; larger
    inputs make up for it, so that the rates of such models (2e-4 for LoRA, 2e-5 for full fine-tuning) suit this one too.
    """
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in ((layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                              (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))):
            norm.weight.mul_(c)
            for reader in readers:
                reader.weight.div_(c)
        for writer, reader in ((attention.v_proj, attention.o_proj), (mlp.up_proj, mlp.down_proj)):
            for p in writer.parameters():
                p.mul_(d)
            reader.weight.div_(d)


def lr_at(step):
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    return LR * (0.05 + 0.95 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2)


@torch.no_grad()
def held_out_nll(model, tokenizer):
    sums = [model.loss(ids, ids) for ids in islice(blocks(tokenizer, HELD_OUT_SEED), 8)]
    return sum(nll.item() for nll, _ in sums) / sum(n for _, n in sums)


def main(out: Path, resume: bool):
    out.mkdir(parents=True, exist_ok=True)
    state = out / "state.safetensors"
    if not (resume and state.exists()):
        make_tokenizer(out)
    tokenizer = Tokenizer.from_pretrained(out)
    torch.manual_seed(SEED)
    model = Transformer(ModelConfig.from_hf(CONFIG))
    initialize(model)
    trained = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(trained.values(), LR, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    progress = {"step": 0, "seconds": 0.0}
    if resume and state.exists():
        needed = [f"{name}/weight" for name in trained]
        progress = load_state(state, needed, partial(restore_tensor, trained, optimizer))
    print(f"{sum(p.numel() for p in trained.values()):,} parameters, {STEPS * BATCH * BLOCK / 1e6:.1f}M tokens", flush=True)

    for ids in islice(blocks(tokenizer, SEED), progress["step"], STEPS):
        start = time.perf_counter()
        micro = [(ids, ids)]
        nll, tokens = optimizer_step(model, optimizer, scaler, micro, nullcontext, lr_at(progress["step"]), grad_clip=1.0)
        progress["step"] += 1
        progress["seconds"] += time.perf_counter() - start
        if progress["step"] % 200 == 0 or progress["step"] == STEPS:
            held_out = held_out_nll(model, tokenizer)
            print(f"step {progress['step']:>5}  train NLL {nll / tokens:.4f}  held-out NLL {held_out:.4f}  "
                  f"{progress['seconds']:.0f} s", flush=True)
            save_state(state, state_tensors(trained, optimizer), progress)
    raise_gains(model)
    model.bfloat16().save_pretrained(out)
    state.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "base", help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on where it was stopped")
    main(**vars(parser.parse_args()))
