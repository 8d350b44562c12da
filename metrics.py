r"""How an answer is judged: exact match, accuracy, BLEU. Plain Python.

    exact_match   maths: is the last number of the answer the reference's? (final_answer)
    accuracy      classification: is the label in the answer the right one? (find_label)
    bleu          free text: how many words and pairs of words does it share with a reference?
                  (corpus_bleu)

An evaluation judges each answer by itself (judge_answer), and then all of them (summarize_answers).
"""
import math
import re
import string
import unicodedata
from collections import Counter
from fractions import Fraction
from typing import NamedTuple


class Task(NamedTuple):
    metric: str | None          # exact_match, accuracy or bleu; None: answers are not judged
    labels: list[str]           # of accuracy, in Unicode's form NFC; else empty


# ----- exact match: the final answer of a problem -------------------------------------------------

# The digits of a number with the marks between them: 12, 1,000.50, 1.250.000, and .5 where no
# letter or digit stands before the dot.
NUMERAL = r"(?: [0-9]+ (?:[.,][0-9]+)* | (?<!\w) \.[0-9]+ )"

# A numeral with its sign and its fraction. In "He lost -$3", minus is "-$" and x is "3". In
# "1 1/2", x is 1, over is 1 and under is 2. In "3/4", x is 3 and under is 4.
NUMBER = re.compile(rf"""
    (?P<minus> (?<! [\w)\]}}%] )        # not after a word, a digit or a bracket: "10-3" ends in 3
        [-−] [$€£]? )?                  # hyphen or true minus sign, perhaps a currency
    (?P<x> {NUMERAL} )
    (?: (?: [ ] (?P<over> [0-9]+) )?    # the 1 of 1/2 after a whole number
        [ ]? / [ ]? (?P<under> [0-9]+) )?
    """, re.VERBOSE)

# What the final answer follows: GSM8K's "####", if only signs like "$" or "**" stand between it and
# a digit ("#### **$18**", but not the heading "#### Step 2"); or the end of the reasoning.
ANSWER_MARK = re.compile(r"\#\#\#\# (?= [^\w\n]* [0-9] ) | </think>", re.VERBOSE)

# \boxed{...}; inside, one level of braces: \boxed{3 \text{ miles}}
BOXED = re.compile(r"\\boxed\{ ( [^{}]* (?: \{[^{}]*\} [^{}]* )* ) \}", re.VERBOSE)

LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")         # \frac{3}{4}, \dfrac

# Three digits after one to three that do not begin with 0: 1,000 and 12.500, but not 0,125.
THOUSANDS = re.compile(r"[1-9][0-9]{0,2} [.,] [0-9]{3}", re.VERBOSE)

# Letters that tell Vietnamese from other languages. Hardly a sentence lacks them.
VIETNAMESE = re.compile("[ăđơư\u1ea0-\u1ef9]")


def final_answer(text: str, vietnamese: bool = False) -> Fraction | str:
    r"""The number that an answer ends in, as an exact fraction. Without a number, the words.

    Where it stands: after the last "####" that a number follows, as GSM8K writes it, and then it is
    the first number there; or after the last </think>, if that comes later; without either, in the
    whole text. There it is what the last \boxed{} holds, else the last number.

    What belongs to a number: digits, a minus, a fraction (3/4, 1 1/2, \frac{3}{4}). Units, currency
    signs, percent signs and trailing dots do not. Marks between digits are read like this:

        1,000.50 and 1.000,50       two kinds: the last one is the decimal mark
        1,000,000 and 1.000.000     the same one twice: thousands
        1,000                       one comma before three digits: thousands
        1.000                       one dot there: thousands in Vietnamese, else a decimal mark
        2.5 and 2,5 and 0,125       anything else: the decimal mark

    A Vietnamese 2,125 that means two and an eighth is read as 2125. So is the reference, and the
    two are equal.
    """
    text = text.replace("{,}", ",").replace(r"\,", "")              # LaTeX: 1{,}000 and 1\,000
    text = LATEX_FRACTION.sub(r"\1/\2", text)
    mark, tail = "", text
    for match in ANSWER_MARK.finditer(text):
        mark, tail = match.group(), text[match.end():]
    boxed = BOXED.findall(tail)
    if boxed:
        tail = boxed[-1]
    numbers = list(NUMBER.finditer(tail))
    if numbers:
        number = numbers[0] if mark == "####" else numbers[-1]
        try:
            return parse_number(number, vietnamese)
        except (ZeroDivisionError, ValueError):     # 3/0, or more digits than Python reads
            pass
    return " ".join(tail.split()).rstrip(".").casefold()


def parse_number(match: re.Match, vietnamese: bool) -> Fraction:
    """The value of a match of NUMBER: x, x over/under or x / under, with its sign."""
    x = parse_numeral(match["x"], vietnamese)
    if match["over"]:
        x += Fraction(int(match["over"]), int(match["under"]))
    elif match["under"]:
        x /= int(match["under"])
    return -x if match["minus"] else x


def parse_numeral(numeral: str, vietnamese: bool) -> Fraction:
    """The value of digits and marks, read by final_answer's table."""
    last_dot, last_comma = numeral.rfind("."), numeral.rfind(",")
    mark = "." if last_dot > last_comma else ","
    is_thousands = THOUSANDS.fullmatch(numeral) and (mark == "," or vietnamese)
    if is_thousands or numeral.count(mark) != 1:        # twice, or no mark at all
        whole, decimals = numeral, ""
    else:
        whole, _, decimals = numeral.partition(mark)
    digits = re.sub("[.,]", "", whole)
    return Fraction(f"{digits or 0}.{decimals or 0}")


def is_vietnamese(messages: list[dict]) -> bool:
    """Whether a dot means thousands. The conversation says it, because "1.000" alone does not."""
    texts = [unicodedata.normalize("NFC", message["content"]).lower() for message in messages]
    return any(VIETNAMESE.search(text) for text in texts)


# ----- accuracy: the label in an answer -----------------------------------------------------------

def find_label(answer: str, labels: list[str]) -> str:
    """The first of `labels` in the answer, after its </think>, in whatever case. Else "none".

    A label counts where it stands as words of its own: "negatively" holds no "negative". Letters
    and their accents may be apart in the answer, because the text is brought to the form NFC.
    """
    # Where two labels begin alike, "good" and "good enough", the longer one is tried first.
    labels = sorted(labels, key=len, reverse=True)
    choice = "|".join(f"({re.escape(label)})" for label in labels)      # a group for each label
    text = unicodedata.normalize("NFC", answer.rpartition("</think>")[2])
    found = re.search(rf"(?<!\w)(?:{choice})(?!\w)", text, re.IGNORECASE)
    return labels[found.lastindex - 1] if found else "none"


def confusion_matrix(labels: list[str], pairs: list[tuple[str, str]]) -> list[list[int]]:
    """How often each label was given for each right one. pairs: (right label, given label).

    A row for each right label. A column for each given one, and a last one for "none".
    """
    count = Counter(pairs)
    return [[count[right, given] for given in (*labels, "none")] for right in labels]


# ----- BLEU ---------------------------------------------------------------------------------------

# Replaced in this order. <skipped> marks what WMT's translators left out; "-\n" cuts a word in two.
ENTITIES = {"<skipped>": "", "-\n": "", "\n": " ",
            "&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
# Always a word of its own. The four marks that are left out depend on their neighbours.
PUNCTUATION = re.compile("([" + re.escape("".join(set(string.punctuation) - set("'-,."))) + "])")


def tokenize_13a(text: str) -> list[str]:
    """Words as WMT's mteval-v13a.pl cuts them, so that BLEU can be compared across papers.

        "It's £20-25, (or 1,000.5)."  ->  It's £20 - 25 , ( or 1,000.5 ) .

    ASCII punctuation is cut off. Dots and commas stay between digits, hyphens except after a
    digit, apostrophes always.
    """
    text = text.rstrip()
    for entity, meaning in ENTITIES.items():
        text = text.replace(entity, meaning)
    text = PUNCTUATION.sub(r" \1 ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)       # "a,b" -> "a , b"
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)       # "3. " -> "3 . "
    text = re.sub(r"([0-9])-", r"\1 - ", text)              # "20-25" -> "20 - 25"
    return text.split()


def corpus_bleu(answers: list[str], references: list[list[str]]) -> float:
    """BLEU in percent (Papineni et al., 2002, https://aclanthology.org/P02-1040).

        BLEU = BP exp(1/4 sum_n log p_n), n = 1 .. 4        BP = min(1, exp(1 - r / c))

    p_n: the share of the answers' n-grams (n words in a row) that a reference has too. "the the
    the" matches "the cat" once, not three times: an n-gram counts at most as often as in the
    reference that has it most often.
    c: the answers' length in words. r: the sum of the references' lengths, for each answer the one
    nearest to its own, the shorter of two. The brevity penalty BP is there because an answer of one
    sure word would have p_1 = 1. With c = 90 and r = 100 it is exp(-1/9) = 0.895.

    All counts are summed over the corpus first: this is not the mean of the sentences' BLEU. A
    count of 0 would make the product 0, so the first p_n of 0 becomes half a match, the next one a
    quarter (sacrebleu's default, "exp"). Each answer may have any number of references, at least 1.
    """
    matches, totals = [0] * 4, [0] * 4
    c = r = 0
    for answer, texts in zip(answers, references, strict=True):
        words = tokenize_13a(answer)
        wanted = [tokenize_13a(text) for text in texts]
        c += len(words)
        r += min(map(len, wanted), key=lambda length: (abs(length - len(words)), length))
        for n in range(4):
            given = count_ngrams(words, n + 1)
            most = Counter()
            for other in wanted:
                most |= count_ngrams(other, n + 1)          # the larger count of each
            matches[n] += (given & most).total()            # the smaller count of each
            totals[n] += given.total()
    if not any(matches) or not all(totals):
        return 0.0
    log_p = sum(math.log(m / total) for m, total in zip(smooth_zeros(matches), totals)) / 4
    brevity_penalty = min(1, math.exp(1 - r / c))
    return 100 * brevity_penalty * math.exp(log_p)


def count_ngrams(words: list[str], n: int) -> Counter:
    """a b a b, n = 2 -> {(a, b): 2, (b, a): 1}."""
    shifted = [words[i:] for i in range(n)]
    return Counter(zip(*shifted))


def smooth_zeros(matches: list[int]) -> list[float]:
    """[5, 2, 0, 0] -> [5, 2, 1/2, 1/4]."""
    smoothed, value = [], 1.0
    for m in matches:
        if m == 0:
            value /= 2
        smoothed.append(m or value)
    return smoothed


# ----- one answer, and all of them ----------------------------------------------------------------

def judge_answer(task, messages: list[dict], references: list[str], answer: str) -> dict:
    """What an answer is worth by itself: what was read in it, and whether that is correct.

    messages: its whole conversation. references: the right answers; one of them is enough. Empty
    for BLEU, which is a number of all answers together.
    """
    if task.metric == "exact_match":
        vietnamese = is_vietnamese(messages)
        found = final_answer(answer, vietnamese)
        right = [final_answer(reference, vietnamese) for reference in references]
        return {"pred": str(found), "correct": found in right}
    if task.metric == "accuracy":
        label = find_label(answer, task.labels)
        return {"pred": label, "correct": label in references}
    return {}


def summarize_answers(task, rows: list[dict]) -> dict:
    """Their number, and the metric over all answers if there is one. Shares lie between 0 and 1.

    An answer that ran into the limit of tokens counts like any other, by what it holds until then.

    rows: what evaluate.py writes for each answer.
    """
    summary = {"n": len(rows)}
    for name in ("tokens", "seconds"):
        summary[f"answer_{name}"] = round(sum(row[name] for row in rows), 3)
    if task.metric is None:
        return summary
    if task.metric == "bleu":
        answers, references = [row["answer"] for row in rows], [row["references"] for row in rows]
        return summary | {"bleu": corpus_bleu(answers, references)}
    summary[task.metric] = sum(row["correct"] for row in rows) / len(rows)
    if task.metric == "accuracy":
        likeliest = pair_labels(rows, "likeliest")
        right = sum(right == given for right, given in likeliest)
        summary |= {"accuracy_by_likelihood": right / len(rows),
                    "labels": task.labels,
                    "confusion": confusion_matrix(task.labels, pair_labels(rows, "pred")),
                    "confusion_by_likelihood": confusion_matrix(task.labels, likeliest)}
    return summary


def pair_labels(rows: list[dict], key: str) -> list[tuple[str, str]]:
    """(right label, given label) of each row. Where several are right, the one that was given."""
    pairs = []
    for row in rows:
        given = row[key]
        right = given if given in row["references"] else row["references"][0]
        pairs.append((right, given))
    return pairs
