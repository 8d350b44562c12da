"""A model ready to answer: a base in 16, 32 or four bits, its tokenizer, and answers from it.

    model, tokenizer = open_model("Qwen/Qwen2.5-0.5B-Instruct")
    switch_adapter(model, open_adapter("out/3f087d1874"))           # methods/
    messages = [{"role": "user", "content": "How many legs do three cats have?"}]
    prompt = tokenizer.encode(prompt_of(messages, tokenizer))       # dataset.py
    generate_answers(model, tokenizer, [prompt], max_new_tokens=160)[0].text

The decoder knows nothing of four bits, and the quantizer nothing of decoders. They meet here. Here
the tokenizer meets them too: what goes in and comes out is text, and in between are ids.

A checkpoint holds its linear layers in one of two forms. The example is of Qwen2.5-0.5B:

    in 16 or 32 bits    model.layers.0.mlp.up_proj.weight           (4864, 896)
    in four bits        model.layers.0.mlp.up_proj.weight           (2179072, 1), two per byte
                        model.layers.0.mlp.up_proj.weight.absmax    (68096,), one per 64
                        and the other parts that plumbing/checkpoint.py lists

Either can be opened in four bits. The first is quantized while it is read: 0.99 GB of bfloat16
become 0.46 GB, and for a model of 7.6B parameters 15.2 GB become 5.6 GB.
"""
import bisect
import codecs
import contextlib
import gc
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn

import dataset
from model import ModelConfig, Transformer
from plumbing import checkpoint, shards
from plumbing.device import DTYPES, choose_device, send
from plumbing.errors import UserError
from plumbing.fields import check
from plumbing.files import read_json, resolve
from plumbing.processes import sum_over_processes, take_share
from quant import NF4, NF4Linear, NF4Tensor, dynamic_code, quantize_layer
from tokenizer import Tokenizer, stop_ids


class Answer(NamedTuple):
    text: str
    tokens: int         # generated, including the end token


# ----- loading ------------------------------------------------------------------------------------

def open_model(name, device="auto", dtype="auto", nf4=False) -> tuple[Transformer, Tokenizer]:
    """The model called `name`, as train.py's --model has it, and its tokenizer, ready to answer.

    nf4: with its linear layers in four bits, as --method qlora trains on them.
    """
    device, dtype = choose_device(device, dtype)
    model = load_base(name, DTYPES[dtype], torch.device(device), nf4)
    tokenizer = Tokenizer.from_pretrained(name)
    tokenizer.check_vocabulary(model.config.vocab_size, name)
    return model.requires_grad_(False).eval(), tokenizer


def load_base(name, dtype=None, device=None, nf4=False, each=None) -> Transformer:
    """Transformer.from_pretrained, or load_quantized for `nf4`."""
    load = load_quantized if nf4 else Transformer.from_pretrained
    return load(name, dtype, device, each)


def load_shards(name, dtype, device, nf4: bool, products: torch.dtype) -> Transformer:
    """`load_base` on several processes, each of which keeps its shard of every weight.

    What is in 16 or 32 bits is cut before it has values, and then a process reads its rows alone. A
    layer in four bits is read and quantized whole, because all scales of a weight share a mean. It
    is cut before the next one is read, so a process holds at most its shards and one layer.
    products: the dtype of the layers' products, in which they are gathered.
    """
    everyone = shards.all_processes()

    def cut(model, module_name):
        layers = model.model.layers
        if module_name == "":
            shards.cut_all_but(model, layers, everyone)
        if module_name == "" and not nf4:
            for layer in layers:
                shards.cut(layer, everyone, products)
        if nf4 and (path := re.match(r"model\.layers\.\d+", module_name)):
            layer = model.get_submodule(path[0])
            if not any(p.is_meta for p in layer.parameters()):
                shards.cut(layer, everyone, products)
                gc.collect()        # what was whole is in cycles now, and would stay for long

    return load_base(name, dtype, device, nf4, cut)


def load_quantized(name_or_path, dtype=None, device=None, each=None) -> Transformer:
    """A model with each linear layer but lm_head in NF4. dtype: of the rest and of the products.

    Each weight is quantized as it is read, so only one matrix at a time is in 16 bits. A checkpoint
    that is in four bits already, from save_quantized or bitsandbytes, is taken as it is. each: as
    in Transformer.from_pretrained; it is called when the weight is quantized. Raises UserError for
    files that are missing, broken or do not fit the config.
    """
    folder = resolve(name_or_path)
    hf = read_json(folder / "config.json")
    how = hf.pop("quantization_config", None)
    each = each or (lambda model, module_name: None)

    def quantize_and(model, module_name):
        quantize_layer(model, module_name)
        each(model, module_name)

    if not how:
        return Transformer.from_pretrained(folder, dtype, device, quantize_and)
    check(how, QUANTIZED, f"{folder}: of quantized checkpoints only bitsandbytes' NF4 is read")
    model = Transformer.empty(ModelConfig.from_hf(hf))
    shapes = {name: p.shape for name, p in model.named_parameters()}

    names = {name for _, name, _ in checkpoint.read_weights(folder)}
    known = {"lm_head.weight"}          # some files hold the tied unembedding, too
    for name in shapes:
        known |= {name, *(name + part for part in checkpoint.BNB_PARTS)}
    if extra := names - known:
        raise UserError(f"{folder}: {min(extra)} belongs to no model that config.json describes")

    each(model, "")
    # Embedding, norms and biases are put in as they are; a quantized weight brings its own layer.
    # Its parts may lie in different files, so they are looked up in all.
    for name, shape in shapes.items():
        parts = checkpoint.read_parts(folder, name)
        parts = {key: part.to(device, copy=True) for key, part in parts.items()}
        quantized = checkpoint.unpack_bnb(parts, name, folder)
        skipped = ["embed_tokens", "lm_head", *(how.get("llm_int8_skip_modules") or [])]
        if quantized is not None:
            put_quantized(model, name, NF4Tensor(**quantized), dtype, shape, folder)
        elif len(shape) == 1 or any(skip in name for skip in skipped):
            model.put(name, parts[name], folder, dtype, device)
        else:
            raise UserError(f"{folder}: by its config.json {name} is in four bits, and it is not; "
                            "fetch the checkpoint again")
        each(model, name.rpartition(".")[0])
    model.tie_weights()
    return model


QUANTIZED = {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4",
             "llm_int8_skip_modules?": ([str], None)}       # quantization_config


def put_quantized(model: Transformer, name: str, weight: NF4Tensor, dtype, shape, folder):
    """Make `weight` the weight called `name`: its layer becomes an NF4Linear."""
    module = name.rpartition(".")[0]
    layer = model.get_submodule(module)
    if weight.shape != shape:
        raise UserError(f"{folder}: {name} has shape {tuple(weight.shape)}, config.json asks for "
                        f"{tuple(shape)}")
    if module == "lm_head" or not isinstance(layer, nn.Linear):
        raise UserError(f"{folder}: {name} is quantized, and only the layers' linear maps may be")
    weight.dtype = dtype or weight.dtype
    model.set_submodule(module, NF4Linear(weight, layer.bias))


def save_quantized(model: Transformer, folder):
    """Write a quantized model in four bits, as transformers and bitsandbytes write and read it.

    An NF4Linear has its weight as a submodule, an NF4Tensor, and not as a parameter. So the parts
    of quantized weights join what named_parameters gives: embedding, norms, biases.
    """
    tensors, double_quant = dict(model.named_parameters()), False
    for name, w in model.named_modules():
        if isinstance(w, NF4Tensor):
            tensors |= checkpoint.pack_bnb(name, w, torch.tensor(NF4), dynamic_code())
            double_quant |= w.absmax2 is not None       # the scales are quantized, too
    how = checkpoint.bnb_config(model.model.embed_tokens.weight.dtype, double_quant)
    checkpoint.write_checkpoint(folder, tensors, model.config.hf | {"quantization_config": how})


def base_of(adapter) -> str:
    """The name of the base that the adapter in the folder `adapter` was made for.

    An adapter holds only A and B. Its adapter_config.json says which weights they change, as PEFT
    writes it: a folder, or a hub repository and its revision ("owner/name@revision" here). Raises
    UserError if it does not say, or names a folder that is gone.
    """
    config = read_json(Path(adapter) / "adapter_config.json",
                       {"base_model_name_or_path?": (str, None), "revision?": (str, None)})
    name = config.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{adapter} does not say which base it is for; give --model")
    if name == "nano" or os.path.isdir(name):
        return name
    if Path(name).parts[-3:] == ("data", "nano", "base"):
        return "nano"       # the first edition wrote nano's path in its clone, and that is gone
    if name.count("/") != 1:
        raise UserError(f"{adapter} is for the base {name}, which is not there; give --model")
    return f"{name}@{config['revision']}" if config.get("revision") else name


def default_base(adapter) -> str:
    """What --model is where it is not given: the adapter's base, or nano without an adapter."""
    return base_of(adapter) if adapter else "nano"


# ----- the loss on a test set ---------------------------------------------------------------------

@torch.no_grad()
def mean_nll(model: Transformer, micro_batches, autocast=contextlib.nullcontext) -> float:
    """The mean of -log p(token | the tokens before it) over all supervised tokens, in nats.

    0.693 = ln 2 means that the right tokens had a probability of 1/2 in the (geometric) mean. Every
    token weighs the same, so how the samples are cut into batches does not matter. A mean of the
    batches' means would give the tokens of short answers more weight.

    micro_batches: pairs of ids and labels (B, T), as dataset.micro_batches gives them. autocast():
    the context of each forward pass, for weights in float32 and products in 16 bits. Where several
    processes train one model, each takes its share.
    """
    device = model.device
    nlls, n_tokens = [], 0
    with autocast():
        for ids, labels in take_share(micro_batches, dataset.BLANK):
            nll, n = model.loss(send(ids, device), labels)
            nlls.append(nll)        # no .item() here: it would wait for the GPU in each round
            n_tokens += n
    nll_sum, n_tokens = sum_over_processes(sum(torch.stack(nlls).tolist()), n_tokens)
    return nll_sum / n_tokens


# ----- answers ------------------------------------------------------------------------------------
# messages -> text -> ids -> new ids -> text. The chat template makes the text. The model makes the
# new ids, one per step, until it draws one of the tokens that end its turn (Transformer.stream).

def room_for_prompt(model: Transformer, max_new_tokens: int) -> float:
    """How many tokens of the model's context an answer of `max_new_tokens` leaves for the prompt.

    Qwen2.5: 32,768 - 512 = 32,256. No limit (inf) for a config that gives no context. Raises
    UserError if nothing is left. Beyond its context a model sees positions that it was not trained
    on, and its answers become nonsense without any error.
    """
    context = model.config.hf.get("max_position_embeddings") or math.inf
    context -= len(model.virtual_ids)
    if context <= max_new_tokens:
        raise UserError(f"--max_new_tokens {max_new_tokens} leaves no room for a question in the "
                        f"model's context of {context} tokens")
    return context - max_new_tokens


def fit_prompt(messages: list[dict], tokenizer: Tokenizer, room: float) -> list[int]:
    """The ids that the answer to `messages` begins from, at most `room` of them.

    Takes the oldest turns out of `messages`, in place, until the rest fits: a question with its
    answer at a time, and never the system message. system, Q1, A1, Q2, A2, Q3 becomes system, Q2,
    A2, Q3, and then system, Q3. Raises UserError if the last question alone does not fit.
    """
    first = 1 if messages[0]["role"] == "system" else 0

    def ids_without(pairs: int) -> list[int]:
        """The ids without the oldest `pairs` questions and answers."""
        rest = [*messages[:first], *messages[first + 2 * pairs:]]
        return tokenizer.encode(dataset.prompt_of(rest, tokenizer))

    # By halving: one by one, a conversation of 20,000 messages would be rendered 10,000 times.
    most = (len(messages) - first - 1) // 2
    pairs = bisect.bisect_left(range(most), True, key=lambda n: len(ids_without(n)) <= room)
    ids = ids_without(pairs)
    if not 0 < len(ids) <= room:
        raise UserError(f"the question takes {len(ids)} tokens, and next to --max_new_tokens the "
                        f"model has room for 1 to {room}")
    del messages[first:first + 2 * pairs]
    return ids


def generate_answers(model, tokenizer, prompts: list[list[int]], max_new_tokens, **how
                     ) -> list[Answer]:
    """The answers to a batch of prompts, in their order, without the tokens that end a turn.

    The prompts may differ in length. A batch gives the answers that its prompts would get alone, up
    to rounding: sums of another shape round differently, and where two tokens are nearly equally
    likely, that can decide. On a GPU a batch takes little longer than its longest answer
    alone: a step spends its time reading the weights, once, for one sequence as for many.

    how: model.generate's temperature, top_p, generator. Raises UserError for a prompt of no tokens.
    """
    if not all(prompts):
        raise UserError("the model's chat template makes no text of a question, so nothing can be "
                        "asked; another checkpoint of this model may have the right one")
    rows = model.generate(prompts, max_new_tokens, stop_ids(tokenizer), **how)
    answers = []
    for prompt, row in zip(prompts, rows, strict=True):
        new = row[len(prompt):]             # a row is its prompt and what was generated
        answers.append(Answer(tokenizer.decode(new, skip_special=True).strip(), len(new)))
    return answers


def stream_answer(model, tokenizer, prompt: list[int], max_new_tokens, **how) -> Iterator[str]:
    """The answer to one prompt, piece by piece as it is generated."""
    stream = model.stream([prompt], max_new_tokens, stop_ids(tokenizer), **how)
    return text_pieces((new[0] for new in stream), tokenizer)


def text_pieces(tokens: Iterable[int], tokenizer) -> Iterator[str]:
    """The text of `tokens` as they come, special tokens left out.

    A character that begins in one token waits for its last byte in another: "ế" is E1 BA BF, and
    where one token ends in E1 BA and the next begins with BF, the first gives nothing of it. At the
    end an incomplete character becomes U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if token not in tokenizer.special_ids:
            yield decoder.decode(tokenizer.to_bytes.get(token, b""))
    yield decoder.decode(b"", final=True)
