"""A run's settings: the hash that names it, and what a later edition of Config does to it."""
import dataclasses

import pytest
from runs import one_line

import optim
import settings
from plumbing.cli import check_ranges, flag
from plumbing.device import DTYPES
from plumbing.errors import UserError
from settings import Config, settled

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
    off_default = {"keep", "nf4", "options", "supervise"}       # hashed only off their defaults
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
    with pytest.raises(UserError, match=f"--n {value}: it must be .*{words}"):
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
