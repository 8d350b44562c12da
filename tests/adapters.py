"""What the tests of adapters share: three adapters on a tiny base, PEFT's model, logits."""
import peft
import torch
from transformers import AutoModelForCausalLM

from lora import apply_lora, lora_layers, save_adapter
from model import Transformer

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TASKS = {                                           # they differ in rank, alpha and targets
    "sums": {"rank": 4, "alpha": 6},
    "names": {"rank": 2, "alpha": 5, "targets": "attention"},
    "tones": {"rank": 7, "targets": "layers.0.mlp.up_proj,layers.1.mlp.up_proj,v_proj"},
}


def logits(model, ids):
    with torch.no_grad():
        out = model.eval()(ids)
    return getattr(out, "logits", out)


def randomise_adapter(model, seed=0, size=0.3):
    """B starts at zero. Make it random, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data = size * torch.randn(layer.lora_B.shape, generator=generator)
    return model


def save_tasks(base, folder):
    """Write the adapters of TASKS as PEFT's folders. -> {name: folder}"""
    for seed, (name, settings) in enumerate(TASKS.items()):
        model = apply_lora(Transformer.from_pretrained(base), **settings)
        save_adapter(randomise_adapter(model, seed), folder / name, str(base))
    return {name: folder / name for name in TASKS}


def in_peft(base, adapter, dtype=None):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    return peft.PeftModel.from_pretrained(model, adapter)
