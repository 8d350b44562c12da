"""A model in shards: each process keeps its rows of every weight (torch's fully_shard, "FSDP2").

    loading     each process reads its rows of every weight; of a layer that is quantized all, and
                keeps its rows before it reads the next layer
    forward     before a layer computes, all processes gather its weights; afterwards they let go
    backward    the weights are gathered again. Their gradients are summed over the processes, and
                each process keeps its rows of the sum
    update      each process updates its rows, with its rows of AdamW's moments

A shard is a DTensor: it has the shape of the whole weight and holds some rows of it. Outside its
layer's own forward and backward pass, a weight is a shard.

What is cut is what is large. In full fine-tuning that is every weight, with its gradient and its
moments: 16 bytes per parameter. In LoRA and QLoRA it is the frozen base. A and B are put on the
model when the base is cut already, and stay whole in each process: they are a few percent of a
large model's weights. So what LoRA trains is summed, updated, saved and resumed as it is without
shards.
"""
import torch
import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from plumbing import processes


def all_processes() -> DeviceMesh:
    return init_device_mesh(processes.communication_device(), (processes.world(),))


def cut(module: nn.Module, everyone: DeviceMesh, products: torch.dtype | None = None, ignored=()):
    """Leave this process its shard of each weight in `module`, except the `ignored` ones.

    On the meta device, before there are any values, it says which rows will be this process's.
    products: gather float32 weights in this dtype, in which the module multiplies, as autocast
    would round them; norms, too, which autocast leaves alone. Their gradients are summed in
    float32. None: gather them as they are.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard    # loads half of torch
    freeze_buffers(module)
    rounding = MixedPrecisionPolicy(products, torch.float32, cast_forward_inputs=False)
    fully_shard(module, mesh=everyone, mp_policy=rounding, ignored_params=set(ignored))
    # The sum, not the mean: optimizer_step has divided by the tokens of all processes already.
    module.set_force_sum_reduction_for_comms(True)
    module.set_gradient_divide_factor(1.0)


def cut_all_but(model: nn.Module, layers: nn.Module, everyone: DeviceMesh):
    """`cut` for what is in no layer: embedding, last norm, unembedding.

    They are one group, because a tied embedding and unembedding are one weight. The group is
    gathered when `model` computes, and that is `model.loss`, which is not `forward`.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method
    cut(model, everyone, ignored=layers.parameters())
    register_fsdp_forward_method(model, "loss")


def freeze_buffers(module: nn.Module):
    """Make parameters without gradient of the buffers: fully_shard cuts parameters alone.

    A weight in four bits is such buffers. What is not part of a checkpoint, the lookup tables, and
    single numbers stay as they are. So do scales in float32, a small part: they would be gathered
    in 16 bits.
    """
    stored = module.state_dict()
    for path, buffer in list(module.named_buffers()):
        if path in stored and buffer.dim() > 0 and not buffer.is_floating_point():
            owner, _, name = path.rpartition(".")
            owner = module.get_submodule(owner)
            delattr(owner, name)
            owner.register_parameter(name, nn.Parameter(buffer, requires_grad=False))


def let_go(model: nn.Module):
    """Cut again what an evaluation has gathered last, the group of `cut_all_but`.

    After a training step nothing is left to cut, because the backward pass does it.
    """
    if is_cut(model):
        model.reshard()


def is_cut(model: nn.Module) -> bool:
    return hasattr(model, "reshard")


# ----- between shards and whole tensors: what saving and resuming need ----------------------------

def gather(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first process's `tensors`, shards put together in the host's memory; {} for the others.

    All processes must call it, with the same names in the same order. What is no shard is not
    touched.
    """
    whole = {}
    for name, tensor in tensors.items():
        if processes.is_shard(tensor):
            tensor = tensor.full_tensor().cpu()
        if processes.rank() == 0:
            whole[name] = tensor
    return whole


def shard_like(tensor: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`tensor`, whole, cut as p is cut. It stays whole if p is, or if it has another shape."""
    if not processes.is_shard(p) or tensor.shape != p.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor
    # None: each process has the whole and takes its rows; nothing is sent
    return distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)
