"""What the tests share: the repository on the path, no network, and tiny random checkpoints as transformers writes them."""
import json
import os
import signal
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))
os.environ["HF_HUB_OFFLINE"] = "1"                  # for this process and those that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")       # matrices of 32 x 32 are slower on two threads than on one
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"    # transformers', which would stand in the stderr that a test reads
signal.signal(signal.SIGINT, signal.default_int_handler)        # a shell lets what runs in its background ignore Ctrl-C

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CHATML = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = ("Lan có 12 quả táo, mẹ cho thêm 7 quả. Hỏi Lan có tất cả bao nhiêu quả táo? "
        "Natalia sold 48 clips in April, and then half as many in May. <think>48 / 2 = 24</think>\n24\n\n")
TINY = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2}


def tiny(family, folder, shard=None, dtype=torch.float32, seed=0, **changes):
    """A small random checkpoint of "qwen2", "qwen3" or "llama" with a tokenizer, in `folder`, which is returned.

    Every parameter is random, norms and biases too, and large enough that each of them shows in the logits.
    `changes` go into the config; `shard` is transformers' max_shard_size, "40KB" for several files.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    defaults = TINY | ({"head_dim": 12} if family == "qwen3" else {})       # 12, for in Qwen3 it is not hidden / heads
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **defaults | changes))
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    tiny_tokenizer(folder)
    return Path(folder)


@torch.no_grad()
def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.copy_(noise / p.shape[1] ** 0.5 if p.ndim == 2 else 1 + 0.3 * noise if "norm" in name else 0.3 * noise)


def tiny_tokenizer(folder, size=320, template=CHATML):
    """tokenizer.json and tokenizer_config.json in Qwen's style, trained on two sentences; ids 0, 1, 2 are SPECIAL."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT] * 2, trainer)
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template,
              "tokenizer_class": "PreTrainedTokenizerFast"}
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(family, **changes) -> folder, made once a session for each set of arguments. Do not write into it."""
    made = {}

    def make(family="qwen2", **changes):
        key = repr((family, sorted(changes.items())))
        if key not in made:
            made[key] = tiny(family, tmp_path_factory.mktemp(family), **changes)
        return made[key]
    return make


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """The folder of a small chat data set. Do not write into it."""
    from runs import write_chat
    return write_chat(tmp_path_factory.mktemp("chat"))
