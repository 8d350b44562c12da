"""Run a script with products of bfloat16 as instructions for them round, where there are none.

    python results/bfloat16.py train.py --dtype bfloat16 --seed 42

Such instructions multiply exactly, add up in float32, and round the sum once. Here each product of
bfloat16 matrices is made in float32 and rounded. Attention stays torch's own kernel. It is not
quite as fast as float32, but without it one product takes 60 times as long: speed.md.
"""
import runpy
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}


class RoundOnce(TorchDispatchMode):
    """Forward and backward: autograd calls these functions, too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return function(*args, **kwargs)
        return function(*(x.float() for x in args), **kwargs).bfloat16()


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, ".")
    with RoundOnce():
        runpy.run_path(sys.argv[0], run_name="__main__")
