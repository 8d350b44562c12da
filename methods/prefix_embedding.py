"""Prompt tuning: trained embeddings in front of every text (Lester et al., arXiv 2104.08691).

    x = [P; embedding[ids]]         P (l, C), trained; --rank is l, the number of virtual tokens

Hu et al. call it prefix-embedding (section 5.1). Nothing else of the model changes: text attends to
the virtual tokens as to any others, and stands l positions further to the right. They begin as the
embeddings of tokens drawn from the vocabulary. Numbers of another size would be far from everything
that the first layer has seen (Lester et al., section 3.2, find drawn tokens better).

In code a virtual token is an id beyond the vocabulary: V, V + 1 .. V + l - 1. The decoder puts
these ids in front of a sequence (Transformer.virtual_ids). So positions, masks, left padding and
the cache need nothing more.

They take room: l of the context, and their share of every forward pass. They are computed, but not
predicted: labels and --max_length speak of the text alone.

Trained and saved: l C, in PEFT's form (PROMPT_TUNING). There is no dW, so nothing merges into W.
"""
import math

import torch
import torch.nn as nn

from methods import Method, Setup, Shapes, Wrapper, fill_in, wrap_module
from plumbing.errors import UserError

KEY = "prompt_embeddings"               # PEFT's name of P
EMBEDDING = "model.embed_tokens"


class PrefixEmbedding(Wrapper):
    """The embedding with l rows more: P."""

    def __init__(self, base: nn.Embedding, n_virtual: int):
        super().__init__(base)
        drawn = torch.randint(base.num_embeddings, (n_virtual,), device="cpu")
        self.P = nn.Parameter(base.weight.detach()[drawn.to(base.weight.device)].float())

    @property
    def virtual_ids(self) -> range:
        return range(self.base.num_embeddings, self.base.num_embeddings + len(self.P))

    @property
    def weight(self):
        """Of the vocabulary: the unembedding may be tied to it."""
        return self.base.weight

    def forward(self, ids):
        V = self.base.num_embeddings
        virtual = self.P.to(self.weight.dtype)[(ids - V).clamp(min=0)]      # (B, T, C)
        return torch.where((ids < V)[..., None], self.base(ids.clamp(max=V - 1)), virtual)


def apply(model, setup: Setup):
    context = model.config.hf.get("max_position_embeddings") or math.inf
    if setup.rank >= context:
        raise UserError(f"--rank {setup.rank}: so many virtual tokens leave no room for text in "
                        f"the model's context of {context} tokens")
    model.requires_grad_(False)
    wrap_module(model, EMBEDDING, lambda base: PrefixEmbedding(base, setup.rank))


def count(shapes: Shapes, setup: Setup) -> int:
    """l C."""
    return setup.rank * shapes.hidden


def pack(model, setup: Setup) -> tuple[dict, dict]:
    P, c = model.get_submodule(EMBEDDING).P, model.config
    return {KEY: P}, {
        "peft_type": "PROMPT_TUNING", "num_virtual_tokens": len(P), "token_dim": P.shape[1],
        "num_transformer_submodules": 1, "num_attention_heads": c.num_attention_heads,
        "num_layers": c.num_hidden_layers, "prompt_tuning_init": "RANDOM"}


def unpack(model, config: dict, tensors: dict, folder):
    if KEY not in tensors or tensors[KEY].dim() != 2 or not len(tensors[KEY]):
        raise UserError(f"{folder}: the adapter lacks {KEY}")
    apply(model, Setup(len(tensors[KEY]), 1.0, "", {}))
    fill_in({KEY: model.get_submodule(EMBEDDING).P}, tensors, folder)


METHOD = Method(
    "prefix_embedding", apply, count, lr=3e-2, ignores=("alpha", "targets"), pack=pack,
    unpack=unpack, reads=lambda config: config.get("peft_type") == "PROMPT_TUNING",
    reads_base=True, keeps_x=False, virtual=True,
    unmergeable="its virtual tokens are input and no weights")
