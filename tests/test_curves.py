"""The curve of a run and of several; the weights of the lowest test NLL; over-fitting."""
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import REPO
from runs import command, contents, numbers, one_line, press_ctrl_c, write_chat

import curves
import plot
import train
from curves import draw_runs, lowest_row, name_runs, read_run
from engine import mean_nll
from methods import open_adapter, switch_adapter
from model import Transformer
from plumbing.files import read_json, write_json
from plumbing.records import read_rows, write_rows
from settings import Config

FITTING = {"max_steps": 60, "eval_steps": 6, "grad_accum": 1, "lr": 3e-2, "rank": 8}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Four samples for training, ten for testing."""
    return write_chat(tmp_path_factory.mktemp("few"), n_train=4)


@pytest.fixture(scope="module")
def run(checkpoint, few, tmp_path_factory):
    """A run whose test NLL falls and then rises: it sees each of four samples 60 times."""
    out = tmp_path_factory.mktemp("curves") / "run"
    train.main(command(checkpoint(), few, out, "--keep=best", **FITTING))
    return out


def drawn(folders, tmp_path, monkeypatch):
    """The axes that draw_runs draws on."""
    from matplotlib.figure import Figure
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    monkeypatch.setattr(curves, "replacing", shutil_free)
    draw_runs(folders, tmp_path / "c.png")
    return figures[0].axes[0]


class shutil_free:
    """replacing() without a file."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        return False


def test_the_curve_has_every_row_step_0_too(run, tmp_path, monkeypatch):
    rows, settings = read_run(run)
    ax = drawn([run], tmp_path, monkeypatch)
    test, training, ring, key = ax.get_lines()
    assert key.get_label() == "training NLL, mean since the point before"
    assert key.get_linestyle() == training.get_linestyle() == "--"
    assert test.get_xydata().tolist() == [[row["step"], row["test_nll"]] for row in rows]
    assert rows[0]["step"] == 0 and len(rows) == 11
    assert training.get_xydata().tolist() == [[row["step"], row["train_nll"]]
                                              for row in rows[1:]]
    lowest = min(rows, key=lambda row: row["test_nll"])
    assert ring.get_xydata().tolist() == [[lowest["step"], lowest["test_nll"]]]
    assert f"lowest {lowest['test_nll']:.3f}, at step {lowest['step']}" in test.get_label()
    assert settings["samples"] == 4
    passes = next(child for child in ax.get_children() if "SecondaryAxis" in str(type(child)))
    assert passes._functions[0](10) == 10.0             # a step is a pass


def test_several_runs_are_named_by_what_differs(run, tmp_path, monkeypatch):
    other = shutil.copytree(run, tmp_path / "other")
    content = read_json(other / "run.json")
    content["settings"] |= {"lr": 1e-3, "schedule": "cosine", "rank": 16, "alpha": 16.0,
                            "epochs": 3.0}
    content["run"] = Config.of_settings(content, "run.json").run
    write_json(other / "run.json", content)
    write_rows(other / "log.csv", [row | {"run": content["run"], "lr": 1e-3}
                                   for row in read_rows(run / "log.csv")])
    assert name_runs([read_run(folder)[1] for folder in (run, other)]) == [
        "rank 8, lr 0.03, schedule constant", "rank 16, lr 0.001, schedule cosine"]
    ax = drawn([run, other], tmp_path, monkeypatch)
    assert len(ax.get_lines()) == 2 * 3 + 1
    first, _, _, second, *_ = ax.get_lines()
    assert first.get_label().startswith(
        "rank 8, lr 0.03, schedule constant; test NLL: lowest")
    assert first.get_color() != second.get_color() and first.get_marker() != second.get_marker()
    assert ax.figure.get_figheight() == pytest.approx(curves.HEIGHT + 3 * curves.LINE_HEIGHT)


def test_runs_of_one_setting_are_named_by_their_folders(run, tmp_path, monkeypatch):
    ax = drawn([run, shutil.copytree(run, tmp_path / "again")], tmp_path, monkeypatch)
    first, _, _, second, *_ = ax.get_lines()
    one, other = ("".join(line.get_label().split("\n")) for line in (first, second))
    assert one.startswith(f"{run}; test") and other.startswith(f"{tmp_path / 'again'}; test")


def test_the_command_draws_runs_and_says_what_is_none(run, tmp_path, capsys):
    assert (run / "curve.png").read_bytes()[:4] == b"\x89PNG"       # train.py drew it
    plot.main([str(run), str(run), "--out", str(tmp_path)])
    assert (tmp_path / "curve.png").exists()
    assert str(tmp_path / "curve.png") in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        plot.main([str(run), str(tmp_path)])
    assert "no run of train.py" in one_line(stop.value.code, capsys.readouterr().err)


def test_runs_of_different_folders_need_a_place_for_their_figure(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    with pytest.raises(SystemExit) as stop:
        plot.main([str(run), str(other)])
    error = one_line(stop.value.code, capsys.readouterr().err)
    assert "the runs lie in different folders; --out says where" in error
    assert plot.common_place([run]) == run and plot.common_place([run, run]) == run.parent
    (other / "log.csv").unlink()            # a run before its first evaluation
    with pytest.raises(SystemExit) as stop:
        plot.main([str(other)])
    assert "no evaluation yet; --watch" in one_line(stop.value.code, capsys.readouterr().err)


def test_watching_waits_for_a_run_that_has_not_begun(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plot.time, "sleep", lambda seconds: shutil.copytree(run, tmp_path / "new"))
    plot.main([str(tmp_path / "new"), "--watch"])
    assert capsys.readouterr().out.startswith(f"waiting for {tmp_path / 'new'}; Ctrl-C stops\n")
    assert (tmp_path / "new/watch.html").exists()


def test_watching_ends_with_the_run(run, tmp_path, monkeypatch, capsys):
    """Two evaluations are drawn, and the page shows the figure."""
    lengths = iter([3, 3, 11, 11])
    ended = iter([False, True])
    monkeypatch.setattr(plot, "read_rows", lambda path: read_rows(path)[:next(lengths)])
    monkeypatch.setattr(plot, "has_ended", lambda folder: next(ended))
    monkeypatch.setattr(plot.time, "sleep", lambda seconds: next(lengths))
    plot.main([str(run), "--watch", "--out", str(tmp_path)])
    assert "step 12\n" in (out := capsys.readouterr().out) and "step 60\n" in out
    assert "curve.png" in (tmp_path / "watch.html").read_text()


@pytest.mark.parametrize("nlls, keep, words", [
    ([4.0, 1.0, 0.9], "last", ""), ([4.0, 0.9, 0.91], "last", ""),
    ([4.0, 0.9, 1.2], "last", "was lowest, 0.900, at step 1, and ended at 1.200; --keep best"),
    ([4.0, 0.9, 1.2], "best", ""), ([4.0, 0.9, 7.5], "best", "7.500, above the base's 4.000"),
    ([4.0, 8.0, float("nan")], "last", "ended at nan, above the base's 4.000: take a lower --lr")])
def test_how_a_run_ended(capsys, nlls, keep, words):
    train.print_how_it_ended([{"step": i, "test_nll": nll} for i, nll in enumerate(nlls)], keep)
    out = capsys.readouterr().out
    assert words in out and bool(out) == bool(words)


# ----- --keep best --------------------------------------------------------------------------------

def test_the_weights_of_the_lowest_test_nll_are_saved(run, checkpoint, few):
    rows = read_rows(run / "log.csv")
    lowest = lowest_row(rows)
    assert 0 < lowest["step"] < 60 and rows[-1]["test_nll"] > lowest["test_nll"] + 0.01
    assert read_json(run / "run.json")["saved_step"] == lowest["step"]
    model = switch_adapter(Transformer.from_pretrained(checkpoint()), open_adapter(run),
                           merge=False)
    import dataset
    from tokenizer import Tokenizer
    samples, _ = dataset.load_split(few / "test.jsonl", Tokenizer.from_pretrained(checkpoint()),
                                    256)
    measured = mean_nll(model, dataset.micro_batches(samples, 16))
    assert measured == pytest.approx(lowest["test_nll"], rel=1e-5)


@pytest.mark.parametrize("step", [4, 25, 50])
def test_a_stop_does_not_change_which_weights_are_saved(
        run, checkpoint, few, step, tmp_path, monkeypatch):
    argv = command(checkpoint(), few, tmp_path / "run", "--keep=best", **FITTING)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        press_ctrl_c(patched, step=step)
        train.main(argv)
    train.main([*argv, "--resume"])
    assert numbers(tmp_path / "run") == numbers(run)
    files = [{path.name: data for path, data in contents(one).items() if "adapter" in path.name}
             for one in (run, tmp_path / "run")]
    assert files[0] == files[1]


def test_full_fine_tuning_keeps_the_best_and_says_once_that_it_over_fits(
        checkpoint, few, tmp_path, capfd):
    out = tmp_path / "full"
    train.main(command(checkpoint(), few, out, "--keep=best", "--method=full", max_steps=80,
                       eval_steps=8, grad_accum=1, lr=5e-3))
    rows = read_rows(out / "log.csv")
    step = read_json(out / "run.json")["saved_step"]
    assert step == lowest_row(rows)["step"] < 80
    assert not (out / "state").exists()
    assert [read_run(out)[1][name] for name in ("method", "rank", "alpha")] == ["full", "", ""]
    printed = "".join(capfd.readouterr())
    assert printed.count("learns its samples by heart") == 1
    assert "80 over the training samples" in printed
    assert f"saved: the weights of step {step}," in printed


def test_a_setting_that_a_method_does_not_have_names_no_run():
    lora = {"method": "lora", "rank": 8, "alpha": 8.0, "targets": "all-linear"}
    full = {"method": "full", "rank": "", "alpha": "", "targets": ""}
    assert name_runs([lora, full]) == ["method lora", "method full"]
    assert name_runs([lora, lora | {"rank": 64, "alpha": 64.0}, full]) == [
        "method lora, rank 8", "method lora, rank 64", "method full"]
    adapter = {"method": "adapter", "rank": 8, "alpha": "", "targets": ""}
    assert name_runs([lora, adapter | {"rank": 4}]) == [
        "method lora, rank 8", "method adapter, rank 4"]


# ----- over-fitting -------------------------------------------------------------------------------

@pytest.mark.parametrize("test, training, word", [
    ((3, 2, 2.1, 2.2, 2.3), ("", 3, 2, 1, 0.5), True),
    ((3, 2, 2.1, 2.3, 2.2), ("", 3, 2, 1, 0.5), True),          # not in each evaluation
    ((2, 2.1, 2.2, 2.3), ("", 2, 1, 0.5), True),                # from the first step on
    ((3, 2, 2.01, 2.02, 2.03), ("", 3, 2, 1, 0.5), False),      # by less than 2 %
    ((3, 2, 3, 2.5, 2.2), ("", 2.5, 3.2, 2.7, 2.3), False),     # a spike
    ((3, 5, 4, 3.5), ("", 6, 4.5, 3.7), False),                 # a bad start
    ((3, 2, 2.1, 2.2, 2.3), ("", 3, 2, 1, 2.5), False),         # training rises, too
    ((3, 2, 2.1, 2.2, float("nan")), ("", 3, 2, 1, 0.5), False),
    ((3, 2, 2.1, 2.2), ("", 3, 2, 1), False)])                  # too early
def test_over_fitting_is_a_test_nll_that_rises_while_the_training_nll_falls(
        test, training, word):
    rows = [{"test_nll": one, "train_nll": other} for one, other in zip(test, training)]
    assert train.is_over_fitting(rows) is word


def test_the_clock_of_the_bar_begins_with_the_first_step(checkpoint, chat, tmp_path, monkeypatch):
    """The evaluation of step 0 and what is written after it take a second here."""
    bars, elapsed, step = [], [], train.make_step

    class Bar(train.tqdm):
        def __init__(self, *args, **how):
            super().__init__(*args, **how | {"disable": False})
            bars.append(self)

    def slow(path, rows):
        time.sleep(1.0)
        write_rows(path, rows)

    monkeypatch.setattr(train, "tqdm", Bar)
    monkeypatch.setattr(train.records, "write_rows", slow)
    monkeypatch.setattr(train, "make_step",
                        lambda run: elapsed.append(bars[0].format_dict["elapsed"]) or step(run))
    train.main(command(checkpoint(), chat, tmp_path / "run", max_steps=1))
    assert len(elapsed) == 1 and elapsed[0] < 0.5


def test_where_there_is_no_terminal_a_line_now_and_then_tells_the_time(
        checkpoint, chat, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "LINE_EVERY", 0.0)
    train.main(command(checkpoint(), chat, tmp_path / "run"))
    out = capsys.readouterr().out
    assert re.search(r"^step 3 of 6, about \d\.\d min left$", out, re.M)


def test_a_reader_that_has_enough_ends_a_command_without_a_word():
    code = f"{sys.executable} plan.py | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == "141\n" and done.stderr == ""
