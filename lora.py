r"""LoRA: freeze a model and learn a small correction to its weights (Hu et al., arXiv 2106.09685).

                x (in)
              /        \
      W (out, in)     A (r, in)             W is frozen, A and B are trained
             |         |   u = A x  (r)
             |        B (out, r)          times the number s = alpha / r
              \        /
        h = W x + s B A x  (out)            section 4.1, equation 3

Size. dW = s B A is as large as W, but its rank is at most r, so the r (in + out) numbers in A and B
say all of it. Take a layer 1024 -> 4096 and r = 16: W holds 4,194,304 numbers, A and B hold
16 * (1024 + 4096) = 81,920, which is 2 %. Only these have gradients and optimizer moments. A rank
above min(in, out) adds parameters and no directions, and is allowed.

Why B = 0 and A random at the start. The model must begin as its base, so B A must be zero. With
dy = dL/dh (out), the gradients are

    dL/dB = s dy u^T  (out, r)              dL/dA = s B^T dy x^T  (r, in)

    B = 0, A random     dL/dB is not zero, so B moves in the first step, and then A does too.
    A = 0, B random     A moves in the first step, and then B: it learns, too. But Hayou et al.
                        (arXiv 2406.08447) find it worse on average: with A random, training
                        stays stable at larger rates.
    both zero           both gradients are zero in every step: it never learns.

Scale and learning rate. Adam moves each number in A and B by about the learning rate, however small
its gradient is. B A x is a sum of r terms, so the same rate moves h further at a higher rank. What
s does about it, as best rates measured on nano (results/findings_nano.md):

                                            r = 1       r = 8       r = 64
    alpha = r   s = 1                       5.2e-3      1.6e-3      2.9e-4      as r^(-2/3)
    alpha = 32  s = 32 / r                  3.1e-4      4.3e-4      4.9e-4      as r^(+1/9)

So a rate belongs to a rank, an alpha and a model. alpha = r is the default here. With it, 2e-4 is
where to start for r near 64, and lower ranks want more. With alpha fixed, the best rates of r = 1
and r = 64 are only 1.6 times apart, instead of 18, and one rate serves them all fairly well.

This file works on any torch module. It knows no decoder, no tokenizer and no quantizer: what it
wraps is any layer that computes W x and has in_features and out_features.
"""
import math
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

from plumbing.errors import UserError, time_limit
from plumbing.fields import Number, check, fits_pattern, whole
from plumbing.files import make_folder, read_json, read_tensors, replacing, write_json

TARGETS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
           "mlp": ("gate_proj", "up_proj", "down_proj")}


class AdaptedLinear(nn.Module):
    """A frozen linear layer, in float32, 16 or four bits, and something trained next to it.

    LoRA and its relatives (methods/) are subclasses. Each says what is trained (`__init__`), what
    it computes (`adapted`), and the dW that this amounts to (`delta`). These are one equation, so
    they must agree. Merging works for all of them. (BitFit changes no W: it has no `delta`, and a
    `bias` of its own.)
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.merged = None      # after merge_lora: a plain layer with W + dW, which answers

    def forward(self, x):
        return self.adapted(x) if self.merged is None else self.merged(x)

    def base_weight(self):
        """W, (out, in); of a base in four bits, dequantized."""
        W = self.base.weight
        return W if torch.is_tensor(W) else W.dequantize()

    @property
    def weight(self):
        """W + dW, (out, in), in W's dtype: for code that reads a weight and calls no layer.

        nn.TransformerEncoderLayer does so in .eval(), and so does a loss with the unembedding built
        in. Each read costs what dW costs, for LoRA the product B A.
        """
        if self.merged is not None:
            return self.merged.weight
        W = self.base_weight()
        return (W.float() + self.delta()).to(W.dtype)

    @property
    def bias(self):
        return self.base.bias

    @property
    def device(self):
        """Where W is. In four bits the base has no parameters, but its buffers are there."""
        return next(iter(self.base.state_dict().values())).device


class LoRALinear(AdaptedLinear):
    """h = base(x) + s B A x.

    A and B are float32 and are cast to x's dtype where they are used. In bfloat16, which has 8
    significant bits, adding a thousandth of a weight to it would change nothing.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout=0.0, rslora=False):
        super().__init__(base)
        self.rank, self.alpha, self.rslora = rank, alpha, rslora
        self.scale = scaling_factor(rank, alpha, rslora)
        self.dropout = nn.Dropout(dropout)
        # U(-1/sqrt(in), 1/sqrt(in)), as nn.Linear starts: the bound is sqrt(6 / ((1 + a^2) in)).
        # Drawn on the CPU, so that a seed gives the same A on every device.
        A = torch.empty(rank, base.in_features, device="cpu")
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        B = torch.zeros(base.out_features, rank, device=self.device)
        self.lora_A = nn.Parameter(A.to(self.device))                       # (r, in)
        self.lora_B = nn.Parameter(B)                                       # (out, r)

    def adapted(self, x):
        y = self.base(x)                                                    # (..., out)
        # dropout for LoRA's x alone: nothing of the base's output is dropped
        u = F.linear(self.dropout(x), self.lora_A.to(x.dtype))              # (..., r)
        u = u * self.scale      # here and not on B u, which has out numbers per token instead of r
        # y + u B^T. addmm starts its sum from y, which saves a pass over y for the addition.
        rows = torch.addmm(y.reshape(-1, y.shape[-1]), u.reshape(-1, self.rank),
                           self.lora_B.to(x.dtype).T)                       # (N, out)
        return rows.view(y.shape)

    def forward(self, x):
        if self.merged is None and self.sum_is_less_work(x):
            return F.linear(x, self.weight, self.bias)                      # (W + dW) x + bias
        return super().forward(x)

    def sum_is_less_work(self, x) -> bool:
        """Whether W + dW and one product with it are less work than W x, u = A x and B u.

        B A takes r in out multiplications, however many rows x has; u and B u take r (in + out) per
        row. An evaluation of nano has 2,000 rows at once: there B A is a twentieth of that. Adding
        it to W costs something, too, so B A must be at most half. In 16 bits W + dW would be
        rounded, so it is not used there. Nor is it used in training, because autograd would compute
        the gradient of all of W on the way to that of A and B.
        """
        dropping = self.training and self.dropout.p > 0
        if (torch.is_grad_enabled() or dropping or type(self.base) is not nn.Linear
                or torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling()):
            return False
        n_out, n_in = self.base.weight.shape
        many = x.numel() // n_in * (n_in + n_out) > 2 * n_in * n_out
        return many and self.base.weight.dtype == x.dtype == torch.float32

    def delta(self):
        """dW = s B A, (out, in), in float32."""
        return self.scale * self.lora_B @ self.lora_A


def scaling_factor(rank: int, alpha: float, rslora: bool) -> float:
    """s = alpha / r, or alpha / sqrt(r) in rsLoRA (arXiv 2312.03732).

    Why the root? A step of gradient descent from B = 0 is dB = -lr s dy u^T. For another input x',
    with u' = A x', it changes h by s dB u' = -lr s^2 (u . u') dy. Here u . u' is a sum of r terms,
    about r (x . x') / (3 in) while A is as it started. So the change grows as s^2 r: with
    s = alpha / r it shrinks as 1 / r, and with s = alpha / sqrt(r) it keeps its size.

    With Adam, dB has the size lr whatever the gradient's size is, so one s less: the change grows
    as s sqrt(r) if the r terms have mixed signs, and as s r if they all have one. In the first case
    the root is right for Adam too, in the second alpha / r is. The rates measured above say r^(2/3)
    and r^(8/9), which is between the two.

    Adapters that PEFT trained with use_rslora are read and merged with the root. In train.py it is
    --method rslora; --alpha 8 at r = 64 is the same factor, 8 / 64 = 1 / sqrt(64), as its alpha 1.
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank


# ----- wrap and unwrap ----------------------------------------------------------------------------

def apply_lora(module, rank: int, alpha=None, targets="all-linear", dropout=0.0, rslora=False):
    """Wrap the target layers of `module` in place and freeze everything else. Returns `module`.

    alpha: None is alpha = rank, so s = 1.
    targets: "all-linear" (every linear layer but lm_head, which is often tied), "attention", "mlp",
    or the names of layers: "q_proj,v_proj" or a list. A name means each layer whose dotted path
    ends in it. The paper took attention alone. All layers are the default here, because on nano
    attention ends above all layers, and above the MLP with as many parameters
    (results/findings_nano.md).

    Raises UserError, before anything is changed, for a rank below 1, for a target that fits no
    layer, and for a layer that cannot be wrapped (see `refuse_unwrappable`).
    """
    check(rank, whole(1), name="rank")
    alpha = rank if alpha is None else alpha
    return wrap_targets(module, targets,
                        lambda layer: LoRALinear(layer, rank, alpha, dropout, rslora))


def wrap_targets(module, targets, wrap):
    """Put wrap(layer) in the place of each target layer and freeze everything else.

    Raises UserError as `apply_lora` does.
    """
    if adapted_layers(module):
        raise UserError("the model has LoRA layers already; remove_lora takes them off")
    names = find_targets(module, targets)
    refuse_unwrappable(module, names)
    module.requires_grad_(False)
    for name in names:
        wrap_layer(module, name, wrap)
    return module


def remove_lora(module):
    """Unwrap all layers. What is merged stays merged. Returns `module`.

    So merge_lora and then remove_lora leave a plain model, ready to be saved as a checkpoint.
    """
    for name, layer in adapted_layers(module).items():
        module.set_submodule(name, layer.base if layer.merged is None else layer.merged)
    return module


def wrap_layer(module, name: str, wrap) -> AdaptedLinear:
    """Put wrap(layer) in the place of the layer called `name`."""
    base = module.get_submodule(name)
    layer = wrap(base).train(base.training)
    module.set_submodule(name, layer)
    return layer


def adapted_layers(module) -> dict[str, AdaptedLinear]:
    """The wrapped layers, with their dotted paths: of LoRA and of its relatives."""
    return {name: m for name, m in module.named_modules() if isinstance(m, AdaptedLinear)}


def lora_layers(module) -> dict[str, LoRALinear]:
    return {name: m for name, m in adapted_layers(module).items() if isinstance(m, LoRALinear)}


def linear_layers(module) -> dict[str, nn.Module]:
    """The layers that can be wrapped, with their dotted paths."""
    return {name: m for name, m in module.named_modules()
            if hasattr(m, "in_features") and hasattr(m, "out_features")}


def last_name(path: str) -> str:
    """model.layers.0.mlp.up_proj -> up_proj"""
    return path.rpartition(".")[2]


def find_targets(module, targets) -> list[str]:
    """The dotted paths of the layers that `targets` means, in the model's order."""
    linear = linear_layers(module)
    if targets == "all-linear":
        return [name for name in linear if last_name(name) != "lm_head"]
    if isinstance(targets, str):
        targets = TARGETS.get(targets, targets.split(","))
    chosen = set()
    for target in targets:
        fits = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not fits:
            kinds = ", ".join(sorted({last_name(name) for name in linear} - {"lm_head"}))
            raise UserError(f"target {target!r} fits no linear layer of this model; it has {kinds} "
                            "(or all-linear, attention, mlp)")
        chosen.update(fits)
    return [name for name in linear if name in chosen]


def refuse_unwrappable(module, names):
    """Raise UserError for a layer in `names` that the model uses without calling it.

    A tied unembedding: the embedding looks its weight up. The out_proj of nn.MultiheadAttention:
    the attention reads its weight. `LoRALinear.weight` would answer here, but PEFT, which would
    load such an adapter, ignores it without a word.
    """
    parameters = list(module.named_parameters(remove_duplicate=False))      # tied: under each name
    for name in names:
        parent = module.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise UserError(f"{name} is part of an nn.MultiheadAttention, which reads its weight "
                            "and never calls it, so that an adapter would be passed over; name "
                            "other targets, for instance linear1,linear2")
        W = getattr(unwrapped(module.get_submodule(name)), "weight", None)
        for path, p in parameters:
            if p is W and not path.startswith(f"{name}."):
                raise UserError(f"{name} is tied to {path.removesuffix('.weight')}: LoRA on it "
                                "would untie them; leave it out of the targets")


def unwrapped(layer):
    """The layer itself, or the base of a wrapped one."""
    return layer.base if isinstance(layer, AdaptedLinear) else layer


# ----- merge and unmerge --------------------------------------------------------------------------

@torch.no_grad()
def merge_lora(module):
    """W <- W + s B A. A token then costs what it costs the base: one product instead of three.

    Merging itself costs one product (out, r) (r, in) per layer. The sum is taken in float32 and
    rounded once to W's dtype. Subtracting B A again would not give back the bits that this rounding
    took, so each layer keeps its base for `unmerge_lora`: until then it takes its memory twice, and
    both weights are among the module's parameters.

    A base in four bits is dequantized for the sum and stays so. NF4's levels are 0.08 to 0.30 of a
    block's maximum apart, and most numbers of B A are far smaller than half of that: rounded again,
    most weights would get their old code back. A warning says that it happens. Merging is never a
    side effect of .eval().
    """
    layers = [layer for layer in adapted_layers(module).values() if layer.merged is None]
    quantized = [layer for layer in layers if not torch.is_tensor(layer.base.weight)]
    if quantized:
        warnings.warn(f"{len(quantized)} quantized layers are merged into their dequantized "
                      f"weights: they are {quantized[0].base.weight.dtype} now, not four bits",
                      stacklevel=3)         # 2 is no_grad's own frame
    for layer in layers:
        layer.merged = dense_linear(layer.weight, layer.bias)


def unmerge_lora(module):
    """Undo merge_lora: each layer computes W x + s B A x again, with the W that it had."""
    for layer in adapted_layers(module).values():
        layer.merged = None


def dense_linear(W: torch.Tensor, bias) -> nn.Linear:
    """A frozen linear layer with the weight W (out, in)."""
    linear = nn.Linear(W.shape[1], W.shape[0], device="meta")       # meta: takes no memory
    linear.weight = nn.Parameter(W, requires_grad=False)
    linear.bias = bias
    return linear


# ----- several adapters on one base ---------------------------------------------------------------

class Factors(NamedTuple):
    """What an adapter holds for one layer. An adapter in memory is {name of a layer: Factors}."""
    A: torch.Tensor             # (r, in), float32
    B: torch.Tensor             # (out, r), float32
    alpha: float
    dropout: float = 0.0
    rslora: bool = False

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def scale(self) -> float:
        return scaling_factor(self.rank, self.alpha, self.rslora)


def set_adapter(module, adapter: dict[str, Factors] | None, merge=True):
    """Switch tasks in place: W + B A - B A + B' A' (section 4.2). Returns `module`.

    Removes the adapter that `module` carries, attaches `adapter` and merges it. None: the base
    alone. The two may differ in rank, alpha and targets. Nothing is really subtracted, because
    merging keeps the base; so any number of switches is exact.

    merge=False leaves B A next to W. That takes no second copy of W and more work per token, and
    it is the way for a base in four bits, which merging would turn into 16.

    Raises UserError, before anything is changed, for an adapter of another base.
    """
    adapter = adapter or {}
    check_fit(module, adapter, "set_adapter")
    unmerge_lora(module)
    remove_lora(module)
    module.requires_grad_(False)
    attach_factors(module, adapter, lambda base, f: LoRALinear(
        base, f.rank, f.alpha, f.dropout, f.rslora))
    if merge:
        merge_lora(module)
    return module


@torch.no_grad()
def attach_factors(module, adapter: dict[str, Factors], wrap):
    """Put wrap(layer, factors) in the place of each layer of `adapter`, with its A and B."""
    for name, f in adapter.items():
        layer = wrap_layer(module, name, lambda base, f=f: wrap(base, f))
        layer.lora_A.copy_(f.A)
        layer.lora_B.copy_(f.B)


def check_fit(module, adapter, source):
    """Raise UserError unless each B A of `adapter` can be added to a layer of `module`.

    source: where the adapter is from; the message begins with it.
    """
    for name, f in adapter.items():
        try:
            layer = unwrapped(module.get_submodule(name))
            W = (layer.out_features, layer.in_features)
        except AttributeError:
            raise UserError(f"{source}: the adapter is for another base: this one has no linear "
                            f"layer {name}") from None
        BA = (f.B.shape[0], f.A.shape[1])
        if W != BA or f.A.shape[0] != f.B.shape[1]:
            raise UserError(f"{source}: the adapter is for another base: {name} is {W} here, B A "
                            f"is {BA} there")
    refuse_unwrappable(module, adapter)


# ----- PEFT's files -------------------------------------------------------------------------------
#
#     adapter_config.json             r, lora_alpha, target_modules ...
#     adapter_model.safetensors       A and B of each layer, under the names of `peft_name`

PREFIX = "base_model.model."         # of all names of tensors


def peft_name(layer: str, factor: str) -> str:
    """The name of A or B: base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"""
    return f"{PREFIX}{layer}.lora_{factor}.weight"


def save_adapter(module, folder, base_model: str = ""):
    """Write the adapter as PEFT writes it.

    base_model: the name under which others find the base: a folder, owner/name or
    owner/name@revision. Raises UserError if there is no adapter.
    """
    layers = lora_layers(module)
    if not layers:
        raise UserError("there is no adapter to save: the model has no LoRA layers")
    if any(type(layer) is not LoRALinear for layer in layers.values()):
        raise UserError("this is a relative of LoRA, and A and B do not say what it computes; its "
                        "file in methods/ saves it")
    write_adapter(folder, factor_tensors(layers),
                  base_entries(module, base_model) | lora_entries(module, layers))


def factor_tensors(layers: dict[str, LoRALinear]) -> dict[str, torch.Tensor]:
    """A and B of each layer under PEFT's names."""
    tensors = {}
    for name, layer in layers.items():
        tensors[peft_name(name, "A")] = layer.lora_A
        tensors[peft_name(name, "B")] = layer.lora_B
    return tensors


def write_adapter(folder, tensors: dict[str, torch.Tensor], config: dict):
    """Write adapter_model.safetensors, and then adapter_config.json."""
    folder = make_folder(folder)
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with replacing(folder / "adapter_model.safetensors") as part:
        save_file(tensors, part, metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", config)


def lora_entries(module, layers: dict[str, LoRALinear]) -> dict:
    """What adapter_config.json says of A and B.

    The patterns name the layers that differ from the first one.
    """
    first = next(iter(layers.values()))
    # The last names, "q_proj", say which layers are wrapped, unless a layer of that name is not:
    # then each is named in full. linear_layers has only those that are not wrapped.
    targets = {last_name(name) for name in layers}
    if any(last_name(name) in targets for name in linear_layers(module)):
        targets = layers
    return {
        "peft_type": "LORA", "r": first.rank, "lora_alpha": first.alpha,
        "lora_dropout": first.dropout.p, "use_rslora": first.rslora,
        "target_modules": sorted(targets), "bias": "none", "fan_in_fan_out": False,
        "rank_pattern": {re.escape(name): layer.rank for name, layer in layers.items()
                         if layer.rank != first.rank},
        "alpha_pattern": {re.escape(name): layer.alpha for name, layer in layers.items()
                          if layer.alpha != first.alpha},
    }


def base_entries(module, base_model: str) -> dict:
    """What adapter_config.json says of the base, whatever the method."""
    base_name, revision = base_model, ""
    if not Path(base_model).is_dir():           # a folder's own name may hold an @
        base_name, _, revision = base_model.partition("@")
    return {"task_type": "CAUSAL_LM" if hasattr(module, "lm_head") else None,
            "inference_mode": True,
            "base_model_name_or_path": base_name, "revision": revision or None}


def load_adapter(module, folder):
    """Wrap `module` with an adapter of ours or of PEFT's, in place of one that it carries.

    Raises UserError as `read_adapter` does, before anything is changed.
    """
    return set_adapter(module, read_adapter(folder, module), merge=False)


def read_adapter(folder, module=None) -> dict[str, Factors]:
    """The adapter in `folder`, ours or PEFT's, in memory.

    Raises UserError for a kind that is not plain LoRA, as `pair_factors` does, and for one that
    does not fit `module`, if that is given.
    """
    folder = Path(folder)
    config = read_json(folder / "adapter_config.json")
    tensors = read_tensors(folder / "adapter_model.safetensors")
    if not is_plain_lora(config):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise UserError(f"{folder}: only plain LoRA adapters are read here (no DoRA, no trained "
                        f"biases, no PiSSA and its like), and this one is {kind!r}")
    adapter = pair_factors(config, tensors, folder)
    if module is not None:
        check_fit(module, adapter, folder)
    return adapter


def pair_factors(config: dict, tensors: dict, folder) -> dict[str, Factors]:
    """The tensors of PEFT's file -> {name of a layer: its A, B and alpha}.

    config: the content of adapter_config.json. Raises UserError if it is not PEFT's, if parts are
    missing or left over, and if they do not have the ranks that it says.
    """
    check(config, PEFT_CONFIG, Path(folder) / "adapter_config.json")
    names = [key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
             for key in tensors if key.endswith(".lora_A.weight")]
    expected = {peft_name(name, factor) for name in names for factor in "AB"}
    if not names or set(tensors) != expected:
        raise UserError(f"{folder}: the adapter's tensors are not pairs of A and B of linear "
                        "layers, or some are missing")
    adapter = {}
    with time_limit(2, f"{folder}: finding the layers that its patterns fit"):
        for name in names:
            A, B = (tensors[peft_name(name, factor)].float() for factor in "AB")
            rank = value_of(config.get("rank_pattern"), name, config["r"])
            if A.dim() != 2 or B.dim() != 2 or {len(A), B.shape[1]} != {rank}:
                raise UserError(f"{folder}: {name} has A {tuple(A.shape)} and B {tuple(B.shape)}, "
                                f"and by adapter_config.json rank {rank}")
            if not is_target(name, config):
                raise UserError(f"{folder}: {name} has A and B, and by adapter_config.json it is "
                                "no target: PEFT would pass it over")
            alpha = value_of(config.get("alpha_pattern"), name, config["lora_alpha"])
            adapter[name] = Factors(A, B, alpha, config.get("lora_dropout", 0.0),
                                    config.get("use_rslora", False))
    return adapter


PEFT_CONFIG = {     # of adapter_config.json, what is read here
    "r": whole(1), "lora_alpha": Number(above=0), "lora_dropout?": Number(0, at_most=1),
    "use_rslora?": bool, "rank_pattern?": ({str: whole(1)}, None),
    "alpha_pattern?": ({str: Number(above=0)}, None), "target_modules": (str, [str]),
    "exclude_modules?": (str, [str], None), "layers_to_transform?": (whole(), [whole()], None),
    "layers_pattern?": (None, "layers", ["layers"])}


def value_of(patterns: dict | None, name: str, common):
    """The value of the first pattern that fits the end of the layer's path, else `common`."""
    for pattern, value in (patterns or {}).items():
        if fits_pattern(rf"(.*\.)?({pattern})", name):
            return value
    return common


def is_target(name: str, config: dict) -> bool:
    """Whether PEFT puts an adapter on the layer called `name`."""
    targets, layers = config["target_modules"], config.get("layers_to_transform")
    if layers not in (None, []) and not isinstance(targets, str):
        blocks = r"(.*?\.)?layers" if config.get("layers_pattern") else r".*?\.[^.]*"
        index = re.match(rf"{blocks}\.(?P<i>\d+)\.", name)
        if not index or int(index["i"]) not in (layers if isinstance(layers, list) else [layers]):
            return False
    return is_named(name, targets) and not is_named(name, config.get("exclude_modules"))


def is_named(name: str, targets: str | list[str] | None) -> bool:
    """`targets`: ends of layers' paths, or a regular expression for the whole of each."""
    if isinstance(targets, str):
        return targets == "all-linear" or fits_pattern(targets, name)
    return any(f".{name}".endswith(f".{target}") for target in targets or ())


def is_plain_lora(config: dict) -> bool:
    """Whether an adapter_config.json says LoRA next to the base as it is."""
    return config.get("peft_type") == "LORA" and not unusual_entries(config)


def unusual_entries(config: dict) -> list[str]:
    """The names of the entries that say something else."""
    found = [name for name in NOT_PLAIN if config.get(name)]
    if config.get("bias", "none") != "none":
        found.append("bias")
    # Other starts than these, PiSSA's for instance, change the base's weights as well.
    if config.get("init_lora_weights", True) not in (True, False, "gaussian", "eva", "orthogonal"):
        found.append("init_lora_weights")
    return found


# PEFT's entries with which an adapter computes something else than W x + s B A x
NOT_PLAIN = ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication",
             "modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "kasa_config",
             "monteclora_config", "arrow_config")
