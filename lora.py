"""LoRA (Hu et al., arXiv 2106.09685): freeze W, learn a correction of rank r beside it.

    h = W x + (alpha / r) B A x         W (out, in) frozen,  A (r, in),  B (out, r)        (section 4.1, equation 3)

A linear map 1024 -> 4096 has 4,194,304 weights; with r = 16 its correction has 16 * (1024 + 4096) = 81,920. B starts at
zero, so that the wrapped model begins as the base to the last bit; A starts as nn.Linear does, U(-1/sqrt(in), 1/sqrt(in)).
With alpha = r the factor is 1; with alpha fixed it shrinks as r grows, so that rank and learning rate are tuned apart.

Anything that maps x to W x and has in_features and out_features can be wrapped, quantized or not, in any nn.Module. A and
B are kept in float32 and used in x's dtype: in bfloat16 an update of a thousandth of a weight would be rounded away.
Merging is an explicit call, never a side effect of .eval(), so a checkpoint is what its name says.
"""
import itertools
import math
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from plumbing.errors import UserError
from plumbing.files import make_folder, read_json, replacing, write_json

TARGETS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False):
        super().__init__()
        device = next(itertools.chain(base.parameters(), base.buffers())).device
        self.base, self.rank, self.alpha = base, rank, alpha
        self.scale, self.rslora = scale_of(rank, alpha, rslora), rslora
        A = torch.empty(rank, base.in_features, device="cpu")           # drawn there, so that a seed gives one A on every device
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))                     # gain sqrt(2 / (1 + 5)), so U(-1/sqrt(in), 1/sqrt(in))
        self.lora_A = nn.Parameter(A.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.dropout = nn.Dropout(dropout)
        self.unmerged = None        # while B A is added: the base without it, in a tuple, where it is no submodule

    def forward(self, x):
        y = self.base(x)                                                                        # (..., out)
        if self.unmerged is not None:
            return y
        u = F.linear(self.dropout(x), self.lora_A.to(x.dtype)) * self.scale                     # (..., r)
        if torch.is_autocast_enabled(x.device.type):
            return y + F.linear(u, self.lora_B)
        # y + u B^T in one product that starts from y, instead of a product and an addition
        return torch.addmm(y.reshape(-1, y.shape[-1]), u.reshape(-1, self.rank), self.lora_B.to(x.dtype).T).view(y.shape)

    def delta(self):
        """(alpha / r) B A, (out, in), in float32."""
        return self.scale * self.lora_B @ self.lora_A


def scale_of(rank: int, alpha: float, rslora: bool) -> float:
    """alpha / r, or rsLoRA's alpha / sqrt(r) (arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


# ----- put on, take off ---------------------------------------------------------------------------------------------

def lora_layers(module: nn.Module) -> dict[str, LoRALinear]:
    return {name: m for name, m in module.named_modules() if isinstance(m, LoRALinear)}


def apply_lora(module: nn.Module, rank: int, alpha: float | None = None, targets="all-linear", dropout: float = 0.0) -> nn.Module:
    """Wrap `module`'s target layers in place and freeze everything else. alpha None is alpha = rank.

    targets: "all-linear" (every linear layer but lm_head), "attention", "mlp", or layer names, "q_proj,v_proj" or a list; a
    name fits a layer whose dotted path is it or ends in "." and it. Raises UserError for a target that fits no layer, a rank
    below 1, and for lm_head where it is tied to the embedding: its adapter would not reach the embedding's use of W.
    """
    if rank < 1:
        raise UserError(f"rank {rank}: it has to be at least 1")
    if lora_layers(module):
        raise UserError("the model has LoRA layers already; merge or remove them first")
    names = matching(module, targets)
    module.requires_grad_(False)
    for name in names:
        wrap(module, name, rank, rank if alpha is None else alpha, dropout)
    return module


def matching(module: nn.Module, targets) -> list[str]:
    """The dotted paths of the layers that `targets` means."""
    linear = {name: m for name, m in module.named_modules() if hasattr(m, "in_features") and hasattr(m, "out_features")}
    if targets == "all-linear":
        return [name for name in linear if name.rpartition(".")[2] != "lm_head"]
    wanted = TARGETS.get(targets, targets.split(",")) if isinstance(targets, str) else targets
    fits = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in wanted}
    for target, names in fits.items():
        if not names:
            kinds = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(f"target {target!r} fits no linear layer of this model; it has {kinds} (or all-linear, attention, mlp)")
        for name in names:
            refuse_tied(module, name, linear[name])
    chosen = {name for names in fits.values() for name in names}
    return [name for name in linear if name in chosen]


def refuse_tied(module: nn.Module, name: str, layer: nn.Module):
    W = getattr(layer, "weight", None)
    if W is not None and any(m is not layer and getattr(m, "weight", None) is W for m in module.modules()):
        raise UserError(f"{name} is tied to the embedding: LoRA on it would untie them; leave it out of the targets")


def wrap(module: nn.Module, name: str, *args) -> LoRALinear:
    """Put a LoRALinear in the place of the layer called `name`."""
    base = module.get_submodule(name)
    layer = LoRALinear(base, *args).train(base.training)
    module.set_submodule(name, layer)
    return layer


def remove_lora(module: nn.Module) -> nn.Module:
    """Take the wrappers off. What is merged stays merged: merge, remove, then save a checkpoint without a trace of LoRA."""
    for name, layer in lora_layers(module).items():
        module.set_submodule(name, layer.base)
    return module


# ----- merge and unmerge --------------------------------------------------------------------------------------------

@torch.no_grad()
def merge_lora(module: nn.Module):
    """W <- W + (alpha / r) B A, summed in float32 and then rounded to W's dtype; inference then costs what the base costs.

    The base is kept beside, for subtracting B A again would not give back the bits that rounding took. A quantized W is
    dequantized and not quantized again, for four bits would round most of B A away; a warning says so.
    """
    layers = [layer for layer in lora_layers(module).values() if layer.unmerged is None]
    quantized = [layer for layer in layers if not torch.is_tensor(layer.base.weight)]
    if quantized:
        warnings.warn(f"{len(quantized)} quantized layers are merged into their dequantized weights: they are "
                      f"{quantized[0].base.weight.dtype} now, not four bits", stacklevel=2)
    for layer in layers:
        layer.unmerged, layer.base = (layer.base,), merged(layer.base, layer.delta())


def merged(base: nn.Module, delta) -> nn.Linear:
    """W + delta as a linear layer with base's bias."""
    W = base.weight if torch.is_tensor(base.weight) else base.weight.dequantize()
    linear = nn.Linear(base.in_features, base.out_features, device="meta")
    linear.weight, linear.bias = nn.Parameter((W.float() + delta).to(W.dtype), requires_grad=False), base.bias
    return linear


def unmerge_lora(module: nn.Module):
    """Undo merge_lora: the base is again what it was, bit for bit."""
    for layer in lora_layers(module).values():
        if layer.unmerged is not None:
            layer.base, layer.unmerged = layer.unmerged[0].to(layer.lora_A.device), None


# ----- several adapters on one base ---------------------------------------------------------------------------------

class Factors(NamedTuple):
    """What an adapter holds for one layer. An adapter in memory is {name of a layer: Factors}."""
    A: torch.Tensor             # (r, in)
    B: torch.Tensor             # (out, r)
    alpha: float
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        return scale_of(len(self.A), self.alpha, self.rslora)


def set_adapter(module: nn.Module, adapter: dict[str, Factors] | None, merge: bool = True) -> nn.Module:
    """Switch tasks in place, {(W0 + B A) - B A} + B' A' (section 4.2): take off what `module` carries, put `adapter` on and
    merge it, so that a token costs what it costs the base. None: the base alone.

    adapter: what `read_adapter` gave; its ranks, alphas and targets need not be those of the one before. Exact after any
    number of switches, for nothing is subtracted: W0 is kept beside W0 + B A, which costs the memory of the wrapped layers once
    more. merge=False keeps B A beside instead: no such cost, more work a token; what a quantized base, merged into 16
    bits, calls for. Raises UserError, before anything is changed, for an adapter of another base.
    """
    check_fit(module, adapter or {}, "set_adapter")
    put_on(module, adapter or {})
    if merge:
        merge_lora(module)
    return module


def put_on(module: nn.Module, adapter: dict[str, Factors]) -> nn.Module:
    """Wrap `module` with `adapter`, not merged, in the place of what it carries."""
    unmerge_lora(module)
    remove_lora(module).requires_grad_(False)
    for name, (A, B, *how) in adapter.items():
        layer = wrap(module, name, len(A), *how)
        layer.lora_A.data.copy_(A)
        layer.lora_B.data.copy_(B)
    return module


def check_fit(module: nn.Module, adapter: dict[str, Factors], whence):
    """Raise UserError unless each B A of `adapter` can be added to a layer of `module`. whence: what the message begins with."""
    for name, (A, B, *_) in adapter.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            raise UserError(f"{whence}: the adapter is for another base: this one has no layer {name}") from None
        layer = getattr(layer, "base", layer)
        W, BA = (layer.out_features, layer.in_features), (B.shape[0], A.shape[1])
        if W != BA or A.shape[0] != B.shape[1]:
            raise UserError(f"{whence}: the adapter is for another base: {name} is {W} here, B A is {BA} there")
        refuse_tied(module, name, layer)


# ----- PEFT's files -------------------------------------------------------------------------------------------------
# adapter_config.json and adapter_model.safetensors; "model.layers.0.mlp.up_proj" has its A under this name:
KEY = "base_model.model.{}.lora_{}.weight"


def save_adapter(module: nn.Module, folder, base_model: str = ""):
    """Write the adapter as PEFT writes it, `base_model` being the name under which others find the base."""
    layers = lora_layers(module)
    if not layers:
        raise UserError("there is no adapter to save: the model has no LoRA layers")
    first, leaves = next(iter(layers.values())), {name.rpartition(".")[2] for name in layers}
    bare = [name for name, m in module.named_modules() if hasattr(m, "in_features") and name.rpartition(".")[2] in leaves]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM" if hasattr(module, "lm_head") else None, "inference_mode": True,
        "base_model_name_or_path": base_model.partition("@")[0], "revision": base_model.partition("@")[2] or None,
        "r": first.rank, "lora_alpha": first.alpha, "lora_dropout": first.dropout.p, "use_rslora": first.rslora,
        "target_modules": sorted(layers if bare else leaves), "bias": "none", "fan_in_fan_out": False,
        "rank_pattern": {re.escape(name): m.rank for name, m in layers.items() if m.rank != first.rank},
        "alpha_pattern": {re.escape(name): m.alpha for name, m in layers.items() if m.alpha != first.alpha},
    }
    tensors = {KEY.format(name, x): getattr(m, f"lora_{x}").detach().contiguous() for name, m in layers.items() for x in "AB"}
    folder = make_folder(folder)
    with replacing(folder / "adapter_model.safetensors") as part:
        save_file(tensors, part, metadata={"format": "pt"})
        if {name: t.shape for name, t in read_tensors(part).items()} != {name: t.shape for name, t in tensors.items()}:
            raise OSError(f"{part} does not hold what was written to it; is the disk full?")
    write_json(folder / "adapter_config.json", config)


def load_adapter(module: nn.Module, folder) -> nn.Module:
    """Wrap `module` with an adapter of ours or of PEFT's; one that it already carries makes room for it.

    Raises UserError as `read_adapter` does, before anything is changed.
    """
    return put_on(module, read_adapter(folder, module))


def read_adapter(folder, module: nn.Module | None = None) -> dict[str, Factors]:
    """The adapter in `folder`, ours or PEFT's, in memory.

    Ranks are the tensors' own; alpha follows lora_alpha, alpha_pattern and use_rslora. Raises UserError for an adapter with
    parts missing or left over, of a kind that is not plain LoRA, and for one that does not fit `module`, if that is given.
    """
    folder = Path(folder)
    config, tensors = read_json(folder / "adapter_config.json"), read_tensors(folder / "adapter_model.safetensors")
    plain = config.get("init_lora_weights", True) in (True, False, "gaussian", "eva", "orthogonal")    # others change the base
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none" or not plain:
        raise UserError(f"{folder}: only plain LoRA adapters are read (no DoRA, no trained biases, no PiSSA and its like)")
    if "lora_alpha" not in config:
        raise UserError(f"{folder / 'adapter_config.json'} lacks 'lora_alpha'")
    names = dict.fromkeys(key.removeprefix(KEY[:KEY.index("{")]).rsplit(".lora_", 1)[0] for key in tensors)
    if not names or set(tensors) != {KEY.format(name, x) for name in names for x in "AB"}:
        raise UserError(f"{folder}: the adapter's tensors are not pairs of A and B of linear layers, or some are missing")
    patterns = (config.get("alpha_pattern") or {}).items()
    adapter = {}
    for name in names:
        alpha = next((a for pattern, a in patterns if re.fullmatch(rf"(.*\.)?({pattern})", name)), config["lora_alpha"])
        adapter[name] = Factors(*(tensors[KEY.format(name, x)].float() for x in "AB"), alpha,
                                config.get("lora_dropout", 0.0), config.get("use_rslora", False))
    if module is not None:
        check_fit(module, adapter, folder)
    return adapter


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as e:
        raise UserError(f"{path} is missing or damaged ({e})") from None
