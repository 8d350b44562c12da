"""What a model says, measured: answers read as people mean them, BLEU as sacrebleu has it, batches that change nothing, and
evaluations that can be stopped anywhere."""
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from conftest import REPO, tiny
from runs import command, one_line
from sacrebleu import corpus_bleu
from transformers import AutoModelForCausalLM

import dataset
import evaluate
import train
from plumbing.records import read_rows
from evaluate import Task, final_answer, label_in, label_nll
from lora import apply_lora, lora_layers, save_adapter
from model import Transformer
from tokenizer import Tokenizer


def write_task(folder, samples, **task):
    """A data set of (question, answer) or (question, answer, references), and its task.json."""
    folder.mkdir()
    for split in ("train", "test"):
        lines = []
        for question, answer, *references in samples:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            lines.append({"messages": messages} | ({"references": references[0]} if references else {}))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if task:
        (folder / "task.json").write_text(json.dumps(task))
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """48 questions that the embedded base knows how to answer, some of them rightly, in four tokens or in twenty."""
    draw, samples = random.Random(0), []
    for i in range(48):
        a, b = draw.randint(2, 30), draw.randint(2, 20)
        question = (f"Lan có {a} quả táo, mẹ cho thêm {b} quả. Hỏi Lan có tất cả bao nhiêu quả táo?", f"Tính {a} + {b}.",
                    f"Kể một câu chuyện về {a} con mèo.", f"{a} + {b} = ?")[i % 4]
        samples.append((question, f"<think>{a} + {b} = {a + b}</think>\n{a + b}"))
    return write_task(tmp_path_factory.mktemp("sums") / "sums", samples, metric="exact_match")


def run(*argv, **settings):
    """evaluate.py in this process -> (FILE.json, the rows of FILE.jsonl)."""
    evaluate.main([*map(str, argv), *(f"--{name}={value}" for name, value in settings.items())])
    out = settings["out"]
    rows = [json.loads(line) for line in out.open(encoding="utf-8")] if out.exists() else []
    return json.loads(out.with_suffix(".json").read_text()), rows


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# ----- the final answer ---------------------------------------------------------------------------------------------

GSM8K = {                                           # answers of the test set, and of models asked its questions
    "Janet sells 16 - 3 - 4 = 9 duck eggs a day.\nShe makes 9 * 2 = $18 every day at the farmer’s market.\n#### 18": 18,
    "So the total profit is 200000-80000-50000=$70000\n#### 70,000": 70_000,
    "He gets 3*12=36 wins, 8-10=-2\n#### -10": -10,
    "The total is 2 x 725,000 = $1,450,000.\n#### 1,450,000": 1_450_000,
    "The celery seeds cost her 80 packets * $30/packet = $2400\n#### 2400": 2400,
    "25% of the rest is 0.25 * 8.5 = 2.125\n#### 2.125": Fraction(17, 8),
    "#### $18 per day, for 7 days": 18, "####18": 18, "#### **18**": 18, "#### \\$18.00": 18, "#### 18 eggs\n\nNow 7 cats": 18,
    "#### Step 2: add\n5 + 5 = 10\nThe answer is 10": 10,
    "She has 3 eggs, so the answer is 1,000 dollars.": 1000,
    "Therefore, Janet makes $18.50 every day.": Fraction(37, 2), "That is 20% of the eggs, or 3/4 of a dozen": Fraction(3, 4),
    "The answer is \\boxed{18}, as 9 * 2 = 18 and 3 are left.": 18, "\\boxed{\\frac{3}{4}}": Fraction(3, 4),
    "\\[ \\boxed{x = 1{,}250\\text{ miles}} \\] in 3 hours": 1250, "$x = \\dfrac{1}{2}$": Fraction(1, 2),
    "He ran 1 1/2 miles.": Fraction(3, 2), "He lost $3, so -$3.": -3, "It is −3 degrees.": -3, "10-3": 3, "COVID-19": 19,
    "= 10 - 3 = 7.": 7, "It costs $.50": Fraction(1, 2), "1.000": 1, "2.500": Fraction(5, 2), "1,000.50": Fraction(2001, 2),
    "Total: 12,500.": 12_500, "the 3 of them, 1/0": "the 3 of them, 1/0", "I cannot tell": "i cannot tell", "": "",
    "<think>9 * 2 = 18</think>\nJanet makes 9 * 2 = 18 dollars.": 18, "<think>9 * 2 = 18</think>\n": "",
}
VIETNAMESE = {                                      # in the form of vi_gsm8k and nano, and said otherwise
    "<think>Mẹ của Lan 8 x 4 = 32 tuổi.\nMẹ hơn Lan 32 - 8 = 24 tuổi.</think>\n24": 24,
    "<think>Mỗi chậu hoa lãi 15 - 6 = 9 nghìn đồng.</think>\n26 nghìn đồng": 26,
    "<think>Trong 5 giờ xe tải đi được 50 x 5 = 250 km.</think>\nXe đi được 50 x 5 = 250 km.": 250,
    "Xe chạy được 100 x 2 = 200 km.": 200, "10 nghìn đồng": 10, "18 quả táo": 18, "Đáp án: 18.": 18, "Lan trả 1.000 đồng": 1000,
    "Tất cả là 1.250.000đ.": 1_250_000, "1,000 đồng": 1000, "1000 đồng": 1000, "1.000,50": Fraction(2001, 2),
    "Còn 2,5 kg gạo.": Fraction(5, 2), "0,125": Fraction(1, 8), "0.125": Fraction(1, 8), "70.000 đô la": 70_000,
    "giảm 20%": 20, "-3 độ": -3, "#### 18": 18,
    "Cô ấy kiếm được $18 mỗi ngày": 18, "3/4 cái bánh": Fraction(3, 4), "\\boxed{1.000}": 1000, "12.50": Fraction(25, 2),
}


@pytest.mark.parametrize("vietnamese, answers", [(False, GSM8K), (True, VIETNAMESE)])
def test_final_answers(vietnamese, answers):
    wrong = {text: got for text, expected in answers.items() if (got := final_answer(text, vietnamese)) != expected}
    assert not wrong and len(answers) > 20


def test_the_final_answer_of_every_problem_of_nano():
    sys.path.insert(0, str(REPO / "data/nano"))
    import prepare as nano
    for problem in nano.generate_problems(300, seed=7):
        messages, answer = nano.problem_to_sample(problem)["messages"], problem["answer"]
        asked = evaluate.Question(0, messages, [messages[-1]["content"]])
        for said in (messages[-1]["content"], problem["explanation"], f"Có {answer}.000 : 1.000 = {answer} quả.", f"{answer},0"):
            assert evaluate.judged(Task("exact_match", []), asked, said) == {"pred": answer, "correct": True}, said
        assert not evaluate.judged(Task("exact_match", []), asked, f"{answer}1")["correct"]


def test_what_a_dot_means_is_the_question_s_to_say():
    """A thousand in Vietnamese, one elsewhere: by the language of the messages, not of the model's answer."""
    for question, right in (("Lan có bao nhiêu đồng?", True), ("How many dollars has Lan?", False)):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "1000"}]
        asked = evaluate.Question(0, messages, ["1000"])
        assert evaluate.judged(Task("exact_match", []), asked, "Có 1.000 đồng")["correct"] is right
        assert evaluate.judged(Task("exact_match", []), asked, "1,000")["correct"]
        several = asked._replace(references=["7", "1.000"])                     # any of them is right
        assert evaluate.judged(Task("exact_match", []), several, "1000")["correct"] is right


# ----- labels -------------------------------------------------------------------------------------------------------

def test_labels_in_answers():
    english, vietnamese = ["negative", "positive"], ["tiêu cực", "trung tính", "tích cực"]
    for answer, label in {"positive": "positive", "Negative.": "negative", "**POSITIVE**, not negative": "positive", "": "none",
                          "negatively put": "none", "good": "none", "<think>positive?</think>negative": "negative"}.items():
        assert label_in(answer, english) == label, answer
    for answer, label in {"Tích cực.": "tích cực", "phản hồi tiêu cực, không tích cực": "tiêu cực", "tích": "none",
                          "ti\u0301ch cu\u031b\u0323c": "tích cực"}.items():            # the last one decomposed
        assert label_in(answer, vietnamese) == label, answer
    assert label_in("Good enough!", ["good", "good enough"]) == "good enough"
    assert label_in("POS\u0130TIVE po\u017fitive", ["negative", "positive"]) == "positive"     # cases that lower() does not undo


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_the_likelihood_of_labels_is_transformers(checkpoint, family):
    """Prompts and labels of all lengths in one pass, against each label by itself behind its prompt."""
    torch.manual_seed(1)
    prompts = [torch.randint(320, (n,)).tolist() for n in (3, 17, 1, 9)]
    answers = [[torch.randint(320, (n,)).tolist() for n in lengths] for lengths in ((1, 4, 2), (3, 1, 1), (2, 2, 6), (1, 1, 1))]
    peer = AutoModelForCausalLM.from_pretrained(checkpoint(family))

    @torch.no_grad()
    def nll(prompt, answer):
        logits = peer(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1]
        return F.cross_entropy(logits, torch.tensor(answer), reduction="sum")

    expected = torch.tensor([[nll(p, a) for a in some] for p, some in zip(prompts, answers)])
    got = label_nll(Transformer.from_pretrained(checkpoint(family)), prompts, answers)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_accuracy_in_both_ways(checkpoint, tmp_path):
    """The labels are written, and weighed; the NLL of the right ones, over all tokens, is the test NLL."""
    draw = random.Random(1)
    samples = [(f"Is {draw.choice(('he', 'this here thing'))} {n}?", draw.choice(("no", "maybe", "yes"))) for n in range(30)]
    data = write_task(tmp_path / "data", samples, metric="accuracy", labels=["no", "yes", "maybe"])
    result, rows = run(model=checkpoint(), data=data, out=tmp_path / "out.jsonl", batch=7, max_length=512)
    tokenizer = Tokenizer.from_pretrained(checkpoint())
    tokens = sum(len(s.ids) - s.start for s in dataset.load_split(data / "test.jsonl", tokenizer, 512)[0])
    right = [answer for _, answer in samples]
    assert sum(row["nll"][label] for row, label in zip(rows, right)) / tokens == pytest.approx(result["test_nll"], abs=1e-5)
    assert all(row["likeliest"] == min(row["nll"], key=row["nll"].get) and len(row["nll"]) == 3 for row in rows)
    weighed = [row["likeliest"] for row in rows]
    assert result["accuracy_by_likelihood"] == sum(a == b for a, b in zip(weighed, right)) / 30
    for i, label in enumerate(result["labels"]):
        for j, said in enumerate([*result["labels"], "none"]):
            assert result["confusion_by_likelihood"][i][j] == list(zip(right, weighed)).count((label, said))
    assert result["accuracy"] == sum(row["correct"] for row in rows) / 30 and sum(map(sum, result["confusion"])) == 30


def test_a_confusion_matrix_has_the_right_labels_in_its_rows():
    pairs = [("no", "yes"), ("no", "yes"), ("yes", "none"), ("yes", "yes")]
    assert evaluate.confusion(["no", "yes"], pairs) == [[0, 2, 0], [0, 1, 1]]
    lines = evaluate.matrix(["no", "yes"], [[0, 2, 0], [0, 1, 1]], "written").split("\n")
    assert [re.findall(r"\w+", line) for line in lines] == [["right", "written", "no", "yes", "none"], [], ["no", "0", "2", "0"],
                                                           ["yes", "0", "1", "1"]]


# ----- BLEU ---------------------------------------------------------------------------------------------------------

E2E = [                                             # of the E2E development set (CC BY-SA 4.0), numbers and marks as they are
    "Fitzbillies with a high rating as a coffee shop in the city centre provides English food with a price range £20-25. They "
    "are not kids friendly.",
    "The Punter might have low ratings...but it is riverside and offers a children Friendly great time.",
    "The Mill serves Chinese food for around £20-25. It's by the river, near The Sorrento coffee shop.",
    "The Golden Palace is a coffee shop  that also offers Chinese food  with items between £20-25.",
    "Near Café Sicilia, The Punter is a coffee shop with English food, a high customer Rating, is kids Friendly.",
    "For moderate prices, Cocum is a coffee shop that serves Chinese food; it is rated three out of five.",
    "Cotto coffee shop in Riverside, near The Portland Arms. With a Customer rating high, serves Chinese food .prices £20-25",
    "A kid friendly, 5-star rated restaurant located near The Sorrento is called The Wrestlers.",
    "Customer Rating: 5 of 5. Travellers Rest Beefeater near Raja Indian Cuisine in riverside.",
    "Cotto Chinese coffee shop , is moderate in price, with a customer Rating of 3 out of 5; located in the riverside area",
]
ODD = ["&quot;A&amp;B&lt;C&gt;", "<skipped>", "word-\nbreak", "line\nbreak", "1,000.5", "3.", ".5", "a,b", "20-25", "x-y", "it's",
       "(a)", "[b]", "{c}", "~", "`q`", "50%", "$5", "#1", "@x", "a/b", "c\\d", "e_f", "g^h", "i+j=k*l", "<m>", "n|o", "!", "?",
       "“q”", "–","\t", "£", "...", "--", "5-"]


def sacrebleu_of(answers, references):
    """Its streams of references, filled up with None where a sample has fewer."""
    most = max(map(len, references))
    return corpus_bleu(answers, [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]).score


@pytest.mark.parametrize("seed", range(60))
def test_bleu_is_sacrebleu_s(seed):
    """On garbled sentences: words dropped, doubled, exchanged, with odd marks among them, with one reference to four."""
    draw = random.Random(seed)

    def garbled(text):
        words = [word for word in text.split(" ") for _ in range(draw.choice((0, 1, 1, 1, 1, 2)))]
        for _ in range(draw.randint(0, 4)):
            words.insert(draw.randint(0, len(words)), draw.choice(ODD))
        return draw.choice((" ", " ", "  ")).join(words[:draw.choice((3, 8, 100))]) + draw.choice(("", "", " ", "\n", "-\n"))

    chosen = [draw.choice(E2E) for _ in range(draw.choice((1, 2, 20)))]
    answers = [draw.choice((garbled(text), text, "", draw.choice(ODD))) for text in chosen]
    references = [[text] + [garbled(text) or "x" for _ in range(draw.randint(0, 3))] for text in chosen]
    assert evaluate.corpus_bleu(answers, references) == pytest.approx(sacrebleu_of(answers, references), abs=1e-9)


@pytest.mark.parametrize("answers, references", [
    (["the cat"], [["the cat sat on the mat"]]), ([""], [["a"]]), (["a b c d"], [["e f g h"]]), (["a b c x d"], [["a b c y d"]]),
    (["a b c d e f"], [["a b c d e f", "a b c"]]), (["the the the the"], [["the cat is on the mat", "the the a b"]]),
    (["a b c d e"], [["a b c d", "a b c d e f"]])])
def test_bleu_at_its_edges(answers, references):
    """Too short for four words, empty, no match, none of the longer ones, and the reference nearest in length."""
    assert evaluate.corpus_bleu(answers, references) == pytest.approx(sacrebleu_of(answers, references), abs=1e-9)


def test_the_pieces_of_a_sentence_are_sacrebleu_s():
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    for text in (*E2E, *ODD, " ".join(ODD)):
        assert " ".join(evaluate.tokenize_13a(text)) == Tokenizer13a()(text.rstrip()), text


def test_bleu_of_a_data_set(tmp_path):
    """All references count, and the first is the one that the test NLL is of."""
    samples = [(f"1 + {n} = ?", f"{n + 1}", [f"{n + 1}", f"1 + {n} = {n + 1}.", f"1 + {n} = {n + 2}"]) for n in range(2, 8)]
    data = write_task(tmp_path / "data", samples, metric="bleu")
    result, rows = run(model="nano", data=data, out=tmp_path / "out.jsonl", max_new_tokens=12)
    expected = sacrebleu_of([row["answer"] for row in rows], [references for *_, references in samples])
    assert result["bleu"] == pytest.approx(expected, abs=1e-9) and expected > 5
    assert [row["references"] for row in rows] == [references for *_, references in samples]


# ----- generation in batches ----------------------------------------------------------------------------------------

def test_batched_answers_are_those_of_one_at_a_time_and_come_faster(sums):
    """nano's base, prompts of many lengths, answers that end early and late."""
    model, tokenizer = Transformer.from_pretrained("nano", torch.float32), Tokenizer.from_pretrained("nano")
    prompts = [tokenizer.encode(dataset.prompt_of(m, tokenizer)) for m in dataset.read_messages(sums / "test.jsonl")[:16]]
    stop = evaluate.stop_ids(tokenizer)
    alone = [model.generate([prompt], 40, stop)[0] for prompt in prompts]
    assert model.generate(prompts, 40, stop) == alone
    lengths = [len(ids) - len(prompt) for ids, prompt in zip(alone, prompts)]
    assert len(set(map(len, prompts))) > 2 and len(set(lengths)) > 4 and max(lengths) > 4 * min(lengths)

    def seconds(batch):                             # of the processor, for other programs may be at work beside
        start = time.process_time()
        for i in range(0, 16, batch):
            model.generate(prompts[i:i + batch], 16)
        return time.process_time() - start

    assert max(seconds(1) / seconds(16) for _ in range(2)) > 4


def test_answers_are_those_that_train_shows(sums, tmp_path):
    """A batch at a time, the longest prompt first, and written in the test set's order."""
    result, rows = run(model="nano", data=sums, limit=20, batch=8, max_new_tokens=30, out=tmp_path / "out.jsonl")
    model, tokenizer = Transformer.from_pretrained("nano", torch.float32), Tokenizer.from_pretrained("nano")
    conversations = dataset.read_messages(sums / "test.jsonl")[:20]
    for i, (row, messages) in enumerate(zip(rows, conversations, strict=True)):
        assert row["index"] == i and row["question"] == messages[0]["content"] and row["references"] == [messages[1]["content"]]
        assert row["answer"] == train.answer(model, tokenizer, messages, contextlib.nullcontext, 30)
        last = re.findall("[0-9]+", row["answer"])[-1:]
        assert row["correct"] == (last == [messages[1]["content"].split("\n")[-1]]), row
    right = sum(row["correct"] for row in rows)
    assert result["exact_match"] == right / 20 and 3 < right < 17 and result["n"] == 20 and result["finished"]


# ----- the test NLL, and adapters -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(checkpoint, chat, tmp_path_factory):
    """trained(method) -> the folder of a short run."""
    made = {}

    def make(method, **settings):
        if method not in made:
            made[method] = tmp_path_factory.mktemp(method)
            train.main(command(checkpoint(), chat, made[method], method=method, **settings))
        return made[method]
    return make


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_the_test_nll_is_the_one_that_train_logged(checkpoint, chat, trained, tmp_path, method):
    folder = trained(method, **({"eval_samples": 6} if method == "lora" else {}))
    argv = ["--model", folder] if method == "full" else ["--model", checkpoint(), "--adapter", folder]
    argv += ["--nf4"] if method == "qlora" else ["--limit", "6"] if method == "lora" else []
    result, rows = run(*argv, data=chat, out=tmp_path / "out.jsonl")
    first, *_, last = read_rows(folder / "log.csv")
    assert result["test_nll"] == pytest.approx(last["test_nll"], abs=1e-5) and abs(first["test_nll"] - last["test_nll"]) > 0.01
    weights = folder / ("model.safetensors" if method == "full" else "adapter_model.safetensors")
    expected = {"method": method, "trainable": last["trainable"], "train_seconds": last["seconds"], "steps": 6,
                "bytes": weights.stat().st_size, "rank": None if method == "full" else 4, "model": str(checkpoint())}
    assert {name: result[name] for name in expected} == expected
    assert rows == [] and "n" not in result                                     # no metric, so there is nothing to answer


def test_an_adapter_of_others_has_a_size_and_no_training_time(checkpoint, chat, trained, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes((trained("lora") / name).read_bytes())
    result, _ = run(model=checkpoint(), adapter=adapter, data=chat, out=tmp_path / "out.jsonl")
    logged = read_rows(trained("lora") / "log.csv")[-1]
    assert (result["trainable"], result["rank"], result["method"]) == (logged["trainable"], 4, "lora")
    assert "train_seconds" not in result and "–" in evaluate.table([result])


def test_merged_before_it_answers(checkpoint, chat, trained, tmp_path, monkeypatch):
    """No wrapper is left when the model answers, unless the base is in four bits."""
    adapter, seen = trained("lora"), []

    def note(model, *_):
        seen.append(len(lora_layers(model)))
        return 0.0

    monkeypatch.setattr(train, "evaluate", note)
    run(model=checkpoint(), adapter=adapter, data=chat, out=tmp_path / "a.jsonl")
    run("--nf4", model=checkpoint(), adapter=adapter, data=chat, out=tmp_path / "b.jsonl")
    assert seen == [0, 14]


# ----- stopping and going on ----------------------------------------------------------------------------------------

def test_a_killed_evaluation_goes_on(sums, tmp_path, monkeypatch):
    """Cut off in the middle of a line: what was whole is kept, what is missing is answered, nothing twice."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    settings = {"model": "nano", "data": sums, "limit": 24, "batch": 4, "max_new_tokens": 20}
    expected, rows = run(**settings, out=whole)
    order = sorted(rows, key=lambda row: row["seconds"])                        # any order will do: a batch is written as it comes
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in order).encode()
    out.write_bytes(data[:len(data) * 2 // 3])
    half = out.read_bytes().rpartition(b"\n")[2]
    kept = [row["index"] for row in order[:out.read_bytes().count(b"\n")]]
    unfinished = {k: expected[k] for k in ("settings", "test_nll")} | {"finished": False}
    out.with_suffix(".json").write_text(json.dumps(unfinished))
    asked, answered = [], evaluate.answered
    monkeypatch.setattr(evaluate, "answered", lambda *a: asked.extend(q.index for q in a[3]) or answered(*a))
    monkeypatch.setattr(train, "evaluate", None)                                # the test NLL is there and is not taken again
    result, again = run(**settings, out=out)
    assert half and 12 < len(kept) < 20 and sorted(asked) == sorted(set(range(24)) - set(kept))
    assert timeless(again) == timeless(rows) and result["exact_match"] == expected["exact_match"]
    before = out.read_bytes()
    assert run(**settings, out=out)[0] == result and out.read_bytes() == before  # finished: nothing is done


def test_ctrl_c_in_the_middle(sums, tmp_path):
    """A process of its own: it says that the same command goes on, and so it does."""
    out = tmp_path / "out" / "answers.jsonl"                                    # a folder that is not there yet
    argv = ["--model=nano", f"--data={sums}", "--batch=1", "--max_new_tokens=24", f"--out={out}"]
    process = subprocess.Popen([sys.executable, REPO / "evaluate.py", *argv], text=True, encoding="utf-8",
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") > 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    shown, error = process.communicate()
    there = [json.loads(line)["index"] for line in out.open()]
    assert process.returncode == 130 and "Traceback" not in error and shown == ""
    assert error.endswith(f"stopped with {len(there)} of 48 answers; the same command goes on\n") and 2 < len(there) < 48
    tokenizer = Tokenizer.from_pretrained("nano")
    lengths = [len(tokenizer.encode(dataset.prompt_of(m, tokenizer))) for m in dataset.read_messages(sums / "test.jsonl")]
    assert [lengths[i] for i in there] == sorted(lengths, reverse=True)[:len(there)]            # the longest first
    evaluate.main(argv)
    assert [json.loads(line)["index"] for line in out.open()] == list(range(48))


def test_nothing_is_mixed(sums, checkpoint, tmp_path, fails):
    """Another setting, another test file or another run in the model's folder is another evaluation."""
    out = tmp_path / "out.jsonl"
    settings = {"model": "nano", "data": sums, "limit": 2, "max_new_tokens": 3, "out": out}
    run(**settings)
    before = out.read_bytes(), out.with_suffix(".json").read_bytes()
    for name, value in {"limit": 3, "max_new_tokens": 4, "model": checkpoint(), "dtype": "bfloat16", "max_length": 99}.items():
        assert f"holds another evaluation, with another {name}" in fails(**settings | {name: value})
    assert (out.read_bytes(), out.with_suffix(".json").read_bytes()) == before
    default = evaluate.parse(["--limit=2"])
    assert evaluate.settings_of(default, Task("bleu", []), sums) != evaluate.settings_of(evaluate.parse([]), Task("bleu", []), sums)
    adapter, other = tmp_path / "adapter", tmp_path / "adapter.jsonl"
    for value in 0.0, 0.1:              # the same folder with other weights in it
        model = apply_lora(Transformer.from_pretrained(checkpoint()), 2)
        torch.nn.init.constant_(next(iter(lora_layers(model).values())).lora_B, value)
        save_adapter(model, adapter, str(checkpoint()))
        if not value:
            run(**settings | {"model": checkpoint(), "adapter": adapter, "out": other})
    assert "another adapter_sha256" in fails(**settings | {"model": checkpoint(), "adapter": adapter, "out": other})
    out.with_suffix(".json").unlink()
    assert "no out.json that says what made it" in fails(**settings)
    out.write_text('{"no": "index"}\n')
    out.with_suffix(".json").write_bytes(before[1].replace(b'"finished": true', b'"finished": false'))
    assert "is damaged" in fails(**settings)


# ----- the table ----------------------------------------------------------------------------------------------------

def test_the_table(checkpoint, chat, trained, tmp_path, capsys):
    files = []
    for name, argv in {"lora": ["--model", checkpoint(), "--adapter", trained("lora")], "full": ["--model", trained("full")],
                       "base": ["--model", checkpoint()]}.items():
        result, _ = run(*argv, data=chat, out=tmp_path / f"{name}.jsonl")
        path = tmp_path / f"{name}.json"
        result |= {"n": 400, "exact_match": 0.2, "train_seconds": 1234.5} if name == "full" else {}
        path.write_text(json.dumps(result))
        files.append(str(path))
    unfinished = tmp_path / "unfinished.json"
    unfinished.write_text(json.dumps({"settings": {}, "finished": False}))
    capsys.readouterr()
    evaluate.main(["--table", *files, str(unfinished)])
    shown, noted = capsys.readouterr()
    head, rule, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.strip().split("\n")]
    assert noted == f"{unfinished} is left out: it is not finished\n" and len(set(map(len, shown.strip().split("\n")))) == 1
    assert head == ["data", "model", "trained", "parameters", "on disk", "training", "test NLL", "exact match", "answers"]
    nll = {name: f"{json.loads(path.read_text())['test_nll']:.4f}" for name in ("base", "full", "lora")
           if (path := tmp_path / f"{name}.json")}
    n = {method: f"{read_rows(trained(method) / 'log.csv')[-1]['trainable']:,.0f}" for method in ("lora", "full")}
    size = {folder: f"{sum(f.stat().st_size for f in folder.glob('*.safetensors')) / 1e6:.1f} MB"
            for folder in (checkpoint(), trained("full"), trained("lora"))}
    base, seconds = checkpoint().name, read_rows(trained("lora") / "log.csv")[-1]["seconds"]
    assert lines == [
        [chat.name, base, "pretrained", "–", size[checkpoint()], "–", nll["base"], "", ""],
        [chat.name, base, "full", n["full"], size[trained("full")], "1,234 s", nll["full"], "20.0 ± 2.0 %", "400"],
        [chat.name, base, "LoRA, r = 4", n["lora"], size[trained("lora")], f"{seconds:,.0f} s", nll["lora"], "", ""]]
    assert len(set(nll.values())) == 3 and set(rule[3:]) == {r for r in rule[3:] if r.endswith("-:")}


# ----- what a user can get wrong ------------------------------------------------------------------------------------

@pytest.fixture
def fails(capsys):
    """fails(*argv, **settings) -> the one line on stderr, exit code 2."""
    def run(*argv, **settings):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            evaluate.main([*map(str, argv), *(f"--{name}={value}" for name, value in settings.items())])
        return one_line(e.value.code, capsys.readouterr().err)
    return run


@pytest.mark.parametrize("flags, expected", {
    "--limit=0": "--limit 0: it has to be at least 1", "--batch=0": "--batch 0", "--max_new_tokens=-1": "--max_new_tokens -1",
    "--max_length=0": "--max_length 0", "--limit=x": "--limit: invalid int", "--metric=rouge": "--metric: invalid choice: 'rouge'",
    "--out=answers.txt": "has to end in .jsonl", "--data=nowhere": "--data nowhere: no folder with train.jsonl",
    "--model=nowhere": "nowhere: no such folder", "--adapter=nowhere": "nowhere has no adapter_model.safetensors",
    "--metric=accuracy": "accuracy needs at least two labels", "--metric=accuracy --labels=one": "at least two labels",
    "--metric=accuracy --labels=1,2": "line 1: the answer", "--device=banana": "--device banana: torch cannot use",
    "--table=nowhere.json": "has no nowhere.json", "--lmiit=3": "unrecognized arguments: --lmiit=3"}.items())
def test_settings(checkpoint, chat, tmp_path, fails, flags, expected):
    defaults = [f"--{name}={value}" for name, value in {"model": checkpoint(), "data": chat, "out": tmp_path / "out.jsonl"}.items()]
    assert expected in fails(*defaults, *flags.split())
    assert list(tmp_path.iterdir()) == []


def test_a_question_that_the_context_does_not_hold(tmp_path, fails):
    data = write_task(tmp_path / "data", [("1?", "1"), ("one and " * 600, "2")], metric="exact_match")
    error = fails(model="nano", data=data, out=tmp_path / "out.jsonl")
    assert "test sample 2 takes" in error and f"has room for {1024 - 256}\n" in error


def test_any_of_several_right_labels_is_on_the_diagonal():
    row = {"tokens": 1, "seconds": 1.0, "references": ["no", "maybe"], "pred": "maybe", "likeliest": "yes", "correct": True}
    result = evaluate.measured(Task("accuracy", ["no", "maybe", "yes"]), [row])
    assert result["accuracy"] == 1 and result["confusion"] == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert result["accuracy_by_likelihood"] == 0 and result["confusion_by_likelihood"][0] == [0, 0, 1, 0]


def test_an_adapter_for_another_base(chat, trained, tmp_path, fails):
    other = tiny("qwen2", tmp_path, hidden_size=64)
    assert "the adapter is for another base" in fails(model=other, adapter=trained("lora"), data=chat, out=tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("references", [[], "one", ["", " "], [1], None])
def test_references_that_are_none(checkpoint, tmp_path, fails, references):
    data = write_task(tmp_path / "data", [("a", "b"), ("a", "b", references)], metric="bleu")
    assert 'test.jsonl, line 2: the references (else the assistant' in fails(model=checkpoint(), data=data)


def test_a_task_that_is_none(checkpoint, tmp_path, fails):
    data = write_task(tmp_path / "data", [("a", "b")], metric="rouge")
    assert "the metric 'rouge' is none of exact_match, accuracy, bleu, nor null" in fails(model=checkpoint(), data=data)
    (data / "task.json").write_text('{"metric": "accuracy", "labels": "b"}')
    assert "accuracy needs at least two labels" in fails(model=checkpoint(), data=data)
    (data / "task.json").write_text('{"metric": ')
    assert "task.json is not valid JSON" in fails(model=checkpoint(), data=data)
    (tmp_path / "some.json").write_text('{"a": 1}')
    assert "is no result of an evaluation" in fails(table=tmp_path / "some.json")


def test_out_of_memory_names_the_flag(sums, tmp_path, fails, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluate, "answered", full)
    assert "lower --batch" in fails(model="nano", data=sums, limit=2, out=tmp_path / "out.jsonl")
