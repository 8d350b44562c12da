"""By hand: --supervise all next to TRL's assistant_only_loss, on the same conversations.

TRL is not among the tests' requirements. In an environment that has it:

    python tests/trl_all_answers.py data/nano/base DATA     # writes DATA, prints TRL's losses

results/supervise.md has our command, and what came out.
"""
import json
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

MODEL, DATA = sys.argv[1], Path(sys.argv[2])
# Nano's template with its answers marked: TRL knows none for this model. It brings one for
# Qwen2.5, which writes the same text where there is a system message, and marks both newlines too.
MARKED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
{{- '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"""
OWN = (Path(trl.__file__).parent / "chat_templates/qwen2_5_training.jinja").read_text()


def write_conversations(n: dict[str, int]):
    """One to four sums each, worked in words, so that answers differ in length."""
    draw = random.Random(0)
    DATA.mkdir(exist_ok=True)
    for split, count in n.items():
        lines = []
        for _ in range(count):
            messages = [{"role": "system", "content": "You add and subtract."}]
            for _ in range(draw.randint(1, 4)):
                a, b = draw.randint(1, 50), draw.randint(1, 50)
                answer = f"Take {a}, then add {b}. " * draw.randint(1, 3) + f"That is {a + b}."
                messages += [{"role": "user", "content": f"What is {a} + {b}?"},
                             {"role": "assistant", "content": answer}]
            lines.append(json.dumps({"messages": messages}) + "\n")
        (DATA / f"{split}.jsonl").write_text("".join(lines))


def read(split: str) -> Dataset:
    return Dataset.from_list([json.loads(line) for line in open(DATA / f"{split}.jsonl")])


def losses_of(template: str) -> tuple[float, list[float]]:
    """-> (test loss before the first step, training loss of each step)."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = template
    config = trl.SFTConfig(
        output_dir=tempfile.mkdtemp(), assistant_only_loss=True, max_length=512, max_steps=3,
        learning_rate=2e-5, lr_scheduler_type="constant", per_device_train_batch_size=4,
        gradient_accumulation_steps=4, per_device_eval_batch_size=8, logging_steps=1, bf16=False,
        use_cpu=True, gradient_checkpointing=False, report_to=[], save_strategy="no", seed=42,
        data_seed=42)
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), args=config,
        train_dataset=read("train"), eval_dataset=read("test"), processing_class=tokenizer)
    before = trainer.evaluate()["eval_loss"]        # one batch: the mean over all of its tokens
    trainer.train()
    return before, [row["loss"] for row in trainer.state.log_history if "loss" in row]


write_conversations({"train": 64, "test": 8})
for name, template in (("answer and end token", MARKED), ("TRL's own marks for Qwen2.5", OWN)):
    before, losses = losses_of(template)
    print(f"{name}: test {before:.6f}, steps {', '.join(f'{loss:.6f}' for loss in losses)}")
