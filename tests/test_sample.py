"""The chat in a pseudo-terminal and on a pipe, streaming, the table and its Markdown: all against model.generate."""
import io
import json
import os
import random
import re
import select
import shutil
import signal
import struct
import sys
import time
import unicodedata

import pytest
import torch
from conftest import REPO, tiny_tokenizer
from runs import one_line

import dataset
import sample
from lora import apply_lora, load_adapter, lora_layers, merge_lora, remove_lora, save_adapter, unmerge_lora
from model import Transformer
from plumbing.files import NANO_BASE
from engine import load_quantized
from tokenizer import Tokenizer, stop_ids

APPLES, MORE = "Lan có 12 quả táo, mẹ cho thêm 7 quả. Hỏi Lan có bao nhiêu quả táo?", "Nếu mẹ cho thêm 5 quả nữa?"
SYSTEM = "Lan có 3 quả táo."


@pytest.fixture(scope="module")
def base():
    """nano and its tokenizer."""
    return Transformer.from_pretrained(NANO_BASE, torch.float32), Tokenizer.from_pretrained(NANO_BASE)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Folders of two adapters on nano: one turns its words a little, the other makes it talk without end."""
    folders = {}
    for name, size, how in (("other", 0.02, {"rank": 4}), ("endless", 100.0, {"rank": 1, "targets": "layers.5.mlp.down_proj"})):
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        torch.manual_seed(3)
        for layer in lora_layers(apply_lora(base[0], **how)).values():
            torch.nn.init.normal_(layer.lora_B, std=size)
        save_adapter(base[0], folders[name], str(NANO_BASE))
        remove_lora(base[0])
    return folders


@pytest.fixture(scope="module")
def answers(base, adapters):
    """answers(*turns, adapter=None) -> what the last of `turns` (question, answer, ..., question) is answered, by model.generate on
    the whole conversation, with the adapter merged."""
    def ask(*turns, adapter=None, system=None, n=256, **how):
        model, tokenizer = base
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        messages = [{"role": "system", "content": system}] * bool(system) + messages
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        if adapter:
            merge_lora(load_adapter(model, adapters[adapter]))
        new = model.generate([ids], n, stop_ids(tokenizer), **how)[0][len(ids):]
        unmerge_lora(model)
        remove_lora(model)
        return tokenizer.decode(new, skip_special=True)
    return ask


def test_the_conversations_of_these_tests_tell_something_apart(answers):
    first = answers(APPLES)
    assert len({first, answers(APPLES, adapter="other"), answers(MORE), answers(APPLES, first, MORE)}) == 4
    assert answers(MORE, system=SYSTEM) != answers(MORE)
    assert len(answers(APPLES, adapter="endless", n=100)) > 200


# ----- a pseudo-terminal --------------------------------------------------------------------------------------------

class Terminal:
    """`python sample.py` under a pseudo-terminal, as a person sees it."""

    def __init__(self, *argv):
        pty, self.fcntl, self.termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
        env = os.environ | {"TERM": "dumb", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "INPUTRC": os.devnull}
        env.pop("PYTHONUNBUFFERED", None)           # as it is for most people
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(sys.executable, [sys.executable, str(REPO / "sample.py"), *map(str, argv)], env)
        self.fcntl.ioctl(self.fd, self.termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))
        self.seen = b""

    def until(self, end: str, seconds=60) -> str:
        """What is shown from the last call's end up to `end`."""
        give_up = time.monotonic() + seconds
        while end.encode() not in self.seen:
            if not select.select([self.fd], [], [], max(0, give_up - time.monotonic()))[0]:
                raise AssertionError(f"no {end!r} within {seconds} s, but {self.seen[-500:].decode(errors='replace')!r}")
            try:
                self.seen += os.read(self.fd, 65536)
            except OSError:         # Linux's way to say that the other side has gone
                raise AssertionError(f"no {end!r}, but the end: {self.seen.decode(errors='replace')!r}") from None
        text, _, self.seen = self.seen.partition(end.encode())
        return text.decode().replace("\r\n", "\n")

    def type(self, line: str, prompt: str) -> str:
        """Enter `line`; -> what is shown until the prompt `prompt` comes."""
        os.write(self.fd, line.encode() + b"\n")
        assert self.until("\n") == line + "\r"         # the terminal's echo
        return self.until(f"{prompt}> ").strip("\n")

    def close(self) -> int:
        os.write(self.fd, b"\x04")
        for _ in range(300):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = None
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        raise AssertionError("it did not end")

    def kill(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def patient(tmp_path):
    """nano with a context in which an answer may go on for minutes."""
    folder = shutil.copytree(NANO_BASE, tmp_path / "nano")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100_000}))
    return folder


def test_a_chat(patient, adapters, answers):
    terminal = Terminal("--model", patient, "--adapter", adapters["other"], "--adapter", f"talker={adapters['endless']}",
                        "--max_new_tokens", 50_000)
    try:
        assert "/help" in terminal.until("other> ")
        assert terminal.type(APPLES, "other") == answers(APPLES, adapter="other")
        assert "no adapter 'nothing'; there are: other, talker, base" in terminal.type("/adapter nothing", "other")
        assert "no command /nothing" in terminal.type("/nothing", "other")
        assert terminal.type("/base", "base") == terminal.type("", "base") == ""
        assert "begins anew" in terminal.type("/reset", "base")

        # history: used, then forgotten
        first = answers(APPLES)
        assert terminal.type(APPLES, "base") == first
        assert terminal.type(MORE, "base") == answers(APPLES, first, MORE)
        terminal.type("/reset", "base")
        assert terminal.type(MORE, "base") == answers(MORE)
        terminal.type("/reset", "base")

        # an answer without end: it streams, and Ctrl-C stops it, not the program
        terminal.type("/adapter talker", "talker")
        os.write(terminal.fd, f"{APPLES}\n".encode())
        beginning = answers(APPLES, adapter="endless", n=40)
        terminal.until("\n")
        terminal.until(beginning)
        os.write(terminal.fd, b"\x03")
        said = beginning + terminal.until("talker> ").replace("^C", "").rstrip("\n")
        assert len(said.encode()) < 8192, "it came in heaps, as a buffer was full"
        assert answers(APPLES, adapter="endless", n=said.count(" ") + 50).startswith(said)
        os.write(terminal.fd, b"half a line\x03")       # at the prompt, Ctrl-C drops the line
        terminal.until("talker> ")

        # what was said of it counts as said
        terminal.type("/base", "base")
        assert terminal.type(MORE, "base") == answers(APPLES, said, MORE)
        commands = terminal.type("/help", "base")
        assert all(command in commands for command in ("/reset", "/adapter NAME", "/base", "/exit", "Ctrl-D", "Ctrl-C", "talker"))
        assert terminal.close() == 0
    finally:
        terminal.kill()


# ----- a pipe -------------------------------------------------------------------------------------------------------

@pytest.fixture
def run(capsys, monkeypatch):
    """run(*argv, lines=[]) -> (stdout, stderr) of sample.py with `lines` on stdin."""
    def main(*argv, lines=()):
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        sample.main([str(a) for a in argv])
        return capsys.readouterr()
    return main


def test_a_question(run, adapters, answers):
    """With the base that the adapter names; greedily."""
    assert run(APPLES).out == answers(APPLES) + "\n"
    assert run("--adapter", adapters["other"], APPLES).out == answers(APPLES, adapter="other") + "\n"
    assert run("--system", SYSTEM, MORE).out == answers(MORE, system=SYSTEM) + "\n"


def test_a_chat_on_a_pipe(run, adapters, answers):
    first = answers(APPLES, adapter="other")
    lines = [APPLES, "/base", "", MORE, "/adapter nobody", "/reset", MORE, "/exit", APPLES]
    out, err = run("--adapter", adapters["other"], lines=lines)
    assert out == "\n".join([first, answers(APPLES, first, MORE), answers(MORE), ""])
    assert "no adapter 'nobody'; there are: other, base" in err and ">" not in out.replace("<think>", "")


def test_drawn_answers(run, answers):
    def drawn(seed, temperature=2.0, top_p=0.7):
        return answers(APPLES, temperature=temperature, top_p=top_p, generator=torch.Generator().manual_seed(seed))

    assert len({drawn(1), drawn(2), drawn(1, top_p=0.9), drawn(1, temperature=1.0)}) == 4
    for seed in (1, 2, 1):
        assert run("--temperature=2", "--top_p=0.7", f"--seed={seed}", APPLES).out == drawn(seed) + "\n"


def test_the_oldest_turns_are_forgotten(run, base, answers, monkeypatch, tmp_path):
    """A context that holds two questions and an answer, but not three."""
    tokenizer, folder = base[1], shutil.copytree(NANO_BASE, tmp_path / "nano")
    first = answers(APPLES, system=SYSTEM)
    second = answers(APPLES, first, MORE, system=SYSTEM)
    messages = [{"role": "system", "content": SYSTEM}] + [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate((APPLES, first, MORE, second, MORE))]
    needs = len(tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True)))
    for room, left in ((needs, messages), (needs - 1, [messages[0], *messages[3:]])):
        sample.prompt_ids(some := [*messages], tokenizer, room)
        assert some == left
    config = json.loads((folder / "config.json").read_text())
    for context, forgotten in ((needs + 30, False), (needs + 29, True)):
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
        out, err = run("--model", folder, "--system", SYSTEM, "--max_new_tokens", 30, lines=[APPLES, MORE, MORE])
        turns = (MORE, second, MORE) if forgotten else (APPLES, first, MORE, second, MORE)
        assert out.endswith(f"{second}\n{answers(*turns, system=SYSTEM, n=30)}\n")
        assert ("the context is full: 1 of the oldest turns forgotten" in err) == forgotten
    out, err = run("--model", folder, "--max_new_tokens", 30, lines=["táo " * 300, MORE])
    assert "the question takes" in err and out == answers(MORE, n=30) + "\n"        # only said, and without a trace


# ----- streaming ----------------------------------------------------------------------------------------------------

def test_a_character_is_never_shown_in_halves(tmp_path):
    """In a vocabulary of few merges most letters beyond ASCII are two to four tokens."""
    tiny_tokenizer(tmp_path)
    tokenizer, text = Tokenizer.from_pretrained(tmp_path), "quả táo 苹果 🍎 <|im_end|>ở"
    ids = tokenizer.encode(text)
    parts = list(sample.pieces(ids, tokenizer))
    assert "".join(parts) == text.replace("<|im_end|>", "") and len(parts) == len(ids)
    assert sum(not part for part in parts) > 6          # those waited
    assert not any("\ufffd" in part for part in parts)


def test_streamed_is_what_decoding_at_once_gives(tmp_path):
    """Bytes that are no UTF-8, too, and a text that ends within a character."""
    tiny_tokenizer(tmp_path)
    tokenizer, draw = Tokenizer.from_pretrained(tmp_path), random.Random(0)
    for _ in range(300):
        ids = draw.choices(range(320), k=draw.randint(0, 12))
        assert "".join(sample.pieces(ids, tokenizer)) == tokenizer.decode(ids, skip_special=True)


def test_a_terminal_is_spared_control_characters(capsys, monkeypatch):
    for terminal, shown in ((True, "a\ufffd]0;b\ufffd c\n\td"), (False, "a\x1b]0;b\x07 c\r\n\td")):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        sample.show("a\x1b]0;b\x07 c\r\n\td")
        assert capsys.readouterr().out == shown


# ----- side by side -------------------------------------------------------------------------------------------------

def cells(lines):
    """The texts of a table's columns, its lines joined."""
    return [" ".join(filter(None, map(str.strip, column))) for column in zip(*(line.ljust(500).split(" │ ") for line in lines))]


def squeezed(text):
    return "".join(text.split())


@pytest.fixture
def merged(base, adapters, tmp_path):
    """A whole checkpoint that answers as with "other"."""
    merge_lora(load_adapter(base[0], adapters["other"]))
    layers = {name: layer.unmerged for name, layer in lora_layers(base[0]).items()}
    remove_lora(base[0]).save_pretrained(tmp_path / "merged")
    for name, (layer,) in layers.items():
        base[0].set_submodule(name, layer)
    base[1].save_pretrained(tmp_path / "merged")
    return tmp_path / "merged"


def test_side_by_side(run, adapters, answers, chat, merged, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "121")
    file, n = tmp_path / "answers.md", 3
    argv = ("--adapter", f"{adapters['other']},talker={adapters['endless']}", "--against", f"full={merged}", "--compare",
            "--data", chat, "--n", n, "--max_new_tokens", 100, "--markdown", file)
    out, err = run(*argv)
    samples = dataset.read_messages(chat / "test.jsonl")[:n]
    sides = {"reference": [m[-1]["content"] for m in samples]}
    for side, adapter in (("base", None), ("other", "other"), ("talker", "endless"), ("full", "other")):
        sides[side] = [answers(m[-2]["content"], adapter=adapter, n=100).strip() for m in samples]
    assert re.findall(r"^(\w+): 3 answered in", err, re.M) == ["base", "other", "talker", "full"]
    blocks = re.split(r"\n\d of 3 ─+\n", out)[1:]
    assert len(blocks) == n and max(map(len, out.splitlines())) <= 121
    for i, block in enumerate(blocks):
        question, rows = block.split("\n\n", 1)
        assert question == samples[i][-2]["content"]
        header, rule, *rows = rows.rstrip("\n").split("\n")
        assert header.split() == ["reference", "│", "base", "│", "other", "│", "talker", "│", "full"] and rule.count("┼") == 4
        for text, shown in zip(sides.values(), cells(rows)):
            if shown.endswith("…"):
                assert len(rows) == 16 and squeezed(text[i]).startswith(squeezed(shown[:-1]))
            else:
                assert squeezed(shown) == squeezed(text[i])
    assert "…" in out
    page = file.read_text(encoding="utf-8")
    assert page.startswith(f"# 3 test samples of {chat.name}, side by side\n\nThe base is nano; answers are greedy, of at most 100")
    tables = re.findall(r"^\| reference \| base .*\n\|---\|---\|---\|---\|---\|\n(.*)$", page, re.M)
    for i, row in enumerate(tables):
        assert [unescaped(cell) for cell in re.split(r"(?<!\\) ?\| ?", row)[1:-1]] == [text[i] for text in sides.values()]
    assert len(tables) == n and str(REPO) not in page and str(tmp_path) not in page


def unescaped(cell):
    return re.sub(r"\\(.)", r"\1", cell.replace("<br>", "\n"))


def test_a_question_side_by_side_on_four_bits(run, adapters, answers, base):
    """The base in four bits, the adapter beside it: as it was trained. No reference."""
    out, _ = run("--adapter", adapters["other"], "--compare", "--nf4", APPLES)
    model, ids = load_quantized(NANO_BASE, torch.float32), base[1].encode(base[1].apply_chat_template(
        [{"role": "user", "content": APPLES}], add_generation_prompt=True))
    expected = []
    for adapter in (None, adapters["other"]):
        if adapter:
            load_adapter(model, adapter)
        expected.append(base[1].decode(model.generate([ids], 256, stop_ids(base[1]))[0][len(ids):], skip_special=True))
    assert expected != [answers(APPLES), answers(APPLES, adapter="other")]
    header, _, *rows = out.split("\n\n")[1].rstrip("\n").split("\n")
    assert header.split() == ["base", "│", "other"] and list(map(squeezed, cells(rows))) == list(map(squeezed, expected))


def test_narrow_terminals_stack(base):
    lines = sample.table(["reference", "base", "a", "b"], ["one two three " * 4, "苹果" * 30, "", "x"], 60)
    assert [line.split()[0] for line in lines if line[0] != " "] == ["reference", "base", "a", "b"]
    assert max(map(sample.columns_of, lines)) <= 60
    assert squeezed("".join(line[11:] for line in lines)) == "onetwothree" * 4 + "苹果" * 30 + "x"


@pytest.mark.parametrize("text, columns", [("abc", 3), ("苹果", 4), ("quả táo", 7), (unicodedata.normalize("NFD", "quả táo"), 7),
                                           ("한국어", 6), ("ｆｕｌｌ", 8), ("e\u0301\u200b", 1), ("", 0), ("🍎", 2)])
def test_columns(text, columns):
    assert sample.columns_of(text) == columns


@pytest.mark.parametrize("text, columns, lines", [
    ("one two three", 7, ["one two", "three"]), ("one two three", 8, ["one two", "three"]),
    ("abcdefghij", 4, ["abcd", "efgh", "ij"]), ("a\n\nb", 9, ["a", "", "b"]),
    ("答案是苹果和梨", 7, ["答案是", "苹果和", "梨"]), ("so 苹果和梨", 7, ["so 苹果", "和梨"]),
    ("    indented text", 10, ["    indent", "ed text"]), ("x\ty", 9, ["x   y"]), ("x\x1b[2Jy", 9, ["x\ufffd[2Jy"]),
    (unicodedata.normalize("NFD", "quả táo ở"), 7, [unicodedata.normalize("NFD", "quả táo"), unicodedata.normalize("NFD", "ở")]),
])
def test_wrap(text, columns, lines):
    assert sample.wrap(text, columns) == lines


def test_nothing_is_lost_in_wrapping():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("ab  \n苹果" + unicodedata.normalize("NFD", "ệở"), k=draw.randint(0, 60)))
        columns = draw.randint(2, 12)
        lines = sample.wrap(text, columns)
        assert max(map(sample.columns_of, lines)) <= columns and squeezed("".join(lines)) == squeezed(text)
        assert not any(line and unicodedata.combining(line[0]) for line in lines) or re.search(r"(^|\s)[\u0300-\u036f]", text)


def test_markdown_keeps_characters_what_they_are():
    text = "<think>2 * 3 = 6</think>\n#### 6 | $6 and $7 `x` [a](b) _c_ ~d~ \\"
    assert unescaped(sample.escaped(text)) == text and "\n" not in sample.escaped(text)
    assert not re.search(r"(?<!\\)[|<$*`](?!br>)", sample.escaped(text))
    assert len(sample.escaped("ab " * 1000)) == 1502


# ----- mistakes -----------------------------------------------------------------------------------------------------

@pytest.fixture
def fails(run, capsys):
    def refused(*argv):
        with pytest.raises(SystemExit) as e:
            run(*argv)
        return one_line(e.value.code, capsys.readouterr().err)
    return refused


MISTAKES = {
    "--adapter nowhere hi": "nowhere has no adapter_config.json", "--model nowhere hi": "nowhere: no such folder",
    "--adapter a,a=b hi": "two of one name", "--adapter base=a hi": "base and reference are taken",
    "--adapter b=a --against b=c --compare hi": "both called b", "--compare": "--compare needs a question or --data, one of them",
    "--compare --data nano hi": "one of them", "--data nano": "--data goes with --compare", "--against nano": "--against goes with",
    "--markdown x.md hi": "--markdown goes with", "--compare --data nano --system x": "--system and --data contradict",
    "--compare hi --markdown no/where/x.md": "no such folder", "--compare hi --against nowhere": "nowhere: no such folder",
    "--compare --data nowhere": "--data nowhere: no folder", "--temperature=-1 hi": "--temperature -1.0: it has to be a number of",
    "--temperature=nan hi": "--temperature nan", "--top_p=0 hi": "--top_p 0.0: it has to be above 0", "--top_p=1.5 hi": "at most 1",
    "--n=0 --compare --data nano": "--n 0: it has to be at least 1", "--max_new_tokens=0 hi": "--max_new_tokens 0",
    "--max_new_tokens=1024 hi": "leaves no room for a question in the model's context of 1024", "--seed=-1 hi": "--seed -1",
    "--device=banana hi": "--device banana", "--dtype=float8 hi": "invalid choice", "hi there": "unrecognized arguments: there",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_mistakes(fails, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[flags] in fails(*flags.split())
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_base(fails, checkpoint, adapters):
    folder = adapters["other"]
    assert f"{folder}: the adapter is for another base" in fails("--model", checkpoint(), "--adapter", folder, "hi")


def test_a_base_that_has_gone(fails, adapters, tmp_path):
    folder = shutil.copytree(adapters["other"], tmp_path / "other")
    config = json.loads((folder / "adapter_config.json").read_text())
    for name, words in (("/gone/base", "is for the base /gone/base, which is not there; give --model"), (None, "does not say")):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
        assert words in fails("--adapter", folder, "hi")


def test_a_tokenizer_larger_than_the_embedding(fails, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(), tmp_path / "model")
    tiny_tokenizer(folder, size=330)
    assert "the tokenizer has 3" in fails("--model", folder, "hi")
