"""Answers are read as people mean them, and BLEU is sacrebleu's."""
import random
import re
import sys
from fractions import Fraction

import pytest
from conftest import REPO
from sacrebleu import corpus_bleu as sacrebleu_corpus
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from metrics import (Task, confusion_matrix, corpus_bleu, final_answer, find_label, judge_answer,
                     summarize_answers, tokenize_13a)

sys.path.insert(0, str(REPO / "data/nano"))
import prepare as nano  # noqa: E402

EXACT_MATCH = Task("exact_match", [])


# ----- the final answer ---------------------------------------------------------------------------

# Answers of the test set, and of models that were asked its questions.
GSM8K = {
    "Janet sells 16 - 3 - 4 = 9 duck eggs a day.\n"
    "She makes 9 * 2 = $18 every day at the farmer’s market.\n#### 18": 18,
    "So the total profit is 200000-80000-50000=$70000\n#### 70,000": 70_000,
    "He gets 3*12=36 wins, 8-10=-2\n#### -10": -10,
    "The total is 2 x 725,000 = $1,450,000.\n#### 1,450,000": 1_450_000,
    "The celery seeds cost her 80 packets * $30/packet = $2400\n#### 2400": 2400,
    "25% of the rest is 0.25 * 8.5 = 2.125\n#### 2.125": Fraction(17, 8),
    # what stands around the mark and the number
    "#### $18 per day, for 7 days": 18,
    "####18": 18,
    "#### **18**": 18,
    "#### \\$18.00": 18,
    "#### 18 eggs\n\nNow 7 cats": 18,
    "#### Step 2: add\n5 + 5 = 10\nThe answer is 10": 10,
    # no mark
    "She has 3 eggs, so the answer is 1,000 dollars.": 1000,
    "Therefore, Janet makes $18.50 every day.": Fraction(37, 2),
    "That is 20% of the eggs, or 3/4 of a dozen": Fraction(3, 4),
    "He ran 1 1/2 miles.": Fraction(3, 2),
    "= 10 - 3 = 7.": 7,
    "It costs $.50": Fraction(1, 2),
    # LaTeX
    "The answer is \\boxed{18}, as 9 * 2 = 18 and 3 are left.": 18,
    "\\boxed{\\frac{3}{4}}": Fraction(3, 4),
    "\\[ \\boxed{x = 1{,}250\\text{ miles}} \\] in 3 hours": 1250,
    "$x = \\dfrac{1}{2}$": Fraction(1, 2),
    # a minus, or none
    "He lost $3, so -$3.": -3,
    "It is −3 degrees.": -3,
    "10-3": 3,
    "COVID-19": 19,
    # dots and commas
    "1.000": 1,
    "2.500": Fraction(5, 2),
    "1,000.50": Fraction(2001, 2),
    "Total: 12,500.": 12_500,
    # no number
    "the 3 of them, 1/0": "the 3 of them, 1/0",
    "I cannot tell": "i cannot tell",
    "9" * 5000: "9" * 5000,         # more digits than Python turns into an int
    "": "",
    # reasoning first
    "<think>9 * 2 = 18</think>\nJanet makes 9 * 2 = 18 dollars.": 18,
    "<think>9 * 2 = 18</think>\n": "",
}
# In the form of vi_gsm8k and nano, and said otherwise.
VIETNAMESE = {
    "<think>Mẹ của Lan 8 x 4 = 32 tuổi.\nMẹ hơn Lan 32 - 8 = 24 tuổi.</think>\n24": 24,
    "<think>Mỗi chậu hoa lãi 15 - 6 = 9 nghìn đồng.</think>\n26 nghìn đồng": 26,
    "<think>Trong 5 giờ xe đi được 50 x 5 = 250 km.</think>\nXe đi được 50 x 5 = 250 km.": 250,
    "Xe chạy được 100 x 2 = 200 km.": 200,
    "10 nghìn đồng": 10,
    "18 quả táo": 18,
    "Đáp án: 18.": 18,
    "Lan trả 1.000 đồng": 1000,
    "Tất cả là 1.250.000đ.": 1_250_000,
    "1,000 đồng": 1000,
    "1000 đồng": 1000,
    "1.000,50": Fraction(2001, 2),
    "Còn 2,5 kg gạo.": Fraction(5, 2),
    "0,125": Fraction(1, 8),
    "0.125": Fraction(1, 8),
    "70.000 đô la": 70_000,
    "giảm 20%": 20,
    "-3 độ": -3,
    "#### 18": 18,
    "Cô ấy kiếm được $18 mỗi ngày": 18,
    "3/4 cái bánh": Fraction(3, 4),
    "\\boxed{1.000}": 1000,
    "12.50": Fraction(25, 2),
}


@pytest.mark.parametrize("vietnamese, answers", [(False, GSM8K), (True, VIETNAMESE)])
def test_final_answers(vietnamese, answers):
    wrong = {}
    for text, expected in answers.items():
        found = final_answer(text, vietnamese)
        if found != expected:
            wrong[text] = found
    assert not wrong and len(answers) > 20


def test_the_final_answer_of_every_problem_of_nano():
    for problem in nano.generate_problems(300, seed=7):
        messages = nano.problem_to_sample(problem)["messages"]
        reference, answer = messages[-1]["content"], problem["answer"]
        thousands = f"Có {answer}.000 : 1.000 = {answer} quả."
        for said in (reference, problem["explanation"], thousands, f"{answer},0"):
            judged = judge_answer(EXACT_MATCH, messages, [reference], said)
            assert judged == {"pred": answer, "correct": True}, said
        assert not judge_answer(EXACT_MATCH, messages, [reference], f"{answer}1")["correct"]


@pytest.mark.parametrize("question, right", [
    ("Lan có bao nhiêu đồng?", True), ("How many dollars has Lan?", False)])
def test_the_question_says_what_a_dot_means(question, right):
    """Thousands in Vietnamese, decimals elsewhere. The language of the answer does not count."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "1000"}]

    def is_correct(answer, references=("1000",)):
        return judge_answer(EXACT_MATCH, messages, list(references), answer)["correct"]

    assert is_correct("Có 1.000 đồng") is right
    assert is_correct("1,000")
    assert is_correct("1000", references=["7", "1.000"]) is right       # any reference will do


# ----- labels -------------------------------------------------------------------------------------

SENTIMENT = ["negative", "positive"]
CAM_XUC = ["tiêu cực", "trung tính", "tích cực"]


@pytest.mark.parametrize("labels, answer, label", [
    (SENTIMENT, "positive", "positive"),
    (SENTIMENT, "Negative.", "negative"),
    (SENTIMENT, "**POSITIVE**, not negative", "positive"),
    (SENTIMENT, "", "none"),
    (SENTIMENT, "negatively put", "none"),
    (SENTIMENT, "good", "none"),
    (SENTIMENT, "<think>positive?</think>negative", "negative"),
    (SENTIMENT, "POS\u0130TIVE po\u017fitive", "positive"),     # cases that lower() does not undo
    (CAM_XUC, "Tích cực.", "tích cực"),
    (CAM_XUC, "phản hồi tiêu cực, không tích cực", "tiêu cực"),
    (CAM_XUC, "tích", "none"),
    (CAM_XUC, "ti\u0301ch cu\u031b\u0323c", "tích cực"),         # letters and accents apart
    (["good", "good enough"], "Good enough!", "good enough"),
])
def test_labels_in_answers(labels, answer, label):
    assert find_label(answer, labels) == label


def test_a_confusion_matrix_has_the_right_labels_in_its_rows():
    pairs = [("no", "yes"), ("no", "yes"), ("yes", "none"), ("yes", "yes")]
    assert confusion_matrix(["no", "yes"], pairs) == [[0, 2, 0], [0, 1, 1]]


def test_any_of_several_right_labels_is_on_the_diagonal():
    row = {"tokens": 1, "seconds": 1.0, "references": ["no", "maybe"], "pred": "maybe",
           "likeliest": "yes", "correct": True}
    summary = summarize_answers(Task("accuracy", ["no", "maybe", "yes"]), [row])
    assert summary["accuracy"] == 1
    assert summary["confusion"] == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert summary["accuracy_by_likelihood"] == 0
    assert summary["confusion_by_likelihood"][0] == [0, 0, 1, 0]


# ----- BLEU ---------------------------------------------------------------------------------------

# Of the E2E development set (CC BY-SA 4.0), numbers and marks as they are there.
E2E = [
    "Fitzbillies with a high rating as a coffee shop in the city centre provides English food with "
    "a price range £20-25. They are not kids friendly.",
    "The Punter might have low ratings...but it is riverside and offers a children Friendly great "
    "time.",
    "The Mill serves Chinese food for around £20-25. It's by the river, near The Sorrento coffee "
    "shop.",
    "The Golden Palace is a coffee shop  that also offers Chinese food  with items between £20-25.",
    "Near Café Sicilia, The Punter is a coffee shop with English food, a high customer Rating, is "
    "kids Friendly.",
    "For moderate prices, Cocum is a coffee shop that serves Chinese food; it is rated three out "
    "of five.",
    "Cotto coffee shop in Riverside, near The Portland Arms. With a Customer rating high, serves "
    "Chinese food .prices £20-25",
    "A kid friendly, 5-star rated restaurant located near The Sorrento is called The Wrestlers.",
    "Customer Rating: 5 of 5. Travellers Rest Beefeater near Raja Indian Cuisine in riverside.",
    "Cotto Chinese coffee shop , is moderate in price, with a customer Rating of 3 out of 5; "
    "located in the riverside area",
]
ODD = ["&quot;A&amp;B&lt;C&gt;", "<skipped>", "word-\nbreak", "line\nbreak", "1,000.5", "3.", ".5",
       "a,b", "20-25", "x-y", "it's", "(a)", "[b]", "{c}", "~", "`q`", "50%", "$5", "#1", "@x",
       "a/b", "c\\d", "e_f", "g^h", "i+j=k*l", "<m>", "n|o", "!", "?", "“q”", "–", "\t", "£",
       "...", "--", "5-"]


def assert_bleu_is_sacrebleu_s(answers, references):
    """sacrebleu takes one stream per reference, with None where a sample has fewer."""
    most = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    expected = sacrebleu_corpus(answers, streams).score
    assert corpus_bleu(answers, references) == pytest.approx(expected, abs=1e-9)


def garble(text, draw):
    """Words dropped, doubled and replaced, odd marks put in, perhaps cut short."""
    words = []
    for word in text.split(" "):
        words += [word] * draw.choice((0, 1, 1, 1, 1, 2))
    for _ in range(draw.randint(0, 4)):
        words.insert(draw.randint(0, len(words)), draw.choice(ODD))
    space = draw.choice((" ", " ", "  "))
    return space.join(words[:draw.choice((3, 8, 100))]) + draw.choice(("", "", " ", "\n", "-\n"))


@pytest.mark.parametrize("seed", range(60))
def test_bleu_is_sacrebleu_s(seed):
    """On one sentence, two or twenty, with one reference to four."""
    draw = random.Random(seed)
    answers, references = [], []
    for text in [draw.choice(E2E) for _ in range(draw.choice((1, 2, 20)))]:
        answers.append(draw.choice((garble(text, draw), text, "", draw.choice(ODD))))
        others = [garble(text, draw) or "x" for _ in range(draw.randint(0, 3))]
        references.append([text, *others])
    assert_bleu_is_sacrebleu_s(answers, references)


@pytest.mark.parametrize("answers, references", [
    (["the cat"], [["the cat sat on the mat"]]),                            # no four words
    ([""], [["a"]]),                                                        # empty
    (["a b c d"], [["e f g h"]]),                                           # no match
    (["a b c x d"], [["a b c y d"]]),                                       # no match of four words
    (["a b c d e f"], [["a b c d e f", "a b c"]]),
    (["the the the the"], [["the cat is on the mat", "the the a b"]]),
    (["a b c d e"], [["a b c d", "a b c d e f"]]),                          # lengths equally near
])
def test_bleu_at_its_edges(answers, references):
    assert_bleu_is_sacrebleu_s(answers, references)


@pytest.mark.parametrize("text", [*E2E, *ODD, " ".join(ODD)])
def test_the_words_of_a_sentence_are_sacrebleu_s(text):
    assert " ".join(tokenize_13a(text)) == Tokenizer13a()(text.rstrip())


def test_the_example_of_tokenize_13a():
    words, _, example = tokenize_13a.__doc__.partition("->")
    text = re.search('"(.*)"', words)[1]
    assert tokenize_13a(text) == example.strip().split("\n")[0].split()
