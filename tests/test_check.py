"""data/check.py: does it measure what training will see, and name every line that is wrong?"""
import importlib.util
import json
import random
import re

import pytest
from conftest import CHATML, REPO, tiny_tokenizer
from runs import one_line, write_lines

import dataset
from tokenizer import Tokenizer

spec = importlib.util.spec_from_file_location("data_check", REPO / "data/check.py")
data_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(data_check)


def say(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def check(checkpoint, capsys):
    """check(*arguments) -> what `python data/check.py` prints for the tests' tokenizer."""
    model = checkpoint()
    capsys.readouterr()                 # what transformers prints as it writes

    def run(*arguments):
        data_check.main([*map(str, arguments), f"--model={model}"])
        return capsys.readouterr().out
    return run


@pytest.fixture
def check_fails(check, capsys):
    """The same where it must end with code 2 -> (what it prints, its one line on stderr)."""
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            check(*arguments)
        out, error = capsys.readouterr()
        return out, one_line(stop.value.code, error)
    return run


# ----- lengths ------------------------------------------------------------------------------------

def read_numbers(pattern, out):
    """The groups of the first match as whole numbers."""
    groups = re.search(pattern, out, re.MULTILINE).groups()
    return [int(group.replace(",", "")) for group in groups]


@pytest.mark.parametrize("max_length", [None, 50, 100, 1000])
def test_check_measures_what_training_will_see(checkpoint, tmp_path, check, max_length):
    draw, path = random.Random(0), tmp_path / "x.jsonl"
    conversations = [say("Lan có 12 quả? " * draw.randint(1, 6),
                         "12 + 7 = 19. " * draw.randint(1, 9)) for _ in range(60)]
    write_lines(path, conversations)
    tokenizer = Tokenizer.from_pretrained(checkpoint())
    samples = [dataset.encode_sample(messages, tokenizer) for messages in conversations]
    prompt = [len(sample.ids) - sample.learned for sample in samples]
    max_length = max_length or prompt[0]            # None: nothing of the first answer is left
    kept, dropped = dataset.load_split(path, tokenizer, max_length)
    out = check(path, f"--max_length={max_length}")

    assert f"{path}: 60 samples, wrong lines: 0\n" in out
    together = [len(sample.ids) for sample in samples]
    answer = [sample.learned for sample in samples]
    for name, lengths in (("prompt", prompt), ("answer, learned", answer), ("together", together)):
        median, longest, in_all = read_numbers(rf"^  {name} +(\S+) +(\S+) +(\S+)$", out)
        assert longest == max(lengths) and in_all == sum(lengths)
        assert sorted(lengths)[29] == median
    cut, lost = read_numbers(r"cut at --max_length [\d,]+ \(░\): (\d+); dropped, .*: (\d+)$", out)
    assert (cut, lost) == (sum(n > max_length for n in together), dropped)

    shown = re.search(r"the first sample, (\d+) tokens; the (\d+) between »these marks« are learned"
                      r":.*»(.*)«", out, re.DOTALL).groups()
    ids, learned = kept[0].ids, kept[0].learned
    assert shown == (str(len(ids)), str(learned), tokenizer.decode(ids[-learned:]))


@pytest.mark.parametrize("max_length", [1, 100, 300, 10_000])
def test_the_histogram_holds_every_length_once(capsys, max_length):
    draw = random.Random(1)
    lengths = [1, 2, 3, 4, 5] + [int(2 ** draw.uniform(4, 12)) for _ in range(500)]
    data_check.show_histogram(lengths, max_length)
    out = capsys.readouterr().out.replace(",", "")
    rows = re.findall(r"^ +(\d+) - (\d+) +(█*)(░*) +(\d+)$", out, re.MULTILINE)
    assert len(rows) == out.count("\n")

    ranges = [(int(low), int(high)) for low, high, *_ in rows]
    starts, ends = [low for low, _ in ranges], [high for _, high in ranges]
    assert starts == [1] + [high + 1 for high in ends[:-1]]                 # no gap, no overlap
    some_ranges = {(1, 1), (2, 2), (4, 4), (5, 6), (65, 96), (97, 128), (129, 192), (193, 256)}
    assert some_ranges < set(ranges)

    inside = [[n for n in lengths if low <= n <= high] for low, high in ranges]
    most = max(map(len, inside))
    for some, (_, _, dark, light, count) in zip(inside, rows, strict=True):
        longer = [n for n in some if n > max_length]
        assert int(count) == len(some)
        assert 0 <= len(dark + light) - 40 * len(some) / most < 1           # rounded up
        assert 0 <= len(light) - 40 * len(longer) / most < 1


# ----- what is wrong ------------------------------------------------------------------------------

def test_check_names_every_wrong_line_up_to_ten(tmp_path, check_fails):
    good = json.dumps({"messages": say("?", "!")})
    empty_answer = json.dumps({"messages": say("?", "")})
    bad = ["{", "[]", '{"messages": []}', empty_answer]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([good, "", *bad, good, *bad[:2] * 4]), encoding="utf-8")
    out, error = check_fails(path)
    assert f"{path}: 2 samples, wrong lines: 12\n" in out and "wrong lines: 12" in error
    shown = re.findall(r"^  line (\d+): (.*)$", out, re.MULTILINE)
    assert [int(number) for number, _ in shown] == [3, 4, 5, 6, 8, 9, 10, 11, 12, 13]
    assert "  and 2 more\n" in out
    assert [reason[:16] for _, reason in shown[:4]] == [
        "not valid JSON: ", 'it must be {"mes', "the last message", "the assistant's "]
    assert "between »these marks« are learned" in out               # the good ones are shown anyway


def test_check_counts_wrong_lines_of_both_files(tmp_path, check_fails):
    for name, lines in (("train", "{\n{}\n"), ("test", "[]\n")):
        (tmp_path / f"{name}.jsonl").write_text(lines)
    out, error = check_fails(tmp_path)
    assert "train.jsonl: 0 samples, wrong lines: 2" in out
    assert "test.jsonl: 0 samples, wrong lines: 1" in out
    assert "error: wrong lines: 3, up to 10 per file shown above" in error


def test_check_names_what_the_template_refuses(tmp_path):
    refusal = "{{ raise_exception('no\nsystem') if messages[0].role == 'system' }}"
    tiny_tokenizer(tmp_path, template=refusal + CHATML)
    with_system = [{"role": "system", "content": "Trả lời ngắn."}, *say("?", "!")]
    write_lines(tmp_path / "x.jsonl", [say("?", "!"), with_system])
    lines, wrong = data_check.survey_file(
        tmp_path / "x.jsonl", Tokenizer.from_pretrained(tmp_path))
    assert [line.number for line in lines] == [1]
    assert wrong == ["line 2: the model's chat template refuses these messages: no system"]


def test_check_counts_prompts_that_come_again(tmp_path, check):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    after_a_turn = [*say("D?", "2"), *say("A?", "1")]   # the same question, but another prompt
    write_lines(train, [say("A?", "1"), say("B?", "2"), say("a?", "1"), say(" A? ", "3"),
                        say("C?", "4"), after_a_turn])
    write_lines(test, [say("D?", "1"), say("C?", "4"), say("b?", "5"), say("D?", "1")])
    for arguments in ((train, f"--test={test}"), (tmp_path,)):
        out = check(*arguments)
        assert ("prompts that an earlier line also has: 2, 1 with the same answer\n"
                "    line 3 has that of line 1: a?\n") in out
        assert ("prompts that an earlier line also has: 1, 1 with the same answer\n"
                "    line 4 has that of line 1: D?\n") in out
        assert ("prompts of test.jsonl that train.jsonl also has: 2, 1 with the same answer\n"
                "    line 2 has that of line 5: C?\n") in out
    out = check(train)
    assert "prompts of" not in out and out.count("wrong lines") == 1


def test_check_ends_in_one_line_for_what_a_user_gets_wrong(tmp_path, check_fails):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    mistakes = {
        (empty,): "holds no samples",
        (tmp_path / "no.jsonl",): "No such file",
        ("nowhere",): "no folder with train.jsonl",
        ("nano", "--max_length=0"): "--max_length 0: it must be at least 1",
        ("nano", "--length=3"): "python data/check.py --help"}
    for arguments, words in mistakes.items():
        assert words in check_fails(*arguments)[1]


# ----- the page about your own data ---------------------------------------------------------------

def run_recipe(page, number, folder, monkeypatch):
    """Run a Python example of data/custom/README.md in `folder`. number: 0 is the page's first."""
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    exec(examples[number], {})


@pytest.mark.parametrize(("n", "n_test"), [(200, 40), (1000, 200), (2500, 500), (20_000, 500)])
def test_the_recipe_for_training_and_test_samples(tmp_path, monkeypatch, n, n_test):
    page = (REPO / "data/custom/README.md").read_text(encoding="utf-8")
    rows = ["question,answer"] + [f'"{i} + 1, là?\u2028",{i + 1}' for i in range(n)]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run_recipe(page, 0, tmp_path, monkeypatch)
    run_recipe(page, 1, tmp_path, monkeypatch)
    train = dataset.read_messages(tmp_path / "train.jsonl")
    test = dataset.read_messages(tmp_path / "test.jsonl")
    assert (len(train), len(test)) == (n - n_test, n_test)
    written = {messages[0]["content"]: messages[1]["content"] for messages in train + test}
    assert written == {f"{i} + 1, là?\u2028": str(i + 1) for i in range(n)}
    assert test != [say(f"{i} + 1, là?\u2028", str(i + 1)) for i in range(n_test)]  # shuffled
