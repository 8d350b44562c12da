"""What an adapter is: its rank, its targets, its size next to its base, and how far it moves W.

    python analyze.py out/3f087d1874
"""
import math
import os
from dataclasses import dataclass
from pathlib import Path

from engine import base_of
from lora import Factors, check_fit, last_name, read_adapter
from model import ModelConfig, Transformer
from plumbing.cli import flag, parse_flags, run_command
from plumbing.errors import UserError, errors_in_one_line
from plumbing.files import cached_folder, resolve


@dataclass
class Settings:
    adapter: str = flag(None, "folder of the adapter", positional=True)
    model: str = flag(
        None, "the base, where the adapter does not say it; a hub repository's config.json is "
        "fetched")


def print_adapter(settings: Settings):
    """Print what the adapter is. The network is used only if --model names a hub repository."""
    adapter = read_adapter(settings.adapter)
    factors = adapter.values()
    size = count_numbers(factors)
    n_bytes = (Path(settings.adapter) / "adapter_model.safetensors").stat().st_size

    # ----- next to the base, if its files are on this machine -----
    share = share_on_disk = ""
    print(f"adapter     {settings.adapter}")
    try:
        base_name, base_size, base_bytes = look_up_base(adapter, settings)
    except UserError as e:
        if settings.model:
            raise
        print(f"base        unknown: {e}")
    else:
        print(f"base        {base_name}")
        share = f", {size / base_size:.3g} of the base's {base_size:,}"
        if base_bytes:
            share_on_disk = f", {n_bytes / base_bytes:.3g} of the base's {base_bytes / 1e6:,.2f}"
    alphas = range_of(f.alpha for f in factors)
    print(f"rank        {range_of(f.rank for f in factors)}")
    print(f"alpha       {alphas}: B A is scaled by {range_of(f.scale for f in factors)}")
    print(f"parameters  {size:,}{share}")
    print(f"MB on disk  {n_bytes / 1e6:,.2f}{share_on_disk}\n")

    # ----- one row per kind of layer -----
    print(f"{'target':<12}{'layers':>7}{'in -> out':>16}{'parameters':>14}{'||dW||':>10}"
          "  (Frobenius, root mean square)")
    kinds = {}                                      # "q_proj" -> the factors of all such layers
    for name, f in adapter.items():
        kinds.setdefault(last_name(name), []).append(f)
    for kind, layers in kinds.items():
        n_in = range_of(f.A.shape[1] for f in layers)
        n_out = range_of(f.B.shape[0] for f in layers)
        mean_square = sum(map(squared_norm, layers)) / len(layers)
        print(f"{kind:<12}{len(layers):>7}{f'{n_in} -> {n_out}':>16}{count_numbers(layers):>14,}"
              f"{math.sqrt(mean_square):>10.4g}")


def count_numbers(factors) -> int:
    """How many numbers A and B hold: r (in + out) per layer."""
    return sum(f.A.numel() + f.B.numel() for f in factors)


def squared_norm(f: Factors) -> float:
    """||dW||^2, the sum of the squares of s B A, without making the (out, in) matrix.

    ||B A||^2 = tr(A^T B^T B A) = tr(B^T B A A^T) = sum of (B^T B) * (A A^T)
    """
    BB, AA = f.B.T @ f.B, f.A @ f.A.T                                       # (r, r) each
    return f.scale ** 2 * (BB * AA).sum().item()


def range_of(numbers) -> str:
    """4, 4, 4 -> "4"; 8, 3, 4 -> "3 to 8" """
    numbers = list(numbers)
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def look_up_base(adapter, settings: Settings) -> tuple[str, int, int]:
    """The base's name, its number of parameters, and the bytes of its weights on disk.

    The bytes are 0 if the weights are not on this machine. Raises UserError if its config.json is
    not here either, and if the adapter is for another base.
    """
    base_name = settings.model or base_of(settings.adapter)
    if settings.model or base_name == "nano" or os.path.isdir(base_name):
        folder = resolve(base_name, ["config.json"])
    else:
        folder = cached_folder(base_name)
    base = Transformer.empty(ModelConfig.from_pretrained(folder, quantized=True))
    check_fit(base, adapter, settings.adapter)
    base_size = sum(p.numel() for p in base.parameters())
    base_bytes = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    return base_name, base_size, base_bytes


def main(argv=None):
    with errors_in_one_line():
        print_adapter(parse_flags(Settings, "analyze.py", __doc__, argv))


if __name__ == "__main__":
    run_command(main)
