"""What an adapter is, and what it learned: from its files alone, nothing is trained.

    python analyze.py out/3f087d1874                        # rank, size, what dW does to W
    python analyze.py r8 r64 r64_seed43 --out inside        # and phi of each two, figures, a table
    python analyze.py r8 --tuned full --out inside          # and full fine-tuning's dW

subspaces.py has the mathematics, and says what to beware of; subspace_plots.py draws. Under each
figure stand what to look for, the paper's number and ours, and what would speak against it:

    phi_ONE_TWO.png     what two adapters share         Hu et al., 7.2, fig. 3-4
    weight_ONE.png      what dW does to W, by depth     7.3, table 7, fig. 8
    change_ONE.png      where dW is large, how low      2410.21228 for the
                        its rank is, intruders          intruders
    spectrum_TUNED.png  how much of full fine-tuning's
                        dW its top r directions hold

and in layers.csv a row for each adapter and layer. Most of the time goes into one SVD per W and one
per W + dW: 0.8 s for a layer 896 -> 4864 on one core, so some minutes for Qwen2.5-0.5B.

What is analysed are adapters whose dW is s B A: of LoRA, rsLoRA, LoRA+ and PiSSA. (PiSSA's is saved
as a plain LoRA of rank 2 r. Half of its directions are W's own top ones.) To look into the dW of
another method, merge it with export.py, and give the checkpoint as --tuned.

A tuned checkpoint in bfloat16 is rounded, each weight by up to 2^-9 of itself. dW contains that
noise: its rank is full and its norm about 0.0017 ||W||. train.py writes float32 and adds none.
"""
import csv
import math
import os
import re
import statistics
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from engine import base_of
from lora import TARGETS, Factors, check_fit, find_targets, last_name, read_adapter
from methods import method_that_reads
from model import ModelConfig, Transformer
from plumbing import checkpoint
from plumbing.cli import flag, parse_flags, run_command
from plumbing.errors import UserError, errors_in_one_line
from plumbing.files import cached_folder, check_weight, make_folder, read_json, replacing, resolve
from plumbing.records import group_by
from plumbing.text import range_of
from quant import NF4Tensor
from subspace_plots import make_figures, next_to_chance, save_figures
from subspaces import (TOP, count_intruders, effective_rank, norm_through, overlap, phi,
                       random_directions, share_held, svd_of_product)

FIELDS = ("source", "layer", "depth", "kind", "rank", "W", "dW", "dW/W", "UWV_dW", "UWV_W",
          "UWV_random", "amplification", "effective_rank", "held_by_1", "held_by_8", "B/A",
          "intruders")          # of layers.csv. W, dW: norms; UWV: ||U^T W V||


@dataclass
class Settings:
    adapters: list[str] = flag(
        None, "folders of adapters; each two of them are compared", positional=True, nargs="*",
        type=str, metavar="adapter")
    model: str = flag(
        None, "the base, where the adapter does not say it; a hub repository's config.json is "
        "fetched, and with --out or --tuned its weights")
    tuned: str = flag(None, "a checkpoint of full fine-tuning of the same base")
    out: str = flag(None, "folder for the figures and layers.csv")


def analyze(settings: Settings):
    """Print what each adapter is, what it does to W, and what each two share; --out: draw it."""
    paths = [*settings.adapters, *([settings.tuned] if settings.tuned else [])]
    if not paths:
        raise UserError("the following arguments are required: adapter, or --tuned and --model")
    labels = short_names(paths)
    adapters = {labels[path]: read_factors(path) for path in settings.adapters}

    # ----- what each adapter is -----
    bases = []
    for path in settings.adapters:
        if bases:
            print()
        bases.append(print_adapter(path, adapters[labels[path]], settings))
    if settings.out:
        make_folder(settings.out)       # now: what follows may take minutes

    # ----- each dW next to its W -----
    rows = []
    try:
        base = common_base(bases, settings)
        sources = adapters | tuned_source(settings.tuned, labels, base)
        rows = measure_layers(sources, base, with_svd=bool(settings.out))
        if not rows:
            print("\nevery dW is zero: nothing was trained")
    except UserError as e:
        if settings.tuned or settings.out and (settings.model or len(adapters) < 2):
            raise
        print(f"\ndW cannot be compared with W: {e}")       # phi needs no W
    print_changes(rows)

    # ----- each two adapters -----
    overlaps = {}
    for one, two in combinations(adapters, 2):
        overlaps[one, two] = measure_overlaps(adapters[one], adapters[two])
        print_overlaps(one, two, overlaps[one, two])

    # ----- drawn -----
    if settings.out:
        figures = make_figures(rows, overlaps, labels.get(settings.tuned))
        if not figures:
            raise UserError("there is nothing to draw: every dW is zero, nothing was trained")
        save_results(rows, figures, Path(settings.out))


def short_names(paths: list[str]) -> dict[str, str]:
    """{path: its last part}, or the whole path with _ for / where the last parts are alike."""
    names = {path: Path(path).resolve().name for path in paths}
    if len(set(names.values())) < len(names):
        names = {path: re.sub(r"[^\w.-]+", "_", path) for path in paths}
    return names


def read_factors(path: str) -> dict[str, Factors]:
    """A and B of each layer. Raises UserError for an adapter of a method that has none."""
    method = method_that_reads(read_json(Path(path) / "adapter_config.json"), path)
    if method.name == "lora":
        return read_adapter(path)
    what = "whose dW is not s B A; merge it (export.py), and give the checkpoint as --tuned"
    if method.unmergeable:
        what = "which changes no W, so there is no dW to look into"
    raise UserError(f"{path}: its method is {method.name}, {what}")


# ----- the base -----------------------------------------------------------------------------------

class Base(NamedTuple):
    name: str
    folder: Path
    model: Transformer          # without storage: names and shapes
    bytes: int                  # of its weights on disk; 0 if they are not on this machine

    def size(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def look_up_base(base_name: str, settings: Settings) -> Base:
    """The base called `base_name`. The network is used only if --model names a hub repository.

    Raises UserError if its config.json is not on this machine.
    """
    if settings.model and (settings.out or settings.tuned):
        folder = resolve(base_name)
    elif settings.model or base_name == "nano" or os.path.isdir(base_name):
        folder = resolve(base_name, ["config.json"])
    else:
        folder = cached_folder(base_name)
    model = Transformer.empty(ModelConfig.from_pretrained(folder, quantized=True))
    base_bytes = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    return Base(base_name, folder, model, base_bytes)


def common_base(bases: list[Base | None], settings: Settings) -> Base:
    """The one base of all adapters, or what --model says if there are none."""
    if not bases and settings.model:
        return look_up_base(settings.model, settings)
    if not bases or None in bases or len({base.name for base in bases}) > 1:
        raise UserError("the base is unknown, or the adapters have different ones; give --model")
    return bases[0]


def tuned_source(tuned: str | None, labels: dict, base: Base) -> dict:
    """--tuned as a source of `measure_layers`: each linear layer of it is a change."""
    if not tuned:
        return {}
    return {labels[tuned]: dict.fromkeys(find_targets(base.model, "all-linear"), resolve(tuned))}


def read_layer(folder: Path, name: str, shape) -> torch.Tensor:
    """W (out, in) of one layer in float32; four bits are dequantized."""
    key = f"{name}.weight"
    parts = checkpoint.read_parts(folder, key)
    quantized = checkpoint.unpack_bnb(parts, key, folder)
    W = NF4Tensor(**quantized).dequantize(torch.float32) if quantized else parts[key]
    if not W.is_floating_point() or len(parts) > 1 and not quantized:
        raise UserError(f"{folder}: of quantized checkpoints only bitsandbytes' NF4 is read; give "
                        "the one that it was made from")
    if W.shape != shape:
        raise UserError(f"{folder}: {name} has shape {tuple(W.shape)}, the base has "
                        f"{tuple(shape)}")
    check_weight(folder, name, W)
    return W.float()


# ----- measured: a row per change and layer -------------------------------------------------------

def measure_layers(sources: dict, base: Base, with_svd: bool) -> list[dict]:
    """A row for each layer that each source changes; none where dW is zero.

    sources: {label: {name of a layer: Factors, or the folder of a tuned checkpoint}}.
    with_svd: also what needs the SVD of W and of W + dW.
    """
    rows = []
    names = sorted({name for source in sources.values() for name in source}, key=depth_and_kind)
    for name in tqdm(names, unit="layer", leave=False, disable=None):
        W = read_layer(base.folder, name, base.model.get_submodule(name).weight.shape)
        W_svd = torch.linalg.svd(W, full_matrices=False) if with_svd else None
        for label, source in sources.items():
            row = measure_layer(name, source[name], W, W_svd) if name in source else None
            if row:
                rows.append({"source": label} | row)
    return rows


def measure_layer(name: str, change: Factors | Path, W, W_svd) -> dict | None:
    """The row of one change of one layer."""
    if isinstance(change, Factors):
        U, S, Vh = svd_of_product(change.A, change.B, change.scale)
        r, row = len(S), {"B/A": (change.B.norm() / change.A.norm()).item()}
    else:
        dW = read_layer(change, name, W.shape) - W
        U, S, Vh = torch.linalg.svd(dW, full_matrices=False)
        r, row = TOP, {}        # all directions together would be all of W
    if S[0] == 0:
        return None
    if not S.isfinite().all():
        raise UserError(f"{name}: dW is too large for float32; did the run diverge?")
    depth, _, kind = depth_and_kind(name)
    row |= {"layer": name, "depth": depth, "kind": kind, "shape": tuple(W.shape), "S": S}
    row |= relate_to_weight(W, U[:, :r], S, Vh[:r])
    return row | compare_with_svd(W, W_svd, U, S, Vh, r) if W_svd else row


def relate_to_weight(W, U, S, Vh) -> dict:
    """The columns that need no SVD of W. U (out, r) and Vh (r, in) may be fewer than S."""
    r, held = len(Vh), share_held(S)
    through = norm_through(W, U, Vh)
    # of a full dW, ||dW|| of the same r directions is amplified, so S[:r]
    columns = {"W": W.norm(), "dW": S.norm(), "dW/W": S.norm() / W.norm(), "UWV_dW": through,
               "UWV_random": norm_through(W, *random_directions(*W.shape, r)),
               "amplification": S[:r].norm() / through, "effective_rank": effective_rank(S),
               "held_by_1": held[0], "held_by_8": held[:8][-1]}
    return {"rank": r} | {key: value.item() for key, value in columns.items()}


def compare_with_svd(W, W_svd, U, S, Vh, r: int) -> dict:
    """The columns that need W's own directions, and those of W + dW."""
    U_W, S_W, Vh_W = W_svd
    tenth = math.ceil(len(S_W) / 10)
    U_sum = torch.linalg.svd(W + U * S @ Vh, full_matrices=False).U         # U S Vh is dW
    return {"UWV_W": S_W[:r].norm().item(),             # with its own U and V, U^T W V is diagonal
            "phi_in": overlap(Vh_W[:tenth], Vh[:r]), "phi_out": overlap(U_W.T[:tenth], U.T[:r]),
            "intruders": count_intruders(U_W, U_sum).item()}


def measure_overlaps(one: dict, two: dict) -> list[dict]:
    """phi of A and of B, in a row for each layer that both adapters changed.

    "A top" is phi(1, 1), by chance 1 / in. "A all" is phi(r1, r2), by chance max(r1, r2) / in.
    """
    rows = []
    for name in sorted(one.keys() & two.keys(), key=depth_and_kind):
        f, g = one[name], two[name]
        if f.A.shape[1] != g.A.shape[1] or f.B.shape[0] != g.B.shape[0]:
            raise UserError(f"the adapters are for different bases: {name} differs in shape")
        depth, _, kind = depth_and_kind(name)
        row = {"depth": depth, "kind": kind, "A": phi(f.A, g.A), "B": phi(f.B.T, g.B.T)}
        for side, d in (("A", f.A.shape[1]), ("B", f.B.shape[0])):
            row |= {f"{side} top": row[side][0, 0].item(), f"{side} top by chance": 1 / d,
                    f"{side} all": row[side][-1, -1].item(),
                    f"{side} all by chance": min(1, max(f.rank, g.rank) / d), f"{side} size": d}
        if all(factor.any() for factor in (f.A, f.B, g.A, g.B)):    # zeros have no directions
            rows.append(row)
    return rows


def depth_and_kind(name: str) -> tuple[int, int, str]:
    """model.layers.3.self_attn.v_proj -> (3, 2, "v_proj"); sorts from below, and q before k."""
    number, kind = re.search(r"\.(\d+)\.", name), last_name(name)
    known = [*TARGETS["attention"], *TARGETS["mlp"], kind]
    return int(number[1]) if number else 0, known.index(kind), kind


# ----- printed ------------------------------------------------------------------------------------

def print_adapter(path: str, adapter: dict, settings: Settings) -> Base | None:
    """Print what the adapter is, next to its base -> the base, if its config is on this machine."""
    factors = adapter.values()
    size = count_numbers(factors)
    n_bytes = (Path(path) / "adapter_model.safetensors").stat().st_size

    # ----- next to the base, if its files are on this machine -----
    share = share_on_disk = ""
    base = None
    print(f"adapter     {path}")
    try:
        base = look_up_base(settings.model or base_of(path), settings)
        check_fit(base.model, adapter, path)
    except UserError as e:
        if settings.model:
            raise
        print(f"base        unknown: {e}")
        base = None
    else:
        print(f"base        {base.name}")
        share = f", {size / base.size():.3g} of the base's {base.size():,}"
        if base.bytes:
            share_on_disk = f", {n_bytes / base.bytes:.3g} of the base's {base.bytes / 1e6:,.2f}"
    alphas = range_of(f.alpha for f in factors)
    print(f"rank        {range_of(f.rank for f in factors)}")
    print(f"alpha       {alphas}: B A is scaled by {range_of(f.scale for f in factors)}")
    print(f"parameters  {size:,}{share}")
    print(f"MB on disk  {n_bytes / 1e6:,.2f}{share_on_disk}\n")

    # ----- one row per kind of layer -----
    print("norms of dW: Frobenius, root mean square over layers\n"
          f"{'target':<12}{'layers':>7}{'in -> out':>16}{'parameters':>14}{'||dW||':>10}")
    kinds = {}                                      # "q_proj" -> the factors of all such layers
    for name, f in adapter.items():
        kinds.setdefault(last_name(name), []).append(f)
    for kind, layers in kinds.items():
        n_in = range_of(f.A.shape[1] for f in layers)
        n_out = range_of(f.B.shape[0] for f in layers)
        mean_square = sum(map(squared_norm, layers)) / len(layers)
        print(f"{kind:<12}{len(layers):>7}{f'{n_in} -> {n_out}':>16}{count_numbers(layers):>14,}"
              f"{math.sqrt(mean_square):>10.4g}")
    return base


def count_numbers(factors) -> int:
    """How many numbers A and B hold: r (in + out) per layer."""
    return sum(f.A.numel() + f.B.numel() for f in factors)


def squared_norm(f: Factors) -> float:
    """||dW||^2, the sum of the squares of s B A, without making the (out, in) matrix.

    ||B A||^2 = tr(A^T B^T B A) = tr(B^T B A A^T) = sum of (B^T B) * (A A^T)

    In float64, because the terms of PiSSA's [B, -B0] [A; A0] nearly cancel.
    """
    A, B = f.A.double(), f.B.double()
    BB, AA = B.T @ B, A @ A.T                                               # (r, r) each
    return f.scale ** 2 * (BB * AA).sum().item()


COLUMNS = {      # the two lines of a column's head
    "dW/W": ("||dW||", "/ ||W||"), "effective_rank": ("effective", "rank"),
    "held_by_8": ("share of", "top 8"), "B/A": ("||B||", "/ ||A||"), "UWV_dW": ("||U^T", "W V||"),
    "UWV_random": ("random", "U, V"), "amplification": ("ampli-", "fication")}


def print_changes(rows: list[dict]):
    """What each source does to W: medians for each kind of layer.

    Not means: where ||U^T W V|| happens to be near zero, one amplification outweighs all others.
    """
    for label, changes in group_by("source", rows).items():
        shown = [key for key in COLUMNS if key in changes[0]]
        print(f"\nmedians over layers: what {label} does to W")
        for first, line in zip(("target", ""), zip(*(COLUMNS[key] for key in shown))):
            print(f"{first:<10}" + "".join(f"{text:>10}" for text in line))
        for kind, of_kind in {**group_by("kind", changes), "all": changes}.items():
            medians = [statistics.median(row[key] for row in of_kind) for key in shown]
            print(f"{kind:<10}" + "".join(f"{median:>10.4g}" for median in medians))


def print_overlaps(one: str, two: str, rows: list[dict]):
    """phi of the top directions alone, and of all."""
    print(f"\nmeans over layers: phi of {one} and {two} (in brackets: by chance)")
    if not rows:
        print("there is no layer that both have changed")
        return
    keys = ("A top", "A all", "B top", "B all")
    print(f"{'target':<12}" + "".join(f"{key:>16}" for key in keys))
    for kind, of_kind in {**group_by("kind", rows), "all": rows}.items():
        print(f"{kind:<12}" + "".join(f"{next_to_chance(of_kind, key):>16}" for key in keys))


# ----- saved --------------------------------------------------------------------------------------

def save_results(rows: list[dict], figures: dict, folder: Path):
    """Write the figures and layers.csv, each whole or not at all."""
    save_figures(figures, folder)
    if rows:
        with replacing(folder / "layers.csv") as part, part.open("w", newline="") as file:
            table = csv.DictWriter(file, FIELDS, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
    print(f"\n{folder}: {', '.join([*figures, *(['layers.csv'] if rows else [])])}")


def main(argv=None):
    with errors_in_one_line():
        analyze(parse_flags(Settings, "analyze.py", __doc__, argv))


if __name__ == "__main__":
    run_command(main)
