"""What the GPUs of one run send each other in a step: bytes, from the sizes of the model.

    data parallel       gradients of what is trained, summed over all GPUs: once per step
    shards, --fsdp      weights: gathered for each forward and again for each backward pass;
                        gradients of what is cut: summed, each GPU keeps its part, per micro-batch;
                        gradients of adapters, which are not cut: as data parallel, once per step

With n GPUs in a ring, each sends its part of a tensor n - 1 times to reach all others. A tensor of
b bytes that lies in n parts costs each GPU (n - 1) / n b to gather. To sum it and keep a part costs
the same. To sum it and have all of it is both, 2 (n - 1) / n b. Qwen2.5-7B with r = 64, on 8 GPUs:

    LoRA, data parallel     2 x 7/8 x 4 a       a = 161,480,704 adapter parameters: 1.13 GB
    full, data parallel     2 x 7/8 x 4 P       P = 7,615,616,512 parameters: 53.3 GB
    LoRA, --fsdp            7/8 x 2 (2 P - E)   for each micro-batch, and the 1.13 GB:
                                                E = 1,089,998,336 outside the layers: 24.7 GB

E is gathered once: embedding and unembedding stay from the forward to the backward pass. In 16 bits
what is sent is 2 bytes per parameter, and in full fine-tuning E and the gradients are float32. A
base in four bits is sent in four bits. NVLink moves some 400 GB per second, a network of 200 Gbit/s
25 GB. So shards want GPUs in one machine, or long micro-batches.

`z` is memory.Sizes, which has the symbols.
"""
import math


def passes(micro_batches: int, gpus: int) -> int:
    """How many of a step's micro-batches each GPU computes; blanks fill up the last round."""
    return math.ceil(micro_batches / gpus)


def gathered_bytes(z) -> tuple[float, float]:
    """Bytes of the weights as they are gathered -> (of all layers, of what is in none)."""
    layers = z.w * z.W + z.s * (z.P - z.E - z.W)
    return layers, (4 if z.full else z.s) * z.E


def sent_per_step(z, gpus: int) -> dict[str, float]:
    """{what is sent: bytes that each of `gpus` GPUs sends per step}. Evaluation comes on top."""
    part = (gpus - 1) / gpus
    if not z.config.fsdp:
        return {"sum of gradients": 2 * part * 4 * z.trained}
    layers, rest = gathered_bytes(z)
    sent = {"gathered weights": z.passes * part * (2 * layers + rest)}
    if z.full:
        sent["sum of gradients"] = z.passes * part * 4 * z.P
    else:
        sent["sum of gradients"] = 2 * part * 4 * z.trained
    return sent
