"""analyze.py: what it prints, writes and draws against the tensors; where it looks for the base."""
import csv
import errno
import json
import math
import re
import shutil
import socket
import subprocess
import sys

import huggingface_hub
import numpy as np
import peft
import pytest
import torch
from adapters import LINEARS, randomise_adapter
from conftest import REPO, edit_json
from peft.tuners.lora.intruders import reduce_intruder_dimension
from runs import contents, one_line
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import analyze
from engine import load_quantized, save_quantized
from lora import apply_lora, load_adapter, lora_layers, read_adapter, save_adapter
from model import Transformer
from subspaces import random_directions


def run(capsys, *argv):
    capsys.readouterr()
    analyze.main([str(a) for a in argv])
    return capsys.readouterr().out


def test_what_is_printed(folder, tasks, capsys):
    said = run(capsys, tasks["sums"])
    model = Transformer.from_pretrained(folder)
    total = sum(p.numel() for p in model.parameters())
    size = sum(f.A.numel() + f.B.numel() for f in read_adapter(tasks["sums"]).values())
    n_bytes = (tasks["sums"] / "adapter_model.safetensors").stat().st_size
    base_bytes = (folder / "model.safetensors").stat().st_size
    assert f"base        {folder}\nrank        4\nalpha       6: B A is scaled by 1.5\n" in said
    assert f"parameters  {size:,}, {size / total:.3g} of the base's {total:,}\n" in said
    assert (f"MB on disk  {n_bytes / 1e6:,.2f}, {n_bytes / base_bytes:.3g} of the base's "
            f"{base_bytes / 1e6:,.2f}\n") in said

    table = said.partition("||dW||")[2].partition("\n\n")[0]
    rows = {row.split()[0]: row for row in table.splitlines()[1:]}
    assert set(rows) == set(LINEARS)
    assert re.search(r"2 +32 -> 48 +640 ", rows["up_proj"])
    assert re.search(r"2 +48 -> 32 +640 ", rows["down_proj"])
    load_adapter(model, tasks["sums"])
    for kind, row in rows.items():
        norms = [layer.delta().norm() for name, layer in lora_layers(model).items()
                 if name.endswith(kind)]
        expected = torch.stack(norms).square().mean().sqrt().item()
        assert float(row.split()[-1]) == pytest.approx(expected, rel=1e-3)


def test_several_ranks_and_alphas(folder, tmp_path, capsys):
    """An adapter of PEFT's: k_proj has rank 9 and alpha 2, the other layers 4 and 6."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=LINEARS,
                             rank_pattern={"k_proj": 9}, alpha_pattern={"k_proj": 2})
    model = AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    said = run(capsys, tmp_path)
    assert "rank        4 to 9\n" in said
    assert "alpha       2 to 6: B A is scaled by 0.222222 to 1.5\n" in said


@pytest.mark.parametrize("where", ["the cache", "nowhere", "a folder that is gone", "unsaid"])
def test_it_never_goes_online(folder, tasks, where, tmp_path, monkeypatch, capsys):
    """The base may be in the hub's cache, at the revision that the adapter names."""
    def refuse(*_):
        raise AssertionError("the network was asked for")

    name = {"a folder that is gone": "/no/such/folder", "unsaid": None}.get(where, "owner/base")
    path = tasks["names"] / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = name
    config["revision"] = "v1" if where == "the cache" else None
    path.write_text(json.dumps(config))
    if where == "the cache":
        cached = tmp_path / "hub/models--owner--base"
        shutil.copytree(folder, cached / "snapshots" / ("1" * 40))
        (cached / "refs").mkdir()
        (cached / "refs/v1").write_text("1" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    said = run(capsys, tasks["names"])
    if where == "the cache":
        assert "base        owner/base@v1\n" in said and " of the base's" in said
    else:
        assert "parameters  " in said and "of the base's" not in said
        assert re.search("^base        unknown: .*--model", said, re.MULTILINE)
    assert " of the base's" in run(capsys, tasks["names"], "--model", folder)


@pytest.mark.parametrize("named", ["nano", "/in/another/clone/data/nano/base"])
def test_the_base_of_an_adapter_of_nano_is_found(named, tmp_path, capsys):
    model = Transformer.from_pretrained("nano")
    total = sum(p.numel() for p in model.parameters())
    save_adapter(randomise_adapter(apply_lora(model, 1)), tmp_path, named)
    said = run(capsys, tmp_path)
    assert "base        nano\n" in said and f"of the base's {total:,}\n" in said


# ----- what it learned ----------------------------------------------------------------------------

@pytest.fixture
def unrendered(monkeypatch):
    """The figures are made, and written as an empty PNG: rendering is most of the time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: path.touch())


def table_of(said, title):
    """The rows under the line `title` -> {name of the row: its cells}."""
    assert title in said
    rows = said.partition(f"{title}\n")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [row for row in rows if not row.startswith(" ")]     # a head of two lines
    return {row.split()[0]: re.findall(r"[\d.]+(?:e-\d+)?", row.partition(" ")[2]) for row in rows}


def csv_rows(out):
    with open(out / "layers.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights_of(folder):
    """Every tensor of a checkpoint in one file, as numpy has it."""
    return {name: t.float().numpy() for name, t in load_file(folder / "model.safetensors").items()}


def check_row(row, W, dW, r):
    """A row of layers.csv against numpy's SVDs of the whole W and dW; r: directions used."""
    norm, svd = np.linalg.norm, np.linalg.svd
    U, S, Vt = svd(dW)
    U_W, S_W, _ = svd(W)
    p = S[S > 1e-7 * S[0]] / S.sum()
    through = norm(U[:, :r].T @ W @ Vt[:r].T)
    random_U, random_Vh = (t.numpy() for t in random_directions(*W.shape, r))
    cosines = abs(U_W[:, :len(S_W)].T @ svd(W + dW)[0][:, :10])
    expected = {"W": norm(W), "dW": norm(dW), "dW/W": norm(dW) / norm(W), "UWV_dW": through,
                "UWV_W": norm(S_W[:r]), "UWV_random": norm(random_U.T @ W @ random_Vh.T),
                "amplification": norm(S[:r]) / through, "rank": r,
                "effective_rank": np.exp(-(p * np.log(p)).sum()),
                "held_by_1": (S[0] / norm(dW)) ** 2, "held_by_8": (norm(S[:8]) / norm(dW)) ** 2,
                "intruders": (cosines.max(0) < 0.5).sum()}
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-3), name


def test_the_table_of_layers(folder, tasks, tmp_path, unrendered, capsys):
    """Two adapters of other ranks and targets, each layer next to numpy; medians are printed."""
    out = tmp_path / "out"
    said = run(capsys, tasks["sums"], tasks["tones"], "--out", out)
    weights = weights_of(folder)
    adapters = {name: read_adapter(tasks[name]) for name in ("sums", "tones")}
    rows = csv_rows(out)
    assert ([(row["source"], row["layer"]) for row in rows if row["source"] == "tones"]
            == [("tones", f"model.layers.{i}.{name}") for i in (0, 1)
                for name in ("self_attn.v_proj", "mlp.up_proj")])
    assert len(rows) == 14 + 4
    for row in rows:
        f = adapters[row["source"]][row["layer"]]
        dW = f.alpha / f.rank * f.B.numpy() @ f.A.numpy()
        check_row(row, weights[row["layer"] + ".weight"], dW, f.rank)
        assert float(row["B/A"]) == pytest.approx((f.B.norm() / f.A.norm()).item())
        assert row["layer"].split(".")[2] == row["depth"]
        assert row["layer"].endswith(row["kind"])

    table = table_of(said, "medians over layers: what sums does to W")
    assert list(table) == [*LINEARS, "all"]
    columns = "dW/W", "effective_rank", "held_by_8", "B/A", "UWV_dW", "UWV_random", "amplification"
    for kind, cells in table.items():
        for name, cell in zip(columns, cells, strict=True):
            values = [float(row[name]) for row in rows
                      if row["source"] == "sums" and kind in (row["kind"], "all")]
            assert float(cell) == pytest.approx(np.median(values), rel=1e-3)


def test_intruders_are_those_that_peft_finds(folder, tmp_path, unrendered, capsys):
    """An adapter of PEFT's, strong enough to bring new directions in some layers."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=5, lora_alpha=40, target_modules=LINEARS,
                             init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    model.save_pretrained(tmp_path / "adapter")
    said = []
    reduce_intruder_dimension(model, logging_sink=said.append)
    found = [re.search(r"(layers\..*): (?:No i|I)ntruders:? ?(\d*)", line) for line in said]
    theirs = {match[1]: int(match[2] or 0) for match in found if match}
    run(capsys, tmp_path / "adapter", "--model", folder, "--out", tmp_path / "out")
    ours = {row["layer"].removeprefix("model."): int(row["intruders"])
            for row in csv_rows(tmp_path / "out")}
    assert ours == theirs and len(ours) == 14 and 0 < sum(ours.values()) < 140


def test_what_two_adapters_share(tasks, capsys):
    """The printed means of phi, from the two spaces' projectors: tr(P1 P2) / min(r1, r2)."""
    said = run(capsys, tasks["sums"], tasks["tones"], tasks["names"])
    table = table_of(said, "means over layers: phi of sums and tones (in brackets: by chance)")
    assert list(table) == ["v_proj", "up_proj", "all"]
    one, two = read_adapter(tasks["sums"]), read_adapter(tasks["tones"])
    shared = [name for name in one if name in two and name.endswith("up_proj")]
    for A_or_B, d, cells in (("A", 32, slice(0, 4)), ("B", 48, slice(4, 8))):
        tops, alls = [], []
        for name in shared:
            bases = []
            for f in (one[name], two[name]):
                M = f.A.T if A_or_B == "A" else f.B
                bases.append(np.linalg.svd(M.numpy(), full_matrices=False)[0])      # (d, r)
            tops.append((bases[0][:, 0] @ bases[1][:, 0]) ** 2)
            P1, P2 = (V @ V.T for V in bases)
            alls.append(np.trace(P1 @ P2) / 4)                          # r = 4 and 7
        expected = [np.mean(tops), 1 / d, np.mean(alls), 7 / d]
        printed = [float(cell) for cell in table["up_proj"][cells]]
        assert printed == pytest.approx(expected, abs=0.006)
    # of tones and names only v_proj is in both; the last table is of it alone
    last = table_of(said, "means over layers: phi of tones and names (in brackets: by chance)")
    assert list(last) == ["v_proj", "all"]


def test_adapters_with_nothing_in_common(folder, tmp_path, capsys):
    for name in ("q_proj", "k_proj"):
        model = apply_lora(Transformer.from_pretrained(folder), 2, targets=name)
        save_adapter(randomise_adapter(model), tmp_path / name, str(folder))
    said = run(capsys, tmp_path / "q_proj", tmp_path / "k_proj")
    assert "there is no layer that both have changed" in said


def tune(folder, out, seed=0):
    """A checkpoint of `folder` after full fine-tuning: a strong low-rank change, and noise."""
    model = Transformer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "proj" in name and p.ndim == 2:
                p += 0.1 * torch.randn(len(p), 2, generator=generator) @ torch.randn(
                    2, p.shape[1], generator=generator)
                p += 0.02 * torch.randn(p.shape, generator=generator)
    model.save_pretrained(out)
    return out


def test_full_fine_tuning(folder, tasks, tmp_path, capsys):
    """Alone, and next to an adapter. Of its dW's full rank, the top ten directions are used."""
    tuned, out = tune(folder, tmp_path / "full"), tmp_path / "out"
    alone = run(capsys, "--tuned", tuned, "--model", folder)
    assert list(table_of(alone, "medians over layers: what full does to W")) == [*LINEARS, "all"]
    both = run(capsys, tasks["names"], "--tuned", tuned, "--out", out)
    assert alone.strip() in both
    rows = [row for row in csv_rows(out) if row["source"] == "full"]
    base, weights = weights_of(folder), weights_of(tuned)
    assert len(rows) == 14
    for row in rows:
        W = base[row["layer"] + ".weight"]
        check_row(row, W, weights[row["layer"] + ".weight"] - W, 10)
        assert row["B/A"] == "" and float(row["held_by_8"]) > 0.9       # two directions and noise
    assert sorted(path.name for path in out.iterdir()) == [
        "change_full.png", "change_names.png", "layers.csv", "spectrum_full.png",
        "weight_full.png", "weight_names.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))


def test_a_base_in_shards_or_in_four_bits(checkpoint, tmp_path, unrendered, capsys):
    """In four bits W is what is computed with: the dequantized weight."""
    wide = {"hidden_size": 64, "intermediate_size": 128}
    sharded = checkpoint("qwen2", shard="40KB", **wide)
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    model = Transformer.from_pretrained(sharded)
    save_adapter(randomise_adapter(apply_lora(model, 3)), tmp_path / "adapter", str(sharded))
    quantized = load_quantized(sharded)
    save_quantized(quantized, tmp_path / "nf4")
    for base, W_of in ((sharded, lambda name: lora_layers(model)[name].base.weight),
                       (tmp_path / "nf4", lambda name: quantized.get_submodule(name).weight
                        .dequantize())):
        out = tmp_path / f"out_{base.name}"
        run(capsys, tmp_path / "adapter", "--model", base, "--out", out)
        rows = csv_rows(out)
        assert len(rows) == 14
        for row in rows:
            expected = W_of(row["layer"]).norm().item()
            assert float(row["W"]) == pytest.approx(expected, rel=1e-5)


def test_phi_needs_no_base(tasks, tmp_path, monkeypatch, capsys):
    """Two adapters of a base that is not here: their overlap, drawn, and the network left alone."""
    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    for name in ("sums", "tones"):
        edit_json(tasks[name] / "adapter_config.json", base_model_name_or_path="owner/base")
    out = tmp_path / "out"
    said = run(capsys, tasks["sums"], tasks["tones"], "--out", out)
    assert said.count("base        unknown: owner/base is not on this machine; --model") == 2
    assert "dW cannot be compared with W: " in said and "phi of sums and tones" in said
    assert [path.name for path in out.iterdir()] == ["phi_sums_tones.png"]


def test_what_is_fetched(folder, tasks, tmp_path, unrendered, monkeypatch, capsys):
    """Of the hub repository that --model names: config.json, and with --out the weights."""
    asked = []
    monkeypatch.setattr(analyze, "resolve", lambda *args: asked.append(args) or folder)
    run(capsys, tasks["names"], "--model", "owner/base")
    run(capsys, tasks["names"], "--model", "owner/base", "--out", tmp_path / "out")
    assert asked == [("owner/base", ["config.json"]), ("owner/base",)]


def test_an_adapter_that_was_not_trained(folder, tmp_path, capsys):
    """B = 0 has no directions: no row, no phi of 1 between two of them, and nothing to draw."""
    for name in ("one", "two"):
        save_adapter(apply_lora(Transformer.from_pretrained(folder), 2), tmp_path / name,
                     str(folder))
    said = run(capsys, tmp_path / "one", tmp_path / "two")
    assert "does to W" not in said and "there is no layer that both have changed" in said
    assert "every dW is zero" in said
    assert "every dW is zero" in run(capsys, "--tuned", folder, "--model", folder)
    with pytest.raises(SystemExit) as e:
        run(capsys, tmp_path / "one", "--out", tmp_path / "out")
    assert "nothing was trained" in one_line(e.value.code, capsys.readouterr().err)


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_factor_of_zeros_has_no_directions(folder, tasks, tmp_path, factor):
    model = load_adapter(Transformer.from_pretrained(folder), tasks["sums"])
    getattr(lora_layers(model)["model.layers.0.self_attn.q_proj"], factor).data.zero_()
    save_adapter(model, tmp_path, str(folder))
    one, two = read_adapter(tmp_path), read_adapter(tasks["sums"])
    assert len(analyze.measure_overlaps(one, two)) == len(one) - 1


def test_a_run_that_diverged_is_one_line(folder, tasks, tmp_path, capsys):
    """Finite factors whose product is not."""
    model = load_adapter(Transformer.from_pretrained(folder), tasks["sums"])
    layer = lora_layers(model)["model.layers.0.self_attn.q_proj"]
    for p in (layer.lora_A, layer.lora_B):
        p.data *= 1e25
    save_adapter(model, tmp_path / "a", str(folder))
    with pytest.raises(SystemExit) as e:
        run(capsys, tmp_path / "a", "--out", tmp_path / "out")
    assert "q_proj: dW is too large" in one_line(e.value.code, capsys.readouterr().err)


def test_a_layer_of_zeros(folder, tmp_path, unrendered, capsys):
    """As in models that were deepened by blocks that do nothing yet."""
    model = Transformer.from_pretrained(folder)
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    model.save_pretrained(tmp_path / "base")
    save_adapter(randomise_adapter(apply_lora(model, 2)), tmp_path / "adapter",
                 str(tmp_path / "base"))
    run(capsys, tmp_path / "adapter", "--out", tmp_path / "out")
    zeros = [row for row in csv_rows(tmp_path / "out") if float(row["W"]) == 0]
    assert [row["amplification"] for row in zeros] == ["inf"]


def test_folders_of_one_name(folder, tmp_path, unrendered, capsys):
    """out/a/run and out/b/run: the figures must not write over each other."""
    for parent in ("a", "b"):
        model = apply_lora(Transformer.from_pretrained(folder), 2, targets="q_proj")
        save_adapter(randomise_adapter(model), tmp_path / parent / "run", str(folder))
    run(capsys, tmp_path / "a/run", tmp_path / "b/run", "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("change_*_run.png"))) == 2


# ----- drawn --------------------------------------------------------------------------------------

@pytest.fixture
def drawn(folder, tasks, tmp_path, unrendered, monkeypatch, capsys):
    """(rows of layers.csv, the figures by their names) of two adapters and a tuned checkpoint."""
    kept, save = {}, analyze.save_results

    def keep(rows, figures, folder):
        kept.update(figures)
        save(rows, figures, folder)

    monkeypatch.setattr(analyze, "save_results", keep)
    run(capsys, tasks["sums"], tasks["tones"], "--tuned", tune(folder, tmp_path / "full"), "--out",
        tmp_path / "out")
    return csv_rows(tmp_path / "out"), kept


def caption(figure):
    return " ".join(figure.get_supxlabel().split())


def images(figure):
    """{title of a panel: the numbers it shows as colours}"""
    return {ax.get_title(): np.ma.filled(ax.images[0].get_array(), np.nan)
            for ax in figure.axes if ax.images}


def test_what_the_figures_show(folder, tasks, drawn):
    rows, figures = drawn
    assert all(len(caption(figure).split("Against it: ")) == 2 for figure in figures.values())
    assert all(caption(figure).startswith("Look for: ") for figure in figures.values())

    # v_proj is the kind of Hu et al.'s that both have, and layer 1 the middle of two
    f, g = (read_adapter(tasks[name])["model.layers.1.self_attn.v_proj"]
            for name in ("sums", "tones"))
    panels = images(figures["phi_sums_tones.png"])
    np.testing.assert_allclose(panels["A of v_proj, layer 1"], analyze.phi(f.A, g.A))
    np.testing.assert_allclose(panels["B of v_proj, layer 1"], analyze.phi(f.B.T, g.B.T))
    assert panels["Gaussian A"].shape == (4, 7)
    below = np.isfinite(panels["j <= i"])
    assert (below == np.tril(np.ones((4, 4)))).all()

    sums = [row for row in rows if row["source"] == "sums"]
    q = next(row for row in sums if row["layer"] == "model.layers.1.self_attn.q_proj")
    numbers = ", ".join(f"{float(q[key]):.3g}" for key in ("UWV_dW", "UWV_W", "UWV_random"))
    assert (f"Here q_proj of layer 1, r = 4: {numbers}, amplification "
            f"{float(q['amplification']):.3g}." in caption(figures["weight_sums.png"]))
    axes = {ax.get_title(): ax for ax in figures["weight_sums.png"].axes}
    lines = {line.get_label(): line.get_ydata() for line in axes["amplification"].lines}
    for kind in LINEARS:
        expected = [float(row["amplification"]) for row in sums if row["kind"] == kind]
        assert list(lines[kind]) == pytest.approx(expected)
    means = {line.get_label(): line.get_ydata() for line in axes["mean over kinds"].lines}
    expected = [np.mean([float(row["UWV_dW"]) / float(row["W"]) for row in sums
                         if row["depth"] == depth]) for depth in "01"]
    assert list(means["U, V: dW's"]) == pytest.approx(expected)

    # figure 8: W's top tenth, 4 of 32 directions, against dW's 4
    f = read_adapter(tasks["sums"])[q["layer"]]
    U, _, Vt = np.linalg.svd(f.B.numpy() @ f.A.numpy())
    U_W, _, Vt_W = np.linalg.svd(weights_of(folder)[q["layer"] + ".weight"])
    panels = images(figures["weight_sums.png"])
    for title, V, V_W in (("phi: inputs of W (i) and of dW (j)", Vt.T, Vt_W.T),
                          ("their outputs (q_proj of layer 1)", U, U_W)):
        expected = [[np.linalg.norm(V_W[:, :i].T @ V[:, :j]) ** 2 / min(i, j)
                     for j in range(1, 5)] for i in range(1, 5)]
        np.testing.assert_allclose(panels[title], expected, atol=1e-5)

    change = images(figures["change_tones.png"])
    expected = [[float(row["dW/W"]) for row in rows
                 if row["source"] == "tones" and row["kind"] == kind]
                for kind in ("v_proj", "up_proj")]
    np.testing.assert_allclose(change["||dW|| / ||W||"], expected, rtol=1e-5)
    assert "||B|| / ||A||" in change
    full = images(figures["change_full.png"])
    expected = [[float(row["held_by_8"]) for row in rows
                 if row["source"] == "full" and row["kind"] == kind] for kind in LINEARS]
    np.testing.assert_allclose(full["share of ||dW||^2 in the top 8"], expected, rtol=1e-5)
    assert "||B|| / ||A||" not in full and len(full) == len(change) == 4


def test_how_low_the_rank_is(drawn, folder, tmp_path):
    """The share of ||dW||^2 in the top r, next to numpy; a random matrix needs more."""
    rows, figures = drawn
    left, right = figures["spectrum_full.png"].axes
    base, tuned = weights_of(folder), weights_of(tmp_path / "full")
    shares = []
    for i in (0, 1):
        name = f"model.layers.{i}.self_attn.q_proj.weight"
        S = np.linalg.svd(tuned[name] - base[name])[1]
        shares.append(np.cumsum(S ** 2) / (S ** 2).sum())
    drawn_share, noise = (line.get_ydata() for line in right.lines[:2])     # q_proj is first
    np.testing.assert_allclose(drawn_share, np.mean(shares, 0), rtol=1e-4)
    np.testing.assert_allclose(left.lines[0].get_ydata(), S / S[0], rtol=1e-3, atol=1e-6)
    assert drawn_share[1] > 0.9 > 0.3 > noise[1]


def test_a_full_disk_leaves_what_was_there(tasks, tmp_path, unrendered, monkeypatch, capsys):
    out = tmp_path / "out"
    run(capsys, tasks["names"], "--out", out)
    before = contents(out)

    def fail(self, path, **_):
        path.write_bytes(b"half a")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(SystemExit) as e:
        run(capsys, tasks["names"], "--out", out)
    assert "No space left" in one_line(e.value.code, capsys.readouterr().err)
    assert contents(out) == before and len(before) == 3


def test_matplotlib_is_loaded_for_out_alone(tasks):
    code = "import sys, analyze; analyze.main(sys.argv[1:]); assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tasks["names"]], cwd=REPO, check=True,
                   capture_output=True)


# ----- mistakes -----------------------------------------------------------------------------------

@pytest.fixture
def broken(tasks, folder, tmp_path):
    """Next to the adapters of `tasks`: adapters and bases that cannot be analysed."""
    def copy(source, name):
        return shutil.copytree(source, tmp_path / name)

    edit_json(copy(tasks["sums"], "dora") / "adapter_config.json", use_dora=True)
    edit_json(copy(tasks["sums"], "moved") / "adapter_config.json",
              base_model_name_or_path="owner/base")
    diverged = copy(tasks["sums"], "diverged") / "adapter_model.safetensors"
    tensors = load_file(diverged)
    tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"][0, 0] = math.nan
    save_file(tensors, diverged)
    save_adapter(apply_lora(Transformer.from_pretrained("nano"), 1), tmp_path / "nano_adapter",
                 "nano")
    copy(folder, "tuned")
    weights, name = load_file(folder / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    for base, change in (("int8", {name: weights[name].to(torch.int8)}),
                         ("scaled", {f"{name}_scale_inv": torch.ones(1)}),
                         ("infinite", {name: weights[name] / 0})):
        save_file(weights | change, copy(folder, base) / "model.safetensors")
    del weights[name]
    save_file(weights, copy(folder, "partial") / "model.safetensors")
    (copy(folder, "damaged") / "model.safetensors").write_bytes(b"x" * 1000)
    (copy(folder, "config") / "model.safetensors").unlink()
    (tmp_path / "a file").write_text("")


MISTAKES = {
    "no adapter": ([], "the following arguments are required: adapter"),
    "an unknown setting": (["sums", "--rank", "4"], "unrecognized arguments: --rank 4"),
    "no such adapter": (["nowhere"], "nowhere: no such folder"),
    "another base": (["sums", "--model", "nano"], "sums: the adapter is for another base"),
    "a relative of LoRA": (["sums", "dora"], "dora: its method is dora, whose dW is not s B A; "
                           "merge it (export.py)"),
    "a run that diverged": (["diverged"], "layers.0.mlp.down_proj.lora_A.weight holds a number"),
    "no base to draw": (["moved", "--out", "out"], "the base is unknown"),
    "two bases": (["sums", "nano_adapter", "--tuned", "tuned"], "different ones; give --model"),
    "two bases to compare": (["sums", "nano_adapter"], "the adapters are for different bases"),
    "a file for --out": (["sums", "--out", "a file"], "a file is in the way"),
    "tuned from what": (["--tuned", "tuned"], "give --model"),
    "tuned is an adapter": (["sums", "--tuned", "names"], "names holds an adapter, and no model"),
    "tuned is another model": (["sums", "--tuned", "nano"], "has shape (192, 192), the base has "),
    "a base in eight bits": (["sums", "--model", "int8", "--out", "out"], "only bitsandbytes' NF4"),
    "a base with scales": (["sums", "--model", "scaled", "--out", "out"],
                           "only bitsandbytes' NF4"),
    "an infinite base": (["sums", "--model", "infinite", "--out", "out"], "up_proj holds a number"),
    "no weights": (["sums", "--model", "config", "--out", "out"], "has no model.safetensors"),
    "a weight is missing": (["sums", "--model", "partial", "--out", "out"], "has no tensor"),
    "a damaged base": (["sums", "--model", "damaged", "--out", "out"], "is damaged or incomplete"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(broken, case, tmp_path, monkeypatch, capsys):
    argv, words = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as e:
        run(capsys, *argv)
    assert words in one_line(e.value.code, capsys.readouterr().err)
    assert contents(tmp_path) == before
