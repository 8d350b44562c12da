"""Prefix-layer tuning: virtual tokens with trained activations after every layer.

Hu et al. (arXiv 2106.09685), section 5.1, after Li and Liang's prefix-tuning (arXiv 2101.00190):

    x_0 = [P_0; embedding[ids]]             as in prefix_embedding.py
    x_k = layer_k(x_(k-1)), and then its first l tokens are replaced by P_k         k = 1 .. L - 1

P_k (l, C). What the layers compute for virtual tokens is thrown away, so text meets in each layer
the keys and values of freely chosen vectors. After the last layer nobody looks at them any more.

A token sees only what is to its left, so what the base computes for the first l tokens does not
depend on the text. P_k begins as just that, for tokens drawn from the vocabulary: the run starts as
prefix_embedding would.

Trained and saved: L l C, under the names of this project; --rank is l. Nothing merges into W.
"""
import torch
import torch.nn as nn

from methods import Method, Setup, Shapes, Wrapper, prefix_embedding, wrap_module


class PrefixLayer(Wrapper):
    """A layer whose output has P (l, C) in the place of its virtual tokens."""

    def __init__(self, base: nn.Module, P):
        super().__init__(base)
        self.P = nn.Parameter(P)

    def forward(self, x, cos, sin, mask=None, cache=None):
        x = self.base(x, cos, sin, mask, cache)
        if cache is not None and cache.used:
            return x                    # the virtual tokens were in the first pass
        P = self.P.to(x.dtype).expand(len(x), -1, -1)                       # (B, l, C)
        first = 0 if cache is None else cache.pad       # the column where each sequence begins
        columns = first + torch.arange(P.shape[1], device=x.device)         # (l,) or (B, l)
        return x.scatter(1, columns[..., None].expand_as(P), P)


@torch.no_grad()
def apply(model, setup: Setup):
    prefix_embedding.apply(model, setup)
    for k, start in enumerate(outputs_for_prefix(model)):
        wrap_module(model, f"model.layers.{k}", lambda base, P=start: PrefixLayer(base, P))


def outputs_for_prefix(model) -> list:
    """What each layer but the last puts out for the virtual tokens alone: (l, C) in float32."""
    outputs = []
    hooks = [layer.register_forward_hook(lambda m, args, x: outputs.append(x[0].float()))
             for layer in list(model.model.layers)[:-1]]       # nothing reads the last one's
    model.hidden_after(*model.start_cache([[]], 0))
    for hook in hooks:
        hook.remove()
    return outputs


def count(shapes: Shapes, setup: Setup) -> int:
    """L l C: P_0 and one for each layer but the last."""
    return shapes.layers * setup.rank * shapes.hidden


METHOD = Method(
    "prefix_layer", apply, count, lr=3e-2, ignores=("alpha", "targets"), reads_base=True,
    keeps_x=False, virtual=True, unmergeable="its virtual tokens are input and no weights")
