"""What a step costs as samples grow longer and vocabularies larger: the table in results/speed.md.

    python results/cost.py

A decoder of 6 layers, 576 wide, with random weights and LoRA of rank 8 on all linear maps, trains
on 4,096 tokens per micro-batch, half of which are learned: 16 samples of 256 tokens, 8 of 512, ...
one of 4,096. Each row is a process of its own, because a process's peak memory never falls.
"""
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from lora import apply_lora  # noqa: E402
from model import ModelConfig, Transformer  # noqa: E402
from plumbing.device import peak_gb  # noqa: E402

TOKENS = 4096
LENGTHS, VOCABULARIES = (256, 512, 1024, 2048, 4096), (2_000, 32_000, 152_000)
CASES = [(32_000, length) for length in LENGTHS] + [(V, 256) for V in VOCABULARIES]


def measure(V: int, length: int) -> str:
    """A row: the seconds of a forward and backward pass, median of 3 after one, and the peaks."""
    torch.manual_seed(0)
    config = ModelConfig.from_hf({
        "model_type": "llama", "vocab_size": V, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 6, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True})
    model = Transformer(config)
    apply_lora(model, rank=8, alpha=8)
    ids = torch.randint(V, (TOKENS // length, length))
    labels = ids.where(torch.arange(length) >= length // 2, -100)
    before, seconds = peak_gb(ids.device), []
    for _ in range(4):
        start = time.perf_counter()
        nll, _ = model.loss(ids, labels)
        nll.backward()
        seconds.append(time.perf_counter() - start)
    peak = peak_gb(ids.device)
    return (f"| {V:,} | {length:,} | {sorted(seconds[1:])[1]:.2f} | {peak:.2f} "
            f"| {peak - before:.2f} | {TOKENS // 2 * V * 4 / 1e9:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(*map(int, sys.argv[1:])))
    else:
        print("| V | length | s per 4,096 tokens | peak, GB | above the model, GB "
              "| all logits in float32, GB |")
        print("| --- " * 6 + "|", flush=True)
        for case in dict.fromkeys(CASES):
            subprocess.run([sys.executable, __file__, *map(str, case)], check=True)
