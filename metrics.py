"""How an answer is judged: exact match, labels, BLEU. Plain Python."""
import functools
import math
import operator
import re
import string
import unicodedata
from collections import Counter
from fractions import Fraction

# ----- exact match: the final answer of a problem -------------------------------------------------------------------

NUMERAL = r"(?:[0-9]+(?:[.,][0-9]+)*|(?<!\w)\.[0-9]+)"
NUMBER = re.compile(rf"(?P<minus>(?<![\w)\]}}%])[-−][$€£]?)?(?P<x>{NUMERAL})(?:(?: (?P<over>[0-9]+))? ?/ ?(?P<under>[0-9]+))?")
VIETNAMESE = re.compile("[ăđơư\u1ea0-\u1ef9]")        # letters that tell it from other languages; hardly a sentence lacks them


def final_answer(text: str, vietnamese: bool = False) -> Fraction | str:
    r"""The number that an answer ends in, as a number; where there is none, the words instead.

    Where it stands: behind the last "####" that a number follows, as GSM8K writes it, and then it is the first number there; or
    behind the last </think>, if that comes later; without either, anywhere. There it is what the last \boxed{} holds, else the
    last number.

    What is a number: digits, with a minus that stands behind no word or digit ("10-3" ends in 3), a fraction (3/4, 1 1/2,
    \frac{3}{4}); units, currency signs, percent signs, trailing dots are not part of it. Marks in it are read so:

        1,000.50 and 1.000,50       of two kinds, the last is the decimal mark
        1,000,000 and 1.000.000     twice the same: thousands
        1,000                       a comma before exactly three digits, after one to three that are no 0: thousands
        1.000                       a dot there: thousands in Vietnamese, a decimal mark elsewhere
        2.5 and 2,5 and 0,125       any other: the decimal mark

    A Vietnamese 2,125 that means two and an eighth is read as 2125; so is the one in the reference, and they are equal.
    """
    text = re.sub(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}", r"\1/\2", text.replace("{,}", ",").replace(r"\,", ""))
    ends = list(re.finditer(r"####(?=[^\w\n]*[0-9])|</think>", text))
    tail = text[ends[-1].end():] if ends else text
    if boxed := re.findall(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", tail):
        tail = boxed[-1]
    first = ends and ends[-1].group() == "####"
    try:
        return to_number(list(NUMBER.finditer(tail))[0 if first else -1], vietnamese)
    except (IndexError, ZeroDivisionError, ValueError):     # no number; 3/0; more digits than Python reads
        return " ".join(tail.split()).rstrip(".").casefold()


def to_number(match: re.Match, vietnamese: bool) -> Fraction:
    x = decimal(match["x"], vietnamese)
    if match["over"]:
        x += Fraction(int(match["over"]), int(match["under"]))
    elif match["under"]:
        x /= int(match["under"])
    return -x if match["minus"] else x


def decimal(numeral: str, vietnamese: bool) -> Fraction:
    """A numeral without a sign, its marks read as final_answer says."""
    mark = max(".,", key=numeral.rfind)             # the last one
    grouped = re.fullmatch(r"[1-9][0-9]{0,2}[.,][0-9]{3}", numeral) and (mark == "," or vietnamese)
    whole, _, digits = (numeral, "", "") if grouped or numeral.count(mark) > 1 else numeral.partition(mark)
    return Fraction(f"{re.sub('[.,]', '', whole) or 0}.{digits or 0}")


# ----- accuracy: labels, written and weighed ------------------------------------------------------------------------

def label_in(answer: str, labels: list[str]) -> str:
    """The first of `labels` that stands in the answer (behind its </think>) as words of its own, in whatever case; else "none"."""
    labels = sorted(labels, key=len, reverse=True)          # of two that begin alike the longer one is tried first
    choice = "|".join(f"({re.escape(label)})" for label in labels)
    text = unicodedata.normalize("NFC", answer.rpartition("</think>")[2])
    found = re.search(rf"(?<!\w)(?:{choice})(?!\w)", text, re.IGNORECASE)
    return labels[found.lastindex - 1] if found else "none"


def confusion(labels: list[str], pairs: list[tuple[str, str]]) -> list[list[int]]:
    """A row for each label that is right, a column for each that was said, and one for "none"."""
    count = Counter(pairs)
    return [[count[right, said] for said in (*labels, "none")] for right in labels]


# ----- BLEU ---------------------------------------------------------------------------------------------------------

PUNCTUATION = re.compile("([" + re.escape("".join(set(string.punctuation) - set("'-,."))) + "])")
ENTITIES = {"<skipped>": "", "-\n": "", "\n": " ", "&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}


def tokenize_13a(text: str) -> list[str]:
    """Words as WMT's mteval-v13a.pl cuts them: apart from ASCII punctuation, but for . and , between digits, ', and most -."""
    text = text.rstrip()
    for entity, meaning in ENTITIES.items():
        text = text.replace(entity, meaning)
    text = PUNCTUATION.sub(r" \1 ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])-", r"\1 - ", text).split()


def corpus_bleu(answers: list[str], references: list[list[str]]) -> float:
    """BLEU in percent (Papineni et al., 2002, https://aclanthology.org/P02-1040), each answer having any number of references.

        BLEU = BP exp(1/4 sum_n log p_n), n = 1 .. 4        BP = min(1, exp(1 - r / c))

    p_n is the share of the answers' n-grams that are in a reference, each counted as often as the one reference that has it most
    often; c is the answers' length in words, r the sum of the lengths of the references that are nearest to theirs, the shorter
    of two. A p_n of 0 becomes 1/2 of a match, the next one 1/4 (the smoothing "exp", as of sacrebleu's default settings).
    """
    matches, totals, c, r = [0] * 4, [0] * 4, 0, 0
    for answer, texts in zip(answers, references, strict=True):
        words, others = tokenize_13a(answer), [tokenize_13a(text) for text in texts]
        c += len(words)
        r += min(map(len, others), key=lambda length: (abs(length - len(words)), length))
        for n in range(4):
            grams, most = ngrams(words, n + 1), functools.reduce(operator.or_, (ngrams(other, n + 1) for other in others))
            matches[n] += (grams & most).total()
            totals[n] += grams.total()
    if not any(matches) or not all(totals):
        return 0.0
    matches = [m or 0.5 ** matches[:n + 1].count(0) for n, m in enumerate(matches)]
    return 100 * min(1, math.exp(1 - r / c)) * math.exp(sum(math.log(m / total) for m, total in zip(matches, totals)) / 4)


def ngrams(words: list[str], n: int) -> Counter:
    return Counter(zip(*(words[i:] for i in range(n))))
