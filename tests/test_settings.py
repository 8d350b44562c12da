"""A run's settings: the hash that names it, and what a later edition of Config does to it."""
import dataclasses
import hashlib
import json

import pytest
from runs import one_line

import optim
import settings
from plumbing.cli import OUR_CHOICES, OURS, fit_doc, flag, nearest, suggest_flags
from plumbing.device import DTYPES
from plumbing.errors import UserError
from plumbing.fields import check_ranges
from settings import DTYPE_NAMES, OPTIMIZER_NAMES, Config, settled

BASE = {"rank": 8, "lr": 1e-3, "max_steps": 100, "device": "cpu"}


def name_of(**changes):
    return settled(Config(**BASE | changes), 100).run


def test_run_is_a_hash_of_what_decides_the_result():
    for same in ({"micro_bs": 2, "grad_accum": 8}, {"micro_bs": 16, "grad_accum": 1},
                 {"gradient_checkpointing": True}, {"out": "elsewhere"}, {"resume": True},
                 {"alpha": 8.0}, {"compile": True}, {"optimizer": "paged_adamw"}):
        assert name_of(**same) == name_of(), same
    others = [
        {}, {"micro_bs": 2}, {"lr": 2e-3}, {"alpha": 16.0}, {"rank": 16}, {"targets": "mlp"},
        {"seed": 1}, {"max_steps": 99}, {"eval_steps": 5}, {"max_length": 128}, {"model": "other"},
        {"data": "other"}, {"method": "full"}, {"schedule": "linear"}, {"dtype": "bfloat16"},
        {"weight_decay": 0.1}, {"grad_clip": 0.0}, {"warmup_ratio": 0.1}, {"eval_samples": 5},
        {"method": "qlora"}, {"optimizer": "paged_adamw8bit"}, {"supervise": "all"}]
    assert len({name_of(**other) for other in others}) == len(others)
    full = [name_of(method="full", rank=rank) for rank in (8, 16)]
    assert full[0] == full[1]           # without adapters a rank decides nothing


def test_the_hashes_of_the_first_edition_stand():
    """The first is in the README; others are in the CSV files of results/."""
    assert settled(Config(rank=64, lr=2e-4, device="cpu"), 100).run == "3f087d1874"
    assert name_of() == "c2c027203e"
    assert name_of(method="full") == "3356e06af6"


def test_a_run_has_a_name_only_when_it_is_settled():
    """Before, the same run would have two names."""
    with pytest.raises(AssertionError, match="not settled"):
        Config(**BASE).run
    with pytest.raises(AssertionError, match="not settled"):
        dataclasses.replace(settled(Config(**BASE), 100), dtype="auto").run
    once = settled(Config(**BASE), 100)
    assert settled(once, 100).run == once.run


def test_a_setting_that_is_added_later_leaves_the_names_of_runs_that_do_not_use_it():
    @dataclasses.dataclass
    class Later(Config):
        momentum: float = flag(0.0, "a setting of a later edition")

    assert settled(Later(**BASE), 100).run == name_of()
    assert settled(Later(**BASE, momentum=0.5), 100).run != name_of()
    assert settled(Later(**BASE, momentum=0.6), 100).run != settled(Later(**BASE, momentum=0.5),
                                                                    100).run


def test_every_setting_is_hashed_or_knowingly_not():
    off_default = {"dropout", "keep", "nf4", "options", "supervise"}    # hashed only off those
    known = {*settings.HASHED, *settings.NOT_HASHED, *off_default}
    assert known == {field.name for field in dataclasses.fields(Config)}


def test_epochs_count_windows_as_the_trainer_does():
    """40 samples in batches of 16 are three windows, the last with eight samples."""
    steps = [settled(Config(epochs=epochs, device="cpu"), 40).max_steps for epochs in (1, 2, 0.5)]
    assert steps == [3, 6, 2]


def test_names_that_are_listed_without_torch_are_those_that_torch_has():
    assert settings.OPTIMIZER_NAMES == tuple(optim.OPTIMIZERS)
    assert settings.DTYPE_NAMES == tuple(DTYPES)


@pytest.mark.parametrize(("value", "words"), [
    (0, "at least 1 and at most 10"), (11, "at most 10"), (float("nan"), "at least 1"),
    (float("inf"), "at most 10")])
def test_a_range_refuses_what_is_outside_and_says_what_is_inside(value, words):
    @dataclasses.dataclass
    class Some:
        n: float = flag(1, "a number", at_least=1, at_most=10)

    check_ranges(Some())
    check_ranges(Some(n=10))
    check_ranges(Some(n=None))
    with pytest.raises(UserError, match=f"--n {value}.*: it must be .*{words}"):
        check_ranges(Some(n=value))


def test_seeds_say_where_two_of_them_meet(capsys):
    """Seed 42's second epoch is seed 43's first: whoever reads --seed is told."""
    with pytest.raises(SystemExit):
        settings.parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "seed 42's second epoch has the order of seed 43's first" in shown


def test_a_wrong_flag_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        settings.parse(["--wide"])
    error = one_line(stop.value.code, capsys.readouterr().err)
    assert "unrecognized arguments: --wide (python train.py --help lists" in error


HINTS = {
    "--learning_rate 3e-4": "--lr", "--per_device_train_batch_size=4": "--micro_bs",
    "--gradient_accumulation_steps=2": "--grad_accum", "--num_train_epochs 3": "--epochs",
    "--lora_r 8": "--rank", "--lora_alpha=32": "--alpha", "--lora_dropout 0.1": "--dropout",
    "--max_seq_length=512": "--max_length", "--lr_scheduler_type cosine": "--schedule",
    "--output_dir x": "--out", "--bf16": "--dtype bfloat16", "--load_in_4bit": "--nf4",
    "--load_in_8bit": "--nf4 (four bits; there is no base in eight)",
    "--logging_steps 10": "--eval_steps (each evaluation is a row of log.csv)",
    "--rslora": "--method rslora", "--learning-rate=1": "--lr", "--max-steps=3": "--max_steps",
    "--wramup_ratio=0.1": "--warmup_ratio", "--no-resum": "--no-resume"}


@pytest.mark.parametrize("flags", HINTS)
def test_an_unknown_flag_is_told_ours(flags, capsys):
    """By the name that others have for it, or by its spelling."""
    with pytest.raises(SystemExit) as stop:
        settings.parse(flags.split())
    error = one_line(stop.value.code, capsys.readouterr().err)
    asked = flags.split()[0].partition("=")[0]
    assert error == (f"error: unrecognized arguments: {flags}; for {asked} write {HINTS[flags]} "
                     "(python train.py --help lists the settings)\n")


@pytest.mark.parametrize("given, ours", [
    ("--dtype=BF16", "bfloat16"), ("--dtype=fp32", "float32"), ("--optimizer=adamw_torch", "adamw"),
    ("--schedule=cosin", "cosine"), ("--method=bf16", "")])
def test_a_choice_that_others_call_otherwise_is_told_ours(given, ours, capsys):
    with pytest.raises(SystemExit) as stop:
        settings.parse([given])
    error = one_line(stop.value.code, capsys.readouterr().err)
    assert (f"; write {ours} (python" in error) if ours else ("; write" not in error)


def test_each_hint_is_a_flag_that_exists():
    flags = {f"--{field.name}" for field in dataclasses.fields(Config)}
    assert {ours.partition(" ")[0] for ours in OURS.values()} <= flags
    assert not {f"--{name}" for name in OURS} & flags
    assert {*OUR_CHOICES.values()} <= {*DTYPE_NAMES, *OPTIMIZER_NAMES}


def test_a_flag_that_the_command_lacks_is_not_named():
    """sample.py has --nf4, but no rate."""
    message = "unrecognized arguments: --load_in_4bit --learning_rate 1e-3 --lora_r=8 word"
    assert suggest_flags(message, ["--nf4", "--model"]) == "; for --load_in_4bit write --nf4"
    assert suggest_flags("argument --rank: invalid int value: '--lora_r'", ["--rank"]) == ""


# ----- dropout ------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["full", "dora", "rslora"])
def test_methods_without_dropout_refuse_it(method):
    settings.check_config(Config(dropout=0.1, method="qlora"))
    with pytest.raises(UserError) as refused:
        settings.check_config(Config(dropout=0.1, method=method))
    assert str(refused.value) == (f"--dropout is of LoRA's input, and --method {method} does not "
                                  "have it; leave it out, or take --method lora")


def test_a_run_with_dropout_is_named_by_what_its_draws_depend_on_too():
    """How the batch is cut, the kind of device, compilation: each draws other numbers."""
    names = [name_of(**more) for more in (
        {}, {"dropout": 0.1}, {"dropout": 0.2}, {"dropout": 0.1, "compile": True},
        {"dropout": 0.1, "micro_bs": 2, "grad_accum": 8})]
    assert len(set(names)) == 5
    assert name_of(dropout=0.1, gradient_checkpointing=True) == names[1]


def test_what_decides_a_run_is_what_its_name_is_a_hash_of():
    """So a file with these settings can be checked, and read by a later edition of Config."""
    config = settled(Config(**BASE, method="full", dropout=0.0, optimizer="paged_adamw"), 100)
    decides = config.decides
    assert decides == {
        "model": "nano", "data": "nano", "method": "full", "rank": None, "alpha": None,
        "targets": None, "lr": 1e-3, "schedule": "constant", "warmup_ratio": 0.0,
        "optimizer": "adamw", "weight_decay": 0.0, "grad_clip": 1.0, "max_steps": 100,
        "eval_steps": 10, "eval_samples": 0, "max_length": 256, "seed": 42, "dtype": "float32",
        "batch_eff": 16}
    hashed = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    assert config.run == hashed[:10]


@pytest.mark.parametrize("asked, meant", [
    ("dorra", "dora"), ("DoRA", "dora"), ("q-lora", "qlora"), ("prefix layer", "prefix_layer")])
def test_the_choice_that_was_meant_is_named(asked, meant, capsys):
    with pytest.raises(SystemExit):
        settings.parse([f"--method={asked}"])
    assert f"; write {meant} (python train.py" in capsys.readouterr().err
    assert nearest("nothing", settings.METHODS) == ""


def test_a_help_fits_the_terminal():
    doc = ("One two three four.\n\n    python train.py --rank 64\n\n- five six\n  seven eight\n"
           "- nine")
    assert fit_doc(doc, 20) == (
        "One two three four.\n\n    python train.py --rank 64\n\n"
        "- five six seven\n  eight\n- nine")
