"""The house: who may import whom, what loads no torch, and that a name means one thing."""
import ast
import re
import subprocess
import sys
from collections import defaultdict

import pytest
from conftest import REPO

# From the ground up. A room imports from floors below its own.
FLOORS = [
    {"plumbing", "metrics"},
    {"settings", "rates", "arms", "verdicts", "quant", "lora", "optim", "subspaces",
     "communication"},
    {"model", "tokenizer", "dataset", "subspace_plots", "curves"},
    {"engine", "methods"},
    {"train", "memory"},
    {"stack"},
    {"sweep", "plot", "sample", "evaluate", "export", "analyze", "plan", "bench"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# on one floor, and allowed
NEIGHBOURS = {("plumbing", "plumbing"), ("methods", "methods"), ("optim", "quant"),
              ("settings", "methods"), ("arms", "rates"), ("arms", "settings"),
              ("verdicts", "rates"), ("verdicts", "arms")}
MAY_IMPORT_TRAIN = {"stack", "sweep", "plan", "bench"}
FILES = sorted([*REPO.glob("*.py"), *REPO.glob("plumbing/*.py"), *REPO.glob("methods/*.py"),
                REPO / "data/check.py"])
DATA = sorted(REPO.glob("data/**/*.py"))
PEERS = {"transformers", "peft", "trl", "bitsandbytes", "datasets"}     # the tests' references


def room_of(path):
    return path.parent.name if path.parent.name in ("plumbing", "methods") else path.stem


def imports(path):
    """The modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: rooms are imported by their full names"
            yield node.module


def test_every_room_is_on_a_floor():
    rooms = {room_of(path) for path in FILES} - {"check"}           # data/check.py is a command
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_room_imports_from_floors_below(path):
    room = room_of(path)
    floor = FLOOR.get(room, len(FLOORS) - 1)
    for module in imports(path):
        other = module.partition(".")[0]
        if other not in FLOOR:
            continue
        below = FLOOR[other] < floor or (room, other) in NEIGHBOURS
        assert below, f"{path.name} imports {module}, which is not below it"
        assert other != "train" or room in MAY_IMPORT_TRAIN, f"{path.name} imports train"


@pytest.mark.parametrize("path", sorted({*FILES, *DATA}), ids=lambda path: path.stem)
def test_the_libraries_that_we_are_held_against_are_not_used(path):
    """But by bench.py, which measures them."""
    used = {module.partition(".")[0] for module in imports(path)} & PEERS
    assert not used or path.stem == "bench"


def test_what_the_prepare_scripts_share_is_plumbing():
    """They run before anything is installed but the hub's client: no torch, no room above."""
    house = {m for m in imports(REPO / "data/common.py") if m.partition(".")[0] in FLOOR}
    assert {module.partition(".")[0] for module in house} <= {"plumbing"}


def test_what_can_be_lifted_out_names_its_plumbing():
    """lora.py and quant.py go to another project with one to three files, subspaces.py alone."""
    allowed = {"lora": {"plumbing.errors", "plumbing.fields", "plumbing.files"},
               "quant": {"plumbing.errors"},
               "subspaces": set()}
    for room, plumbing in allowed.items():
        house = {m for m in imports(REPO / f"{room}.py") if m.partition(".")[0] in FLOOR}
        assert house == plumbing


@pytest.mark.parametrize("path", sorted({*FILES, *DATA}), ids=lambda path: path.stem)
def test_no_clock_that_jumps(path):
    """What takes how long is said by perf_counter and monotonic, which nobody sets.

    tokenizer.py tells a template today's date, as transformers does.
    """
    jumping = r"\btime\.time\b|from time import|\bdatetime\.(?:now|utcnow|today)"
    found = re.findall(jumping, path.read_text(encoding="utf-8"))
    assert found == ["datetime.now"] * (path.stem == "tokenizer")


@pytest.mark.parametrize("modules", [
    "plot", "curves", "arms", "verdicts", "settings", "plumbing.records", "metrics"])
def test_whoever_only_reads_csv_loads_no_torch(modules):
    heavy = "torch", "jinja2", "tiktoken", "huggingface_hub", "matplotlib"
    code = f"import sys, {modules}; print(*set(sys.modules) & set({heavy}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True,
                         check=True)
    assert ran.stdout.strip() == ""


def least_cpu_seconds(*argv):
    """CPU time, and the least of five runs, because a machine may be busy."""
    code = ("import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(used.ru_utime + used.ru_stime)")
    return min(float(subprocess.run([sys.executable, "-c", code, sys.executable, *argv], cwd=REPO,
                                    text=True, check=True, capture_output=True).stdout)
               for _ in range(5))


@pytest.mark.slow
@pytest.mark.parametrize(("script", "limit", "library"), [
    ("plot.py", 0.5, "numpy"), ("sweep.py", 2.5, "torch")])
def test_help_answers_at_once(script, limit, library):
    """On a slow processor the library alone can take as long: then it may be half as much again."""
    least = 1.5 * least_cpu_seconds("-c", f"import {library}")
    assert least_cpu_seconds(script, "--help") < max(limit, least)


def test_a_name_means_one_thing():
    """No function or class of the house is defined in two rooms, so that its name finds it."""
    places = defaultdict(set)
    for path in FILES:
        if path.parent.name == "methods":       # each defines `apply`, `count` ...
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                places[node.name].add(path.name)
    shared = {name: rooms for name, rooms in places.items() if len(rooms) > 1}
    assert set(shared) <= {"main", "Settings"}, shared      # every command has these two
