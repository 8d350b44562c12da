"""The chat in a pseudo-terminal and on a pipe, streaming, tables: all against model.generate."""
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
from conftest import REPO, edit_json, tiny_tokenizer
from runs import one_line

import dataset
import engine
import sample
from engine import load_quantized
from lora import (apply_lora, load_adapter, lora_layers, merge_lora, remove_lora, save_adapter,
                  unmerge_lora)
from model import Transformer
from plumbing.files import NANO_BASE
from plumbing.text import (escape_markdown, fit_markdown, hang_line, terminal_table, text_width,
                           wrap_text)
from tokenizer import Tokenizer, stop_ids

APPLES = "Lan có 12 quả táo, mẹ cho thêm 7 quả. Hỏi Lan có bao nhiêu quả táo?"
MORE = "Nếu mẹ cho thêm 5 quả nữa?"
SYSTEM = "Lan có 3 quả táo."


@pytest.fixture(scope="module")
def base():
    """nano and its tokenizer."""
    model = Transformer.from_pretrained(NANO_BASE, torch.float32)
    return model, Tokenizer.from_pretrained(NANO_BASE)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Folders of two adapters on nano: one turns its words a little, one makes it talk on."""
    model, _ = base
    endless = {"rank": 1, "targets": "layers.5.mlp.down_proj"}
    folders = {}
    for name, size, how in (("other", 0.02, {"rank": 4}), ("endless", 100.0, endless)):
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        torch.manual_seed(3)
        for layer in lora_layers(apply_lora(model, **how)).values():
            torch.nn.init.normal_(layer.lora_B, std=size)
        save_adapter(model, folders[name], str(NANO_BASE))
        remove_lora(model)
    return folders


def write_messages(turns, system=None):
    """(question, answer, ..., question) as messages."""
    messages = []
    if system:
        messages.append({"role": "system", "content": system})
    for i, text in enumerate(turns):
        messages.append({"role": ("user", "assistant")[i % 2], "content": text})
    return messages


def encode_prompt(tokenizer, turns, system=None):
    messages = write_messages(turns, system)
    return tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


@pytest.fixture(scope="module")
def answers(base, adapters):
    """answers(*turns) -> what model.generate says to the whole conversation, adapter merged."""
    def ask(*turns, adapter=None, system=None, n=256, **how):
        model, tokenizer = base
        ids = encode_prompt(tokenizer, turns, system)
        if adapter:
            merge_lora(load_adapter(model, adapters[adapter]))
        new = model.generate([ids], n, stop_ids(tokenizer), **how)[0][len(ids):]
        unmerge_lora(model)
        remove_lora(model)
        return tokenizer.decode(new, skip_special=True)
    return ask


def test_the_conversations_of_these_tests_tell_something_apart(answers):
    first = answers(APPLES)
    others = {first, answers(APPLES, adapter="other"), answers(MORE), answers(APPLES, first, MORE)}
    assert len(others) == 4
    assert answers(MORE, system=SYSTEM) != answers(MORE)
    assert len(answers(APPLES, adapter="endless", n=100)) > 200


# ----- a pseudo-terminal --------------------------------------------------------------------------

class Terminal:
    """`python sample.py` in a pseudo-terminal, as a person sees it."""

    def __init__(self, *argv):
        pty = pytest.importorskip("pty")
        fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
        env = os.environ | {"TERM": "dumb", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8",
                            "INPUTRC": os.devnull}
        env.pop("PYTHONUNBUFFERED", None)           # as it is for most people
        command = [sys.executable, str(REPO / "sample.py"), *map(str, argv)]
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(sys.executable, command, env)
        rows, columns = 50, 300
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.seen = b""

    def until(self, end: str, seconds=60) -> str:
        """What is shown from the last call's end up to `end`."""
        give_up = time.monotonic() + seconds
        while end.encode() not in self.seen:
            wait = max(0, give_up - time.monotonic())
            readable, _, _ = select.select([self.fd], [], [], wait)
            shown = self.seen[-500:].decode(errors="replace")
            assert readable, f"no {end!r} within {seconds} s, but {shown!r}"
            try:
                self.seen += os.read(self.fd, 65536)
            except OSError:         # Linux's way to say that the other side has ended
                raise AssertionError(f"no {end!r}, but the end: {shown!r}") from None
        text, _, self.seen = self.seen.partition(end.encode())
        return text.decode().replace("\r\n", "\n")

    def type(self, line: str, prompt: str) -> str:
        """Enter `line` -> what is shown until the prompt `prompt` comes."""
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
def terminal():
    """terminal(*argv) -> a Terminal, which ends with the test."""
    opened = []

    def start(*argv):
        opened.append(Terminal(*argv))
        return opened[-1]

    yield start
    for each in opened:
        each.kill()


@pytest.fixture
def patient(tmp_path):
    """nano with a context in which an answer may take minutes."""
    return copy_nano(tmp_path, 100_000)


def copy_nano(tmp_path, context):
    folder = tmp_path / "nano"
    shutil.copytree(NANO_BASE, folder, dirs_exist_ok=True)
    edit_json(folder / "config.json", max_position_embeddings=context)
    return folder


def test_a_chat(terminal, patient, adapters, answers):
    chat = terminal("--model", patient, "--adapter", adapters["other"],
                    "--adapter", f"talker={adapters['endless']}", "--max_new_tokens", 50_000)
    assert "/help" in chat.until("other> ")
    assert chat.type(APPLES, "other") == answers(APPLES, adapter="other")
    assert ("no adapter 'nothing'; there are: other, talker, base"
            in chat.type("/adapter nothing", "other"))
    assert "no command /nothing" in chat.type("/nothing", "other")
    assert chat.type("/base", "base") == chat.type("", "base") == ""
    assert "starts over" in chat.type("/reset", "base")

    # the conversation: used, then forgotten
    first = answers(APPLES)
    assert chat.type(APPLES, "base") == first
    assert chat.type(MORE, "base") == answers(APPLES, first, MORE)
    chat.type("/reset", "base")
    assert chat.type(MORE, "base") == answers(MORE)
    chat.type("/reset", "base")

    # an answer without end: it streams, and Ctrl-C stops it, not the program
    chat.type("/adapter talker", "talker")
    os.write(chat.fd, f"{APPLES}\n".encode())
    beginning = answers(APPLES, adapter="endless", n=40)
    chat.until("\n")
    chat.until(beginning)
    os.write(chat.fd, b"\x03")
    said = beginning + chat.until("talker> ").replace("^C", "").rstrip("\n")
    assert len(said.encode()) < 8192, "it came in heaps, as a buffer was full"
    n = said.count(" ") + 50
    assert answers(APPLES, adapter="endless", n=n).startswith(said)
    os.write(chat.fd, b"half a line\x03")           # at the prompt, Ctrl-C drops the line
    chat.until("talker> ")

    # what was said of it counts as said
    chat.type("/base", "base")
    assert chat.type(MORE, "base") == answers(APPLES, said, MORE)
    commands = chat.type("/help", "base")
    for command in ("/reset", "/adapter NAME", "/base", "/quit", "Ctrl-D", "Ctrl-C", "talker"):
        assert command in commands
    assert chat.close() == 0


# ----- a pipe -------------------------------------------------------------------------------------

@pytest.fixture
def run(capsys, monkeypatch):
    """run(*argv, lines=[]) -> (stdout, stderr) of sample.py with `lines` on stdin."""
    def main(*argv, lines=()):
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        sample.main(list(map(str, argv)))
        return capsys.readouterr()
    return main


def test_a_question(run, adapters, answers):
    """With the base that the adapter names, greedily."""
    other = adapters["other"]
    assert run(APPLES).out == answers(APPLES) + "\n"
    assert run("--adapter", other, APPLES).out == answers(APPLES, adapter="other") + "\n"
    assert run("--system", SYSTEM, MORE).out == answers(MORE, system=SYSTEM) + "\n"


def test_an_adapter_in_the_place_of_the_question_is_refused(fails, adapters):
    error = fails("--adapter", adapters["other"], adapters["endless"])
    assert f"{adapters['endless']} is an adapter, and no question; write --adapter before" in error


def test_a_chat_on_a_pipe(run, adapters, answers):
    first = answers(APPLES, adapter="other")
    lines = [APPLES, "/base", "", MORE, "/adapter nobody", "/adapter", "/reset", MORE, "/quit",
             APPLES]
    out, err = run("--adapter", adapters["other"], lines=lines)
    assert out == "\n".join([first, answers(APPLES, first, MORE), answers(MORE), ""])
    assert "no adapter 'nobody'; there are: other, base" in err
    assert "base answers now; there are: other, base" in err
    assert ">" not in out.replace("<think>", "")        # no prompt


def test_drawn_answers(run, answers):
    def draw(seed, temperature=4.0, top_p=0.7):
        generator = torch.Generator().manual_seed(seed)
        return answers(APPLES, temperature=temperature, top_p=top_p, generator=generator)

    assert len({draw(1), draw(2), draw(1, top_p=0.9), draw(1, temperature=2.0)}) == 4
    for seed in (1, 2):
        out, _ = run("--temperature=4", "--top_p=0.7", f"--seed={seed}", APPLES)
        assert out == draw(seed) + "\n"


def test_the_oldest_turns_are_forgotten(run, base, answers, tmp_path):
    """A context that holds two questions and an answer, but not three."""
    tokenizer = base[1]
    first = answers(APPLES, system=SYSTEM)
    second = answers(APPLES, first, MORE, system=SYSTEM)
    long, short = (APPLES, first, MORE, second, MORE), (MORE, second, MORE)
    needs = len(encode_prompt(tokenizer, long, SYSTEM))
    for room, left in ((needs, long), (needs - 1, short)):
        some = write_messages(long, SYSTEM)
        ids = engine.fit_prompt(some, tokenizer, room)
        assert some == write_messages(left, SYSTEM)
        assert len(ids) <= room
    for context, left in ((needs + 30, long), (needs + 29, short)):
        out, err = run("--model", copy_nano(tmp_path, context), "--system", SYSTEM,
                       "--max_new_tokens", 30, lines=[APPLES, MORE, MORE])
        assert out.endswith(f"{second}\n{answers(*left, system=SYSTEM, n=30)}\n")
        forgotten = "the context is full: 1 of the oldest turns forgotten" in err
        assert forgotten == (left is short)
    out, err = run("--model", copy_nano(tmp_path, needs + 29), "--max_new_tokens", 30,
                   lines=["táo " * 300, MORE])
    assert "the question takes" in err
    assert out == answers(MORE, n=30) + "\n"            # the question has left no trace


def test_the_checkpoint_says_where_an_answer_stops(base, tmp_path):
    """generation_config.json names one id or several; config.json is asked if it names none."""
    folder = copy_nano(tmp_path, 1024)
    model, tokenizer = base
    prompt = encode_prompt(tokenizer, [APPLES])
    usual = stop_ids(tokenizer)
    new = model.generate([prompt], 60, usual)[0][len(prompt):]
    early, late = new[1], new[3]
    assert early != new[0] and late not in new[:3] and len(new) > 4 and new[-1] in usual

    def count_tokens(generation_config, eos=2):
        path = folder / "generation_config.json"
        path.unlink(missing_ok=True)
        if generation_config is not None:
            path.write_text(json.dumps(generation_config))
        edit_json(folder / "config.json", eos_token_id=eos)
        reader = Tokenizer.from_pretrained(folder)
        reader.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved/generation_config.json").exists()
        [answer] = engine.generate_answers(model, reader, [prompt], 60)
        assert answer.text == tokenizer.decode(new[:answer.tokens], skip_special=True).strip()
        return answer.tokens

    (tmp_path / "saved").mkdir()
    assert count_tokens({"eos_token_id": [late, early]}) == 2
    assert count_tokens({"eos_token_id": late}) == 4
    assert count_tokens({"eos_token_id": late}, eos=early) == 4
    assert count_tokens({"temperature": 0.7}, eos=[early, late]) == 2
    assert count_tokens(None, eos=late) == 4
    assert count_tokens(None, eos=None) == len(new)


# ----- streaming ----------------------------------------------------------------------------------

def test_a_character_is_never_shown_in_halves(tmp_path):
    """In a vocabulary of few merges most letters beyond ASCII are two to four tokens."""
    tiny_tokenizer(tmp_path)
    tokenizer, text = Tokenizer.from_pretrained(tmp_path), "quả táo 苹果 🍎 <|im_end|>ở"
    ids = tokenizer.encode(text)
    pieces = list(engine.text_pieces(ids, tokenizer))
    assert "".join(pieces) == text.replace("<|im_end|>", "")
    assert len(pieces) == len(ids)              # one per token but <|im_end|>, and one at the end
    assert sum(not piece for piece in pieces) > 6           # these waited
    assert not any("\ufffd" in piece for piece in pieces)


def test_streamed_is_what_decoding_at_once_gives(tmp_path):
    """Also for bytes that are not UTF-8, and a text that ends within a character."""
    tiny_tokenizer(tmp_path)
    tokenizer, draw = Tokenizer.from_pretrained(tmp_path), random.Random(0)
    for _ in range(300):
        ids = draw.choices(range(320), k=draw.randint(0, 12))
        streamed = "".join(engine.text_pieces(ids, tokenizer))
        assert streamed == tokenizer.decode(ids, skip_special=True)


@pytest.mark.parametrize("terminal, shown", [
    (True, "a\ufffd]0;b\ufffd c\n\td"), (False, "a\x1b]0;b\x07 c\r\n\td")])
def test_a_terminal_is_spared_control_characters(capsys, monkeypatch, terminal, shown):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    sample.print_piece("a\x1b]0;b\x07 c\r\n\td")
    assert capsys.readouterr().out == shown


# ----- side by side -------------------------------------------------------------------------------

def read_columns(lines):
    """The texts of a table's columns, the lines of each joined."""
    rows = [map(str.strip, line.ljust(500).split(" │ ")) for line in lines]
    return [" ".join(filter(None, column)) for column in zip(*rows)]


def squeezed(text):
    return "".join(text.split())


@pytest.fixture
def merged(base, adapters, tmp_path):
    """A whole checkpoint that answers as with "other"."""
    model, tokenizer = base
    merge_lora(load_adapter(model, adapters["other"]))
    bases = {name: layer.base for name, layer in lora_layers(model).items()}
    remove_lora(model).save_pretrained(tmp_path / "merged")
    for name, layer in bases.items():
        model.set_submodule(name, layer)
    tokenizer.save_pretrained(tmp_path / "merged")
    return tmp_path / "merged"


@pytest.fixture
def expected_sides(answers, chat):
    """The first three test samples, and what each side says to them."""
    samples = dataset.read_messages(chat / "test.jsonl")[:3]
    questions = [messages[-2]["content"] for messages in samples]
    sides = {"reference": [messages[-1]["content"] for messages in samples]}
    for side, adapter in (("base", None), ("other", "other"), ("talker", "endless"),
                          ("full", "other")):
        sides[side] = [answers(text, adapter=adapter, n=100).strip() for text in questions]
    return questions, sides


@pytest.fixture
def compared(run, adapters, chat, merged, monkeypatch, tmp_path):
    """(stdout, stderr, the page) of a comparison with all kinds of sides."""
    monkeypatch.setenv("COLUMNS", "121")
    page = tmp_path / "answers.md"
    out, err = run(
        "--adapter", f"{adapters['other']},talker={adapters['endless']}",
        "--against", f"full={merged}", "--compare", "--data", chat, "--n", 3,
        "--max_new_tokens", 100, "--markdown", page)
    return out, err, page.read_text(encoding="utf-8")


def test_side_by_side(compared, expected_sides):
    out, err, _ = compared
    questions, sides = expected_sides
    answered = re.findall(r"^(\w+): 3 answered in", err, re.M)
    assert answered == ["base", "other", "talker", "full"]
    blocks = re.split(r"\n\d of 3 ─+\n", out)[1:]
    assert max(map(len, out.splitlines())) <= 121
    for i, block in enumerate(blocks):
        question, table = block.split("\n\n", 1)
        assert question == questions[i]
        header, rule, *lines = table.rstrip("\n").split("\n")
        assert header.split(" │ ")[-1] == "full" and read_columns([header]) == list(sides)
        assert rule.count("┼") == 4
        for texts, shown in zip(sides.values(), read_columns(lines), strict=True):
            if shown.endswith("…"):
                assert len(lines) == 16
                assert squeezed(texts[i]).startswith(squeezed(shown[:-1]))
            else:
                assert squeezed(shown) == squeezed(texts[i])
    assert len(blocks) == 3 and "…" in out


def test_side_by_side_in_markdown(compared, expected_sides, chat, tmp_path):
    _, _, page = compared
    _, sides = expected_sides
    assert page.startswith(f"# 3 test samples of {chat.name}, side by side\n\nThe base is nano; "
                           "answers are greedy, of at most 100")
    header = r"^\| reference \| base .*\n\|---\|---\|---\|---\|---\|\n(.*)$"
    rows = re.findall(header, page, re.M)
    for i, row in enumerate(rows):
        cells = re.split(r"(?<!\\) ?\| ?", row)[1:-1]
        assert list(map(unescape, cells)) == [texts[i] for texts in sides.values()]
    assert len(rows) == 3
    assert str(REPO) not in page and str(tmp_path) not in page


def unescape(cell):
    return re.sub(r"\\(.)", r"\1", cell.replace("<br>", "\n"))


def test_a_question_side_by_side_on_four_bits(run, adapters, answers, base):
    """The base in four bits, the adapter next to it, as it was trained. No reference."""
    out, _ = run("--adapter", adapters["other"], "--compare", "--nf4", APPLES)
    model, tokenizer = load_quantized(NANO_BASE, torch.float32), base[1]
    ids = encode_prompt(tokenizer, [APPLES])
    expected = []
    for adapter in (None, adapters["other"]):
        if adapter:
            load_adapter(model, adapter)
        new = model.generate([ids], 256, stop_ids(tokenizer))[0][len(ids):]
        expected.append(tokenizer.decode(new, skip_special=True))
    assert expected != [answers(APPLES), answers(APPLES, adapter="other")]
    header, _, *lines = out.split("\n\n")[1].rstrip("\n").split("\n")
    assert read_columns([header]) == ["base", "other"]
    assert list(map(squeezed, read_columns(lines))) == list(map(squeezed, expected))


# ----- tables -------------------------------------------------------------------------------------

def test_narrow_terminals_stack():
    names = ["reference", "base", "a", "b"]
    lines = terminal_table(names, ["one two three " * 4, "苹果" * 30, "", "x"], 60, 16)
    assert [line.split()[0] for line in lines if line[0] != " "] == names
    assert max(map(text_width, lines)) <= 60
    texts = "".join(line[11:] for line in lines)
    assert squeezed(texts) == "onetwothree" * 4 + "苹果" * 30 + "x"


def decomposed(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("text, columns", [
    ("abc", 3), ("苹果", 4), ("quả 苹果", 8), ("quả táo", 7), (decomposed("quả táo"), 7),
    ("한국어", 6), ("ｆｕｌｌ", 8), ("e\u0301\u200b", 1), ("", 0), ("🍎", 2)])
def test_columns(text, columns):
    assert text_width(text) == columns


@pytest.mark.parametrize("text, columns, lines", [
    ("one two three", 7, ["one two", "three"]),
    ("one two three", 8, ["one two", "three"]),
    ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
    ("a\n\nb", 9, ["a", "", "b"]),
    ("答案是苹果和梨", 7, ["答案是", "苹果和", "梨"]),
    ("so 苹果和梨", 7, ["so 苹果", "和梨"]),
    ("    indented text", 10, ["    indent", "ed text"]),
    ("x\ty", 9, ["x   y"]),
    ("x\x1b[2Jy", 9, ["x\ufffd[2Jy"]),
    (decomposed("quả táo ở"), 7, [decomposed("quả táo"), decomposed("ở")]),
])
def test_wrapped_lines(text, columns, lines):
    assert wrap_text(text, columns) == lines


def test_nothing_is_lost_in_wrapping():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("ab  \n苹果" + decomposed("ệở"), k=draw.randint(0, 60)))
        columns = draw.randint(2, 12)
        lines = wrap_text(text, columns)
        assert max(map(text_width, lines)) <= columns
        assert squeezed("".join(lines)) == squeezed(text)
        if not re.search(r"(^|\s)[\u0300-\u036f]", text):
            assert not any(line and unicodedata.combining(line[0]) for line in lines)


def test_markdown_keeps_characters_what_they_are():
    text = "<think>2 * 3 = 6</think>\n#### 6 | $6 and $7 `x` [a](b) _c_ ~d~ \\"
    escaped = escape_markdown(text, 1500)
    assert unescape(escaped) == text and "\n" not in escaped
    assert not re.search(r"(?<!\\)[|<$*`](?!br>)", escaped)
    assert escape_markdown("ab " * 1000, 1500) == "ab " * 500 + " …"


# ----- mistakes -----------------------------------------------------------------------------------

@pytest.fixture
def fails(run, capsys):
    """fails(*argv) -> the one line on stderr, exit code 2."""
    def refused(*argv):
        with pytest.raises(SystemExit) as e:
            run(*argv)
        return one_line(e.value.code, capsys.readouterr().err)
    return refused


MISTAKES = {
    "--adapter nowhere hi": "nowhere: no such folder",
    "--model nowhere hi": "nowhere: no such folder",
    "--adapter a,a=b hi": "a=b: the name a is taken",
    "--adapter base=a hi": "base=a: the name base is taken",
    "--adapter b=a --against b=c --compare hi": "both called b",
    "--compare": "--compare needs a question or --data, one of them",
    "--compare --data nano hi": "one of them",
    "--data nano": "--data goes with --compare",
    "--against nano": "--against goes with",
    "--markdown x.md hi": "--markdown goes with",
    "--compare --data nano --system x": "--system and --data contradict",
    "--compare hi --markdown no/where/x.md": "must be a file in a folder that exists",
    "--compare hi --markdown .": "must be a file in a folder that exists",
    "--compare hi --against nowhere": "nowhere: no such folder",
    "--compare --data nowhere": "--data nowhere: no folder",
    "--temperature=-1 hi": "--temperature -1.0: it must be a number, at least 0",
    "--temperature=nan hi": "--temperature nan",
    "--temperature=inf hi": "--temperature inf",
    "--top_p=0 hi": "--top_p 0.0: it must be a number, above 0",
    "--top_p=1.5 hi": "at most 1",
    "--n=0 --compare --data nano": "--n 0: it must be a whole number, at least 1",
    "--max_new_tokens=0 hi": "--max_new_tokens 0",
    "--max_new_tokens=1024 hi":
        "leaves no room for a question in the model's context of 1024",
    "--seed=-1 hi": "--seed -1",
    f"--seed={2 ** 63} hi": f"--seed {2 ** 63}",
    "--device=banana hi": "--device banana",
    "--dtype=float8 hi": "invalid choice",
    "hi there": "unrecognized arguments: there",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_mistakes(fails, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[flags] in fails(*flags.split())
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_base(fails, checkpoint, adapters):
    folder = adapters["other"]
    error = fails("--model", checkpoint(), "--adapter", folder, "hi")
    assert f"{folder}: the adapter is for another base" in error


@pytest.mark.parametrize("name, words", [
    ("/gone/base", "is for the base /gone/base, which is not there; give --model"),
    (None, "does not say")])
def test_a_base_that_has_gone(fails, adapters, tmp_path, name, words):
    folder = shutil.copytree(adapters["other"], tmp_path / "other")
    edit_json(folder / "adapter_config.json", base_model_name_or_path=name)
    assert words in fails("--adapter", folder, "hi")


def test_a_tokenizer_larger_than_the_embedding(fails, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(), tmp_path / "model")
    tiny_tokenizer(folder, size=330)
    assert "the tokenizer has 3" in fails("--model", folder, "hi")


def test_a_table_that_is_wider_than_the_terminal_becomes_blocks():
    table = ("## Claims\n\n| claim          | value | why |\n| -------------- | ----- | --- |\n"
             "| it rains a lot | 0.1   |     |\n| it snows       | 0.2   | no  |")
    assert fit_markdown(table, 34) == table
    assert fit_markdown(table, 18) == (
        "## Claims\n\nclaim  it rains a\n       lot\nvalue  0.1\n\nclaim  it snows\nvalue  0.2\n"
        "why    no")
    assert hang_line("  name  what it is", 14) == "  name  what\n      it is"
