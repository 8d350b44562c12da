"""What an adapter is: its rank, its targets, its size next to its base.

    python analyze.py out/3f087d1874
"""
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import base_of
from lora import Factors, check_fit, read_adapter
from model import ModelConfig, Transformer
from plumbing.cli import flag, parse_flags, run_command
from plumbing.errors import UserError, errors_in_one_line
from plumbing.files import cached_folder, read_json, resolve


@dataclass
class Settings:
    adapter: str = flag(None, "folder of the adapter", nargs="?")
    model: str = flag(
        None, "the base, where the adapter does not say it; a hub repository's config.json is fetched")


def info(adapter: str, model: str | None = None):
    """Print what the adapter in the folder `adapter` is. The network is touched only if `model` names a hub repository."""
    factors = read_adapter(adapter)
    size, nbytes = parameters(factors), (Path(adapter) / "adapter_model.safetensors").stat().st_size
    try:
        base, total, base_bytes = base_sizes(factors, adapter, model)
        share = f", {size / total:.3g} of the base's {total:,}"
        on_disk = f", {nbytes / base_bytes:.3g} of the base's {base_bytes / 1e6:,.2f}" if base_bytes else ""
    except UserError as e:
        if model:
            raise
        base, share, on_disk = e, "", ""
    print(f"adapter     {adapter}\nbase        {base}\nrank        {span(len(f.A) for f in factors.values())}\n"
          f"alpha       {span(f.alpha for f in factors.values())}: B A is scaled by {span(f.scale for f in factors.values())}\n"
          f"parameters  {size:,}{share}\nMB on disk  {nbytes / 1e6:,.2f}{on_disk}\n\n"
          f"{'target':<12}{'layers':>7}{'in -> out':>16}{'parameters':>14}{'||dW||':>10}  (Frobenius, root mean square)")
    for kind in dict.fromkeys(name.rpartition(".")[2] for name in factors):
        some = {name: f for name, f in factors.items() if name.rpartition(".")[2] == kind}
        shape = f"{span(f.A.shape[1] for f in some.values())} -> {span(len(f.B) for f in some.values())}"
        # ||B A||^2 = tr(A^T B^T B A) = the sum of (B^T B) * (A A^T), which are r x r
        squares = [f.scale ** 2 * ((f.B.T @ f.B) * (f.A @ f.A.T)).sum().item() for f in some.values()]
        print(f"{kind:<12}{len(some):>7}{shape:>16}{parameters(some):>14,}{math.sqrt(sum(squares) / len(squares)):>10.4g}")


def parameters(adapter: dict[str, Factors]) -> int:
    return sum(f.A.numel() + f.B.numel() for f in adapter.values())


def span(numbers) -> str:
    low, *_, high = sorted([*numbers] * 2)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def base_sizes(factors: dict[str, Factors], adapter: str, model: str | None) -> tuple[str, int, int]:
    """Name of the base, its parameters, and the bytes of its weights on disk (0: they are not on this machine)."""
    name = model or base_of(adapter)
    folder = resolve(name, ["config.json"]) if model or os.path.isdir(name) else cached_folder(name)
    config = read_json(folder / "config.json")
    config.pop("quantization_config", None)
    with torch.device("meta"):
        base = Transformer(ModelConfig.from_hf(config))
    check_fit(base, factors, adapter)
    return name, sum(p.numel() for p in base.parameters()), sum(f.stat().st_size for f in folder.glob("model*.safetensors"))


def main(argv=None):
    with errors_in_one_line():
        info(**vars(parse_flags(Settings, "analyze.py", __doc__, argv)))


if __name__ == "__main__":
    run_command(main)
