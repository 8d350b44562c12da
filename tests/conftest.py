"""What all tests share: no network, and tiny random checkpoints as transformers writes them."""
import json
import os
import signal
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))
os.environ["HF_HUB_OFFLINE"] = "1"                  # for this process and those that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")       # a 32 x 32 matrix is slower on two threads
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"    # transformers' bars go to the stderr we assert
signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background job ignores it

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
CHATML = ("{% for message in messages %}<|im_start|>{{ message.role }}\n"
          "{{ message.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = ("Lan có 12 quả táo, mẹ cho thêm 7 quả. Hỏi Lan có tất cả bao nhiêu quả táo? "
        "Natalia sold 48 clips in April, and then half as many in May. "
        "<think>48 / 2 = 24</think>\n24\n\n")
TINY = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": 2}


def tiny(family, folder, shard=None, dtype=torch.float32, seed=0, **changes):
    """Write a small random checkpoint with a tokenizer into `folder`, which is returned.

    family: "qwen2", "qwen3" or "llama"; changes: of its config; shard: transformers'
    max_shard_size, "40KB" for several files.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    config = TINY | changes
    if family == "qwen3":
        config.setdefault("head_dim", 12)       # 12, because Qwen3's need not be hidden / heads
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    randomise(model, seed)
    sharding = {"max_shard_size": shard} if shard else {}
    model.to(dtype).save_pretrained(folder, **sharding)
    tiny_tokenizer(folder)
    return Path(folder)


@torch.no_grad()
def randomise(model, seed=0):
    """Make every parameter random, norms and biases too, and large enough to show in the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 2:
            p.copy_(noise / p.shape[1] ** 0.5)
        elif "norm" in name:
            p.copy_(1 + 0.3 * noise)
        else:
            p.copy_(0.3 * noise)


def tiny_tokenizer(folder, size=320, template=CHATML):
    """Write a tokenizer in Qwen's style, trained on TEXT. Ids 0, 1 and 2 are SPECIAL."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT] * 2, trainer)
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
              "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def edit_json(path, without=(), **changes):
    """Change keys of a JSON file and take the keys `without` out -> its new content."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    for key in without:
        del content[key]
    path.write_text(json.dumps(content), encoding="utf-8")
    return content


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(family, **changes) -> its folder. Do not write into it.

    It is made once per session for each set of arguments.
    """
    made = {}

    def make(family="qwen2", **changes):
        key = repr((family, sorted(changes.items())))
        if key not in made:
            made[key] = tiny(family, tmp_path_factory.mktemp(family), **changes)
        return made[key]
    return make


@pytest.fixture
def folder(checkpoint):
    """A base for adapters, with a tied unembedding."""
    return checkpoint("qwen2", tie_word_embeddings=True)


@pytest.fixture
def tasks(folder, tmp_path):
    """{name: folder} of the adapters on it that adapters.TASKS lists."""
    from adapters import save_tasks
    return save_tasks(folder, tmp_path)


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """The folder of a small chat data set. Do not write into it."""
    from runs import write_chat
    return write_chat(tmp_path_factory.mktemp("chat"))
