"""rsLoRA: LoRA with s = alpha / sqrt(r) instead of alpha / r (Kalajdzievski, arXiv 2312.03732).

lora.scaling_factor derives it (the paper's theorem 3.2), and says what is different with Adam. With
SGD and s = alpha / r, learning slows down as the rank grows: a step changes h by an amount that
shrinks as 1 / r. With alpha / sqrt(r) it keeps its size, so a high rank is used.

A warning for sweeps: s only multiplies B A. At the default alpha = r it is sqrt(r), and the best
learning rate is lower than LoRA's. At alpha = sqrt(r) it is LoRA at alpha = r. So at one rank a
sweep of the rate cannot tell the two apart. What rsLoRA promises is one rate for all ranks. On nano
alpha / r comes closer to that (results/findings_nano.md).

Trained: r (in + out) per target, as LoRA. Saved: PEFT's form, with "use_rslora", which the method
lora reads too. Merges into W.
"""
from lora import apply_lora
from methods import Method, Setup
from methods.lora import count, keeps, pack, unpack


def apply(model, setup: Setup):
    apply_lora(model, setup.rank, setup.alpha, setup.targets, rslora=True)


# reads: never, because the method lora reads its files
METHOD = Method("rslora", apply, count, lr=5e-5, stacks=True, pack=pack, unpack=unpack,
                reads=lambda config: False, keeps=keeps)
