"""data/check.py: does it measure what training will see, and name every line that is wrong?"""
import importlib.util
import json
import random
import re
import shlex

import pytest
from conftest import CHATML, REPO, tiny_tokenizer
from runs import contents, one_line, write_lines

import dataset
import evaluate
import export
import sample
import train
from plumbing.records import read_rows
from settings import parse as parse_run
from settings import settled
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

    def run(*arguments):                # of two --model the last one counts
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

def test_check_says_each_reason_once_with_the_lines_it_holds_for(tmp_path, check_fails):
    good = json.dumps({"messages": say("?", "!")})
    empty_answer = json.dumps({"messages": say("?", "")})
    bad = ["{", "[]", '{"messages": []}', empty_answer]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([good, "", *bad, good, *bad[:2] * 4]), encoding="utf-8")
    out, error = check_fails(path)
    assert f"{path}: 2 samples, wrong lines: 12\n" in out and "wrong lines: 12" in error
    shown = re.findall(r"^  (lines? .*?): (.{10}).*$", out, re.MULTILINE)
    assert shown == [
        ("lines 3, 8, 10, 12, 14", "not valid "), ("lines 4, 9, 11, 13, 15", "its conten"),
        ("line 5", "the last m"), ("line 6", "the assist")]
    assert "between »these marks« are learned" in out               # the good ones are shown anyway


def test_check_shows_ten_reasons_and_ten_lines_of_a_reason(tmp_path, check_fails):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(["{"] * 13 + [f"[{n}]" for n in range(12)]))
    out = check_fails(path)[0]
    assert f"{path}: 0 samples, wrong lines: 25\n" in out
    assert "\n  lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more: not valid JSON" in out
    assert re.findall(r"^  line (\d+): its content \[(\d+)\]", out, re.MULTILINE) == [
        (str(14 + n), str(n)) for n in range(9)]
    assert "\n  and 3 lines more\n" in out


def test_check_counts_wrong_lines_of_both_files(tmp_path, check_fails):
    for name, lines in (("train", "{\n{}\n"), ("test", "[]\n")):
        (tmp_path / f"{name}.jsonl").write_text(lines)
    out, error = check_fails(tmp_path)
    assert "train.jsonl: 0 samples, wrong lines: 2" in out
    assert "test.jsonl: 0 samples, wrong lines: 1" in out
    assert "error: wrong lines: 3, named above; training stops at the first" in error


def test_check_names_what_the_template_refuses(tmp_path, capsys):
    refusal = "{{ raise_exception('no\nsystem') if messages[0].role == 'system' }}"
    tiny_tokenizer(tmp_path, template=refusal + CHATML)
    with_system = [{"role": "system", "content": "Trả lời ngắn."}, *say("?", "!")]
    write_lines(tmp_path / "x.jsonl", [say("?", "!"), with_system])
    lines, wrong = data_check.survey_file(
        tmp_path / "x.jsonl", Tokenizer.from_pretrained(tmp_path))
    assert [line.number for line in lines] == [1]
    assert wrong == [(2, "the model's chat template refuses these messages: no\nsystem")]
    data_check.show_wrong(wrong, "line")
    assert capsys.readouterr().out == (
        "  line 2: the model's chat template refuses these messages: no system\n")


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
        (tmp_path / "no.jsonl",): "has no no.jsonl; is it the right folder",
        ("nowhere",): "no folder with train.jsonl",
        ("nano", "--max_length=0"): "--max_length 0: it must be a whole number, at least 1",
        ("nano", "--length=3"): "python data/check.py --help"}
    for arguments, words in mistakes.items():
        assert words in check_fails(*arguments)[1]


# ----- other forms, and a test split --------------------------------------------------------------

FORMS = {
    "ShareGPT": {"id": "a1", "conversations": [
        {"from": "system", "value": "Trả lời ngắn."}, {"from": "human", "value": "Mấy giờ mở?"},
        {"from": "gpt", "value": "8 giờ."}, {"from": "human", "value": "Còn đóng?"},
        {"from": "gpt", "value": "21 giờ."}, {"from": "human", "value": "Cảm ơn!"}]},
    "Alpaca": {"instruction": "Dịch câu này.", "input": "I am here.", "output": "Tôi đây."},
    "Alpaca form": {"instruction": "Kể 1 số lẻ.", "input": "", "output": "7"},     # the same form
    "prompt / completion": {"prompt": "2 + 2?", "completion": "4"},
    "one list of samples in our": {"messages": say("Còn áo đỏ?", "Còn."), "references": ["Còn"]}}
EXPECTED = {
    "ShareGPT": [{"role": "system", "content": "Trả lời ngắn."}, *say("Mấy giờ mở?", "8 giờ."),
                 *say("Còn đóng?", "21 giờ.")],        # the question at the end has no answer
    "Alpaca": say("Dịch câu này.\n\nI am here.", "Tôi đây."),
    "Alpaca form": say("Kể 1 số lẻ.", "7"),
    "prompt / completion": say("2 + 2?", "4"),
    "one list of samples in our": say("Còn áo đỏ?", "Còn.")}


def number_questions(text, i):
    """A row's text with its questions made unique."""
    return text.replace("?", f" {i}?").replace("câu này", f"câu {i}").replace("lẻ", f"lẻ {i}")


def write_rows(path, rows):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if path.suffix == ".jsonl" else f"[\n{', '.join(lines)}]"
    path.write_text(text, encoding="utf-8-sig")


def read_lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("form", FORMS)
def test_another_form_is_named_and_converted_by_the_command_that_is_named(
        tmp_path, monkeypatch, check, check_fails, form, suffix):
    if (form, suffix) == ("one list of samples in our", ".jsonl"):
        return                                                      # it is our form
    monkeypatch.chdir(tmp_path)
    row = json.dumps(FORMS[form], ensure_ascii=False)
    path = tmp_path / f"my own{suffix}"
    write_rows(path, [json.loads(number_questions(row, i)) for i in range(40)])
    error = check_fails(path.name)[1]
    assert f"my own{suffix} is " in error and f"{form.removesuffix(' form')} form; " in error
    words = shlex.split(error.partition("; ")[2].partition(" writes it as train.py reads it")[0])
    assert words == ["python", "data/check.py", path.name, "--convert", "out_folder"]
    assert list(tmp_path.iterdir()) == [path]                       # nothing but the advice
    assert f"{path.name}: 40 samples in " in check(*words[2:])

    out = tmp_path / "out_folder"
    train, test = read_lines(out / "train.jsonl"), read_lines(out / "test.jsonl")
    assert (len(train), len(test)) == (36, 4)
    expected = json.dumps(EXPECTED[form], ensure_ascii=False)
    expected = [number_questions(expected, i) for i in range(40)]
    converted = [json.dumps(row["messages"], ensure_ascii=False) for row in train + test]
    assert sorted(converted) == sorted(expected)
    assert all(("references" in row) == ("references" in FORMS[form]) for row in train + test)
    assert "prompts of test.jsonl that train.jsonl also has: 0" in check("out_folder")


@pytest.mark.parametrize("between, bom", [(",", b""), (";", b"\xef\xbb\xbf")])
def test_a_table_is_converted(tmp_path, check, check_fails, between, bom):
    """As spreadsheet programs write it. A cell may hold commas, semicolons and ends of lines."""
    answer = 'Từ 8, 9 hoặc 10 giờ; "đúng"\nHẹn gặp!'
    quoted = '"' + answer.replace('"', '""') + '"'
    rows = [between.join(("id", "Question", " Answer "))]
    rows += [between.join((str(i), f"Mấy giờ {i}?", quoted)) for i in range(10)]
    path = tmp_path / "shop.csv"
    path.write_bytes(bom + "\r\n".join(rows).encode())
    assert "shop.csv is in question / answer form; python data/check.py" in check_fails(path)[1]
    assert "10 samples in question / answer form" in check(path, f"--convert={tmp_path / 'out'}")
    written = read_lines(tmp_path / "out/train.jsonl") + read_lines(tmp_path / "out/test.jsonl")
    assert sorted(row["messages"][0]["content"] for row in written) == [
        f"Mấy giờ {i}?" for i in range(10)]
    assert {row["messages"][1]["content"] for row in written} == {answer}


def pairs(questions):
    return [{"prompt": question, "completion": str(i)} for i, question in enumerate(questions)]


def convert(check, folder, rows, *flags):
    """-> (training questions, test questions) after --convert."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "rows.jsonl", rows)
    out = folder / f"out{len(list(folder.iterdir()))}"
    check(folder / "rows.jsonl", f"--convert={out}", *flags)
    return [[row["messages"][0]["content"] for row in read_lines(out / f"{split}.jsonl")]
            for split in ("train", "test")]


@pytest.mark.parametrize(("n", "share", "n_test"), [
    (200, 0.2, 40), (200, 0.1, 20), (25, 0.1, 2), (3, 0.1, 1), (2, 0.1, 1), (2, 0.9, 1)])
def test_the_share_of_the_test_split(tmp_path, check, n, share, n_test):
    rows = pairs(f"{i}?" for i in range(n))
    train, test = convert(check, tmp_path, rows, f"--test_share={share}")
    assert (len(train), len(test)) == (n - n_test, n_test)
    assert sorted(train + test) == sorted(row["prompt"] for row in rows)


def test_the_seed_draws_the_test_split(tmp_path, check):
    rows = pairs(f"{i}?" for i in range(100))
    splits = [convert(check, tmp_path, rows, *flags)
              for flags in ([], ["--seed=42"], ["--seed=43"])]
    assert splits[0] == splits[1] and set(splits[0][1]) != set(splits[2][1])
    assert splits[0][1] != [f"{i}?" for i in range(10)]             # not the first


@pytest.mark.parametrize("seed", range(5))
def test_a_question_that_comes_again_lands_on_one_side(tmp_path, check, seed):
    """30 questions, each asked once to four times in other cases and spacings."""
    draw = random.Random(seed)
    questions = []
    for i in range(30):
        ways = f"Giá áo {i}?", f"giá  ÁO {i}?", f" Giá áo\n{i}? "
        questions += [draw.choice(ways) for _ in range(draw.randint(1, 4))]
    draw.shuffle(questions)
    split = convert(check, tmp_path, pairs(questions), f"--seed={seed}")
    sides = [{" ".join(text.lower().split()) for text in side} for side in split]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 30
    assert sorted(split[0] + split[1]) == sorted(questions)
    assert 0 <= round(len(questions) / 10) - len(split[1]) <= 3     # the last ones did not fit


def test_conversations_that_begin_alike_stay_together(tmp_path, check):
    """A line for each turn: the second holds the answer to the first one's question."""
    rows = []
    for i in range(10):
        first, second = say(f"{i}?", f"{i}."), say("Vì sao?", "Thế thôi.")
        rows += [{"messages": first}, {"messages": first + second}]
    train, test = convert(check, tmp_path, rows, "--test_share=0.2")
    assert len(train) == 16 and len(set(train)) == 8
    assert len(test) == 4 and len(set(test)) == 2


def test_groups_that_are_larger_than_the_share(tmp_path, check, check_fails):
    questions = ["A?"] * 5 + ["B?"] * 3 + ["C?"] * 4
    train, test = convert(check, tmp_path, pairs(questions), "--test_share=0.1")
    assert test == ["B?"] * 3 and sorted(train) == ["A?"] * 5 + ["C?"] * 4
    write_rows(tmp_path / "same.jsonl", pairs(["A?"] * 5))
    error = check_fails(tmp_path / "same.jsonl", f"--convert={tmp_path / 'no'}")[1]
    assert "all samples begin with the same question" in error and not (tmp_path / "no").exists()


def test_a_folder_without_a_test_split(tmp_path, check, check_fails):
    folder, out = tmp_path / "mine", tmp_path / "out"
    folder.mkdir()
    write_lines(folder / "train.jsonl", [say(f"{i}?", "!") for i in range(20)])
    before = contents(folder)
    assert f"python data/check.py {folder} --convert NEW_FOLDER draws one" in check_fails(folder)[1]
    check(folder, f"--convert={out}", "--test_share=0.25")
    assert [len(read_lines(out / f"{split}.jsonl")) for split in ("train", "test")] == [15, 5]
    assert contents(folder) == before
    check(out)                                                      # and it passes


def test_a_test_split_that_exists_is_converted_and_not_drawn(tmp_path, check):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_rows(folder / "train.jsonl", pairs(["A?", "B?"]))
    write_rows(folder / "test.jsonl", pairs(["C?"]))
    check(folder, f"--convert={tmp_path / 'one'}")
    train, test = (folder / f"{split}.jsonl" for split in ("train", "test"))
    check(train, f"--test={test}", f"--convert={tmp_path / 'two'}")
    for out in (tmp_path / "one", tmp_path / "two"):
        assert [row["messages"] for row in read_lines(out / "train.jsonl")] == [
            say("A?", "0"), say("B?", "1")]
        assert [row["messages"] for row in read_lines(out / "test.jsonl")] == [say("C?", "0")]


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_nothing_is_written_over(tmp_path, check_fails, name):
    write_rows(tmp_path / "rows.jsonl", pairs(["A?", "B?"]))
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    error = check_fails(tmp_path / "rows.jsonl", f"--convert={tmp_path}")[1]
    assert f"{tmp_path / name} exists already" in error and contents(tmp_path) == before


def test_rows_that_cannot_be_learned_from_are_left_out_and_named(tmp_path, check, check_fails):
    good = pairs(["A?", "B?"])
    bad = {
        '{"prompt": "C?", "completion": 5}': "prompt / completion: completion 5: it must be a text",
        '{"prompt": "C?", "completion": ""}': "the assistant's answer is empty",
        '{"prompt": " ", "completion": "x"}': "the question is empty",
        '{"conversations": [{"from": "bot", "value": "x"}]}':
            "ShareGPT: conversations[0].from 'bot': it must be",
        '{"conversations": [{"from": "human", "value": "x"}]}': "the last message must be",
        '{"text": "x"}': "it is in none of the forms",
        '{"prompt": ': "not valid JSON"}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(good[0]), *bad, json.dumps(good[1])]), encoding="utf-8")
    out = check(path, f"--convert={tmp_path / 'out'}")
    assert f"{path}: 2 samples in prompt / completion form, left out: 7\n" in out
    for number, reason in enumerate(bad.values(), 2):
        assert f"  line {number}: {reason}" in out
    written = read_lines(tmp_path / "out/train.jsonl") + read_lines(tmp_path / "out/test.jsonl")
    assert sorted(row["messages"][0]["content"] for row in written) == ["A?", "B?"]

    one_list = tmp_path / "rows.json"
    write_rows(one_list, [good[0], {"text": "x"}, good[1]])
    out = check(one_list, f"--convert={tmp_path / 'list'}")
    assert f"{one_list}: 2 samples in prompt / completion form, left out: 1\n  item 2:" in out
    written = "".join(f"{tmp_path}/list/{name}.jsonl: 1 sample" for name in ("train", "test"))
    assert re.sub(r", drawn.*|\n", "", out[out.index(f"{tmp_path}/list"):]).startswith(written)

    write_rows(one_list, [{"q": "A?", "a": "x"}] * 12 + good)
    out = check(one_list, f"--convert={tmp_path / 'twelve'}")
    assert ("  items 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more: it is in none of the forms that "
            "data/forms.py lists (it has q, a)\n") in out and out.count("none of the forms") == 1

    path.write_text("\n".join(bad), encoding="utf-8")
    error = check_fails(path, f"--convert={tmp_path / 'none'}")[1]
    assert "can be converted; call its columns or keys question and answer; data/custom" in error
    assert not (tmp_path / "none").exists()


def test_files_that_cannot_be_read_so_end_in_one_line(tmp_path, check_fails):
    for name, text, words in (
            ("broken.json", '[{"prompt": "A?"', "is not valid JSON"),
            ("other.json", '[{"text": "A?"}]', "other.json: item 1: it is in none of the forms"),
            ("empty.json", "[]", "empty.json holds no samples"),
            ("header.csv", "question,answer\n", "header.csv holds no samples"),
            ("bytes.json", b'[{"prompt": "\xff"}]', "is not valid JSON"),
            ("utf16.json", '[{"prompt": "A?"}]'.encode("utf-16"), "not UTF-8 but UTF-16"),
            ("utf16.jsonl", '{"prompt": "A?"}\n'.encode("utf-16-le"), "wrong lines: 2"),
            ("latin.csv", "question,answer\nQué?,x\n".encode("latin-1"), "call it CSV UTF-8"),
            ("other.csv", "a,b\n1,2\n", "other.csv: it is in none of the forms that data/forms.py "
                                        "lists (it has a, b); call its columns or keys question"),
            ("missing.csv", None, "has no missing.csv; is it")):
        if text is None:
            assert words in check_fails(tmp_path / name)[1]
            continue
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        assert words in check_fails(tmp_path / name)[1]
    for flags, words in (("--test_share=0", "--test_share 0.0: it must be a number, above 0"),
                         ("--test_share=1", "at most 0.9"), ("--seed=-1", "--seed -1"),
                         ("--supervise=some", "invalid choice")):
        assert words in check_fails(tmp_path / "other.json", f"--convert={tmp_path}", flags)[1]


def test_half_a_surrogate_pair_survives(tmp_path, check):
    (tmp_path / "x.jsonl").write_text('{"prompt": "A?", "completion": "\\ud83d"}\n'
                                      '{"prompt": "B?", "completion": "\\ud83d\\ude00"}\n')
    check(tmp_path / "x.jsonl", f"--convert={tmp_path / 'out'}")
    rows = read_lines(tmp_path / "out/train.jsonl") + read_lines(tmp_path / "out/test.jsonl")
    assert {row["messages"][1]["content"] for row in rows} == {"\ud83d", "\U0001f600"}


def test_check_counts_what_supervise_all_learns(tmp_path, check):
    path = tmp_path / "x.jsonl"
    write_lines(path, [[*say("A?", "12 + 7 = 19."), *say("B?", "19.")]])
    learned = [read_numbers(r"^  answer, learned +(\S+)", check(path, f"--supervise={which}"))[0]
               for which in ("last", "all")]
    one_turn = tmp_path / "y.jsonl"
    write_lines(one_turn, [say("A?", "12 + 7 = 19.")])
    assert learned[1] - learned[0] == read_numbers(r"^  answer, learned +(\S+)", check(one_turn))[0]


# ----- the page about your own data ---------------------------------------------------------------

PAGE = (REPO / "data/custom/README.md").read_text(encoding="utf-8")


def page_commands(script):
    """The arguments of each command of the page that runs `script`."""
    page = PAGE.replace("\\\n", " ")           # a backslash ends a line that goes on
    lines = re.findall(rf"^python {script} (.*)$", page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_the_shop_from_its_table_to_transformers(checkpoint, tmp_path, monkeypatch, check, capsys):
    """The page's first section: its commands and its Python example, on a tiny model."""
    rows = ["question,answer"] + [f'"{i} + 1, là?\u2028",{i + 1}' for i in range(200)]
    (tmp_path / "shop.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    in_transformers, = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    convert_shop, check_shop = page_commands("data/check.py")
    check(*convert_shop)
    train_set = dataset.read_messages(tmp_path / "shop/train.jsonl")
    test_set = dataset.read_messages(tmp_path / "shop/test.jsonl")
    assert (len(train_set), len(test_set)) == (160, 40)
    written = {messages[0]["content"]: messages[1]["content"] for messages in train_set + test_set}
    assert written == {f"{i} + 1, là?\u2028": str(i + 1) for i in range(200)}
    assert "shop/train.jsonl: 160 samples, wrong lines: 0" in check(*check_shop)

    [train_shop], (compare, chat) = page_commands("train.py"), page_commands("sample.py")
    [answer_all], [merge] = page_commands("evaluate.py"), page_commands("export.py")
    train.main([*train_shop, f"--model={checkpoint()}"])
    last = read_rows(tmp_path / "out/shop/log.csv")[-1]
    assert last["step"] == 30
    sample.main(compare)
    capsys.readouterr()
    evaluate.main(answer_all)
    assert capsys.readouterr().out.startswith(
        "out/shop_answers.jsonl has every answer, shop_answers.json this result\n")
    result = json.loads((tmp_path / "out/shop_answers.json").read_text())
    assert result["test_nll"] == pytest.approx(last["test_nll"], abs=1e-5)
    assert len(read_lines(tmp_path / "out/shop_answers.jsonl")) == 40
    export.main(merge)
    capsys.readouterr()
    exec(in_transformers, {})
    theirs = capsys.readouterr().out
    sample.main([*chat, "When do you open?", "--max_new_tokens=100"])
    assert theirs.strip() and theirs.strip() == capsys.readouterr().out.strip()


def test_the_settings_for_each_size(tmp_path, check):
    """The page's table: the numbers of test samples and of steps follow from its flags."""
    table = re.findall(r"^\| ([\d,]+) \| `(--test_share \S+)` \((\d+)\) \| `(.+)` \| ([\d,]+) \|$",
                       PAGE, re.MULTILINE)
    assert [row[0] for row in table] == ["200", "2,000", "20,000"]
    for n, share, n_test, flags, steps in table:
        n, steps = int(n.replace(",", "")), int(steps.replace(",", ""))
        folder = tmp_path / str(n)
        train, test = convert(check, folder, pairs(f"{i}?" for i in range(n)), *share.split())
        assert (len(train), len(test)) == (n - int(n_test), int(n_test))
        assert settled(parse_run(flags.split()), len(train)).max_steps == steps


def test_a_comma_in_a_cell_does_not_move_the_cells(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"4, or 5?",4\n4, or 5?,4\n4?\n')
    rows, wrong = data_check.read_any_form(tmp_path / "a.csv")
    assert [row["messages"][0]["content"] for row in rows] == ["4, or 5?"]
    assert data_check.kind_of_rows(tmp_path / "a.csv") == "row"
    assert wrong[0][0] == 3
    assert wrong[0][1].startswith("question / answer: cells without a name ['4']")
    assert wrong[1][0] == 4
    assert wrong[1][1].startswith("question / answer: answer null: it must be a text")
