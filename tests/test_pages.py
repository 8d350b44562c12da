"""The pages in other languages and the notebook: their commands are the README's, and they run."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPO


def commands_of(name):
    """The lines of all code blocks of a page, without their comments."""
    text = (REPO / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line.partition("  #")[0].rstrip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("page", ["README.vi.md", "README.zh.md"])
def test_a_page_has_the_commands_of_the_readme(page):
    ours, readme = commands_of(page), commands_of("README.md")
    assert len(ours) == 5 and set(ours) <= set(readme)
    assert ours[:2] == readme[:2]


def test_every_link_to_a_file_leads_to_one():
    """In a fresh clone, so that a picture that git ignores is missed."""
    missing = []
    for page in sorted([*REPO.glob("*.md"), *REPO.glob("results/*.md"), *REPO.glob("data/*/*.md")]):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not link.startswith("http") and not (page.parent / link).exists():
                missing.append((page.name, link))
    assert missing == []


def cells_of_notebook():
    notebook = json.loads((REPO / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_ends_its_commands_as_a_shell_does():
    """Each cell is one command, or Python that Python compiles."""
    for cell in cells_of_notebook():
        if cell.startswith(("!", "%")):
            assert "\n" not in cell.strip()
        else:
            compile(cell, "cell", "exec")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """In a copy of the house, without what Colab does by itself: cloning and installing."""
    for path in [*REPO.glob("*.py"), *REPO.glob("*.txt")]:
        shutil.copy(path, tmp_path)
    for folder in ("plumbing", "methods", "data", "results"):
        shutil.copytree(REPO / folder, tmp_path / folder)
    shown = []
    space = {"Image": shown.append, "display": lambda image: None}
    env = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for cell in cells_of_notebook():
        if cell.startswith(("!git", "%cd", "!pip")):
            continue
        if cell.startswith("!"):
            done = subprocess.run(["bash", "-c", cell[1:]], cwd=tmp_path, env=env, text=True,
                                  capture_output=True, timeout=1000)
            assert done.returncode == 0, done.stderr
        else:
            exec(cell.replace("from IPython.display import Image\n", ""), space)
    assert len(shown) == 2 and all((tmp_path / path).exists() for path in shown)
