"""LoRA's relatives and rivals, one file each, and the door that the commands enter by.

    lora.py rslora.py loraplus.py       A and B                             dW = s B A
    dora.py                             and a length for each row of W
    pissa.py                            begun from W's largest directions
    adalora.py                          ranks that move to where they matter
    mora.py                             a square matrix instead of A and B
    bitfit.py                           biases alone
    prefix_embedding.py prefix_layer.py tokens in front that no text has
    adapter.py                          small layers between the layers

Each file ends with its `METHOD`: what it puts on a model, how many parameters that trains, and what
else there is to say. So a new method is a new file, and nothing else: `train.py --method` takes the
name of each file here. Only `apply` and `count` must be given. (QLoRA is lora on a base in four
bits. Full fine-tuning puts nothing on the model, and is no file here.)
"""
import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn

from lora import (AdaptedLinear, base_entries, merge_lora, remove_lora, unmerge_lora,
                  unusual_entries, write_adapter)
from plumbing.errors import UserError
from plumbing.fields import Number, check, number_of, whole
from plumbing.files import read_json, read_tensors
from settings import RELATIVES


class Setup(NamedTuple):
    """What a method is put on a model with."""
    rank: int               # r of A and B; of other methods their size: see each `count`
    alpha: float
    targets: str | list     # as in lora.apply_lora
    options: dict           # {name: value} of METHOD.options
    steps: int = 0          # optimizer steps of the run; 0: it is not trained
    dropout: float = 0.0    # of LoRA's x; settings.check_config refuses it for other methods


class Shapes(NamedTuple):
    """What `count` needs to know of a decoder."""
    maps: dict              # {"q_proj": (in, out)}: the linear maps of a layer that are targets
    hidden: int             # C
    layers: int             # L


class Target(NamedTuple):
    """What `keeps` needs to know of one linear map and its forward pass."""
    size_in: int
    size_out: int
    N: int                  # tokens
    s: int                  # bytes per number of the computation: 4 or 2
    dx: bool                # whether x needs a gradient; in the lowest layer it may need none

    def casts(self, numbers: int) -> int:
        """Bytes of float32 weights that are cast to 16 bits."""
        return 2 * numbers if self.s == 2 else 0


# ----- what a method says -------------------------------------------------------------------------

@dataclass(frozen=True)
class Method:
    name: str

    # apply(model, setup): put it on `model`, freeze the rest. Raises UserError for what cannot be.
    apply: Callable
    # count(shapes, setup) -> the number of trained parameters
    count: Callable

    lr: float = 2e-4                # if --lr is not given; from short runs on nano, not swept
    # of --options: {name: default}
    options: dict = dataclasses.field(default_factory=dict)
    # the settings that it does not have, of rank, alpha and targets
    ignores: tuple = ()
    # multiple(name of a parameter, setup) -> by which its learning rate is multiplied
    multiple: Callable = lambda name, setup: 1.0
    # whether it is LoRALinear on the base as it is, and learns by gradients alone: see stack.py
    stacks: bool = False
    # penalty(model, setup): added to the loss of each step, () -> ()
    penalty: Callable | None = None
    # after_update(model, step, setup): step = 1, 2 ...; the gradients are still there
    after_update: Callable | None = None

    # pack(model, setup) -> (tensors, entries of adapter_config.json besides those of the base);
    # None: every trained parameter, under the names of this project. A method with the name of one
    # of PEFT's (ia3, say) needs its own, or PEFT opens the file and finds no weight that it knows
    pack: Callable | None = None
    # unpack(model, config, tensors, folder): put on a bare model what `pack` gave
    unpack: Callable | None = None
    # reads(config): whether an adapter_config.json is this method's; None: by its peft_type
    reads: Callable | None = None
    # whether `apply` reads weights of the base, so that they must not be cut into shards
    reads_base: bool = False
    unmergeable: str = ""           # why it cannot become part of W; "": it can

    # What memory.py counts. keeps(target, setup) -> bytes that autograd keeps for it, besides its x
    keeps: Callable | None = None
    keeps_x: bool = True            # whether the x of each target is kept
    buffers: float = 0.0            # float32 numbers held per trained one, besides AdamW's
    behind: tuple = ()              # the linear maps that it stands behind, if it has no targets
    virtual: bool = False           # whether it puts --rank tokens in front of each text

    def save(self, model, folder, base_model: str, setup: Setup):
        """Write adapter_model.safetensors and adapter_config.json."""
        tensors, entries = (self.pack or self.pack_trained)(model, setup)
        write_adapter(folder, tensors, base_entries(model, base_model) | entries)

    def load(self, model, config: dict, tensors: dict, folder):
        """Put on a bare model what `save` wrote. Raises UserError for what does not fit."""
        (self.unpack or self.unpack_trained)(model, config, tensors, folder)

    def pack_trained(self, model, setup: Setup) -> tuple[dict, dict]:
        return trained_parameters(model), {
            "peft_type": self.name.upper(), "r": setup.rank, "lora_alpha": setup.alpha,
            "target_modules": setup.targets, "options": setup.options}

    def unpack_trained(self, model, config: dict, tensors: dict, folder):
        rank, alpha = read_rank_and_alpha(config, folder)
        check(config, SAVED, Path(folder) / "adapter_config.json")
        text = ",".join(f"{name}={value}" for name, value in config["options"].items())
        largest = max((tensor.numel() for tensor in tensors.values()), default=0)
        if "rank" not in self.ignores and rank > largest:
            raise UserError(f"{folder}: r = {rank} is more than any of the adapter's tensors holds")
        self.apply(model, Setup(rank, alpha, config["target_modules"], parse_options(self, text)))
        fill_in(trained_parameters(model), tensors, folder)


def find_method(name: str) -> Method:
    """The METHOD of methods/NAME.py."""
    return importlib.import_module(f"methods.{name}").METHOD


def method_that_reads(config: dict, folder) -> Method:
    """The method that an adapter_config.json belongs to. Raises UserError if there is none."""
    for name in RELATIVES:
        method = find_method(name)
        if method.reads(config) if method.reads else config.get("peft_type") == name.upper():
            return method
    if config.get("peft_type") == "LORA":
        raise UserError(f"{folder}: a kind of LoRA that is not read here: its config has "
                        f"{', '.join(unusual_entries(config))}")
    raise UserError(f"{folder}: no method here reads this adapter (peft_type "
                    f"{config.get('peft_type')!r}); there are {', '.join(RELATIVES)}")


# ----- tensors and files: what several methods need -----------------------------------------------

def trained_parameters(model) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def kept_buffers(model) -> dict[str, torch.Tensor]:
    """What --resume needs besides weights and AdamW's moments: the buffers of what was put on."""
    return {f"{name}.{key}": buffer for name, module in model.named_modules()
            if isinstance(module, AdaptedLinear | Wrapper)
            for key, buffer in module.named_buffers(recurse=False)}


SAVED = {           # of an adapter_config.json that `pack_trained` wrote
    "target_modules": (str, [str]), "options": {str: (str, Number())}}


def read_rank_and_alpha(config: dict, folder, rank="r") -> tuple[int, float]:
    """Two entries of an adapter_config.json. Raises UserError for what neither can be."""
    shape = {rank: whole(1), "lora_alpha": Number(above=0), "rank_pattern?": (dict, None)}
    check(config, shape, Path(folder) / "adapter_config.json")
    return config[rank], config["lora_alpha"]


@torch.no_grad()
def fill_in(parameters: dict[str, nn.Parameter], tensors: dict, folder):
    """Copy each tensor into the parameter of its name. Raises UserError if they do not fit."""
    for name in sorted(parameters.keys() | tensors.keys()):
        p, tensor = parameters.get(name), tensors.get(name)
        if p is None or tensor is None or p.shape != tensor.shape:
            raise UserError(f"{folder}: the adapter is for another base, or damaged: {name} is "
                            f"{describe_shape(p)} here, {describe_shape(tensor)} there")
        p.copy_(tensor)


def describe_shape(tensor) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


# ----- settings -----------------------------------------------------------------------------------

def parse_options(method: Method, text: str) -> dict:
    """"ratio=8" -> {"ratio": 8.0}, with the method's defaults for what is not given."""
    options = dict(method.options)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in options:
            has = ", ".join(f"{key}={default}" for key, default in options.items()) or "none"
            raise UserError(f"--options {part}: {method.name} has no option {name!r}; it has: "
                            f"{has}")
        kind = type(method.options[name])
        if kind is not str:
            value = check(number_of(value), whole() if kind is int else Number(0),
                          f"--options {part}", name)
        options[name] = kind(value)
    return options


def setup_of(config) -> Setup:
    """From a run's settled config."""
    method = find_method(config.adapter_method)
    return Setup(config.rank, config.alpha, config.targets, parse_options(method, config.options),
                 config.max_steps, config.dropout)


# ----- putting on and taking off ------------------------------------------------------------------

class Adapter(NamedTuple):
    """An adapter in memory."""
    method: Method
    config: dict            # its adapter_config.json
    tensors: dict
    folder: Path


def put_on(model, method: Method, setup: Setup):
    """`method.apply`, after the checks that all methods share."""
    check(setup.rank, whole(1), name="rank")
    if any(isinstance(module, AdaptedLinear | Wrapper) for module in model.modules()):
        raise UserError("the model has an adapter already; methods.take_off takes it off")
    method.apply(model, setup)


def open_adapter(folder, model=None) -> Adapter:
    """Read an adapter of any method, ours or PEFT's.

    Raises UserError if it is damaged, of an unknown kind, or does not fit `model`, if given.
    """
    folder = Path(folder)
    config = read_json(folder / "adapter_config.json")
    tensors = read_tensors(folder / "adapter_model.safetensors")
    adapter = Adapter(method_that_reads(config, folder), config, tensors, folder)
    if model is not None:               # on and off again: whatever is wrong shows now
        try:
            switch_adapter(model, adapter, merge=False)
        finally:
            take_off(model)
    return adapter


def switch_adapter(model, adapter: Adapter | None, merge=True):
    """Take off what `model` carries, and put `adapter` on it. Returns `model`.

    None: the base alone. merge: make it part of W where that can be done (see lora.set_adapter).
    """
    take_off(model)
    model.requires_grad_(False)
    if adapter is not None:
        adapter.method.load(model, adapter.config, adapter.tensors, adapter.folder)
        if merge:
            merge_lora(model)
    return model


def take_off(model):
    """Put the base's own module in the place of each that a method has wrapped."""
    unmerge_lora(model)
    remove_lora(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Wrapper):
            model.set_submodule(name, module.base)


class Wrapper(nn.Module):
    """A module `base` of the decoder with something trained around it: it changes no W."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base


def wrap_module(model, name: str, wrap: Callable):
    """Put wrap(module) in the place of the module called `name`."""
    base = model.get_submodule(name)
    model.set_submodule(name, wrap(base).train(base.training))


