"""The text that the base model of nano is pretrained on: endless small conversations.

Fine-tuning teaches something only to a base that is able, but does not know the task yet: Qwen2.5
knows Vietnamese, arithmetic and how to chat before it meets GSM8K. This corpus gives a model of
3.2M parameters the same start. Three conversations in four are Vietnamese, the others English.
They hold arithmetic, small problems with short answers or worked as a schoolbook works them
(lessons.py), stories with questions about them, sentences to rewrite, translate or invent, and
some knowledge of the world.

They do not hold the task (templates.py): none of its problems, no answer that thinks, and not its
system message. Words of the task and single sentences of its explanations do occur, because a
large model has met those too.

How it is built: a *kind* of exchange is a function ask_...(rng, lang) -> (question, answer), where
lang is "vi" or "en". KINDS gives the share of each. Most kinds compute a dict of slots and fill a
row of a table with them: question | answer. Slots that belong together are computed together, so
whatever is written as "a op b = c" is true.

    python data/nano/corpus.py      # shows a few conversations
"""
import random
import re
from collections.abc import Iterator

from lessons import LESSONS
from lexicon import CONTAINERS, DAYS, FAMILY, NAMES, PLACES, THINGS, parse_tables
from phrases import (ACTS, ASIDES, CAPITALS, FACTS, GIFTS, MANNERS, OPPOSITES, PROBLEMS, ROLES,
                     SENTENCES, STATES, TALK, UNITS, WHEN, WORDS)
from prepare import choose_wordings, draw_numbers, draw_one, draw_words, fill_slots, parse_scenario
from templates import SCENARIOS


def in_language(lang: str, row: tuple) -> str:
    """The cell of a row (Vietnamese, English, ...) that is in this language."""
    return row[0] if lang == "vi" else row[1]


def join_commas(items) -> str:
    return ", ".join(map(str, items))


def fill_pair(rng, rows: list[tuple[str, str]], slots: dict) -> tuple[str, str]:
    """Draw a row and fill both of its cells -> (question, answer)."""
    question, answer = rng.choice(rows)
    return question.format(**slots), answer.format(**slots)


# ----- arithmetic -----

OPERATORS = {
    "vi": {"+": ("cộng", "Tổng"), "-": ("trừ", "Hiệu"), "x": ("nhân", "Tích"),
           "/": ("chia", "Thương")},
    "en": {"+": ("plus", "sum"), "-": ("minus", "difference"), "x": ("times", "product"),
           "/": ("divided by", "quotient")},
}
# {q} is "23 + 45" and {c} its value; {word} and {noun} come from OPERATORS. SUMS leaves it open
# whether the answer is the equation or its value; FORMS asks for one of them.
SUMS = parse_tables("""
{q} = ?
{q}
Tính {q}
Tính: {q} = ?
{q} bằng mấy?
bao nhiêu là {q}
Kết quả của {q} là gì?
Tính giúp mình {q} nhé.
lấy {a} {word} {b}
{a} {word} {b} bằng bao nhiêu?
{noun} của {a} và {b} là bao nhiêu?
""", """
{q} = ?
{q}
What is {q}?
Calculate {q}
{a} {word} {b}
How much is {a} {word} {b}?
What is the {noun} of {a} and {b}?
""")
FORMS = parse_tables(r"""
Chỉ ghi kết quả: {q} | {c}
Viết cả phép tính: {q} | {q} = {c}
Viết phép tính: {a} {word} {b} | {q} = {c}
Trả lời cả câu: {a} {word} {b} | {a} {word} {b} bằng {c}.
Dòng đầu ghi phép tính, dòng sau ghi kết quả: {q} | {q} = {c}\n{c}
""", r"""
Only the result: {q} | {c}
Write the whole equation: {q} | {q} = {c}
First line the equation, second line the result: {q} | {q} = {c}\n{c}
""")


def draw_operation(rng) -> tuple[int, str, int, int]:
    """a, op, b, c with a op b = c.

    Sums have terms up to 100, sometimes up to 999 or round. Products are from the 12 x 12 table, or
    a digit times a round number.
    """
    op = rng.choice("+-x/")
    if op in "+-":
        most, unit = rng.choice(((20, 1), (100, 1), (100, 1), (999, 1), (10, 10), (9, 100)))
        a, b = unit * rng.randint(1, most), unit * rng.randint(1, most)
        if op == "+":
            return a, op, b, a + b
        return max(a, b), op, min(a, b), abs(a - b)
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    if rng.random() < 0.4:
        a, b = rng.randint(2, 9), rng.randint(1, 9) * rng.choice((10, 10, 100))
    a, b = rng.choice(((a, b), (b, a)))
    if op == "x":
        return a, op, b, a * b
    return a * b, op, b, a


def ask_sum(rng, lang):
    """"Tính 7 x 8" -> "7 x 8 = 56" or "56"."""
    a, op, b, c = draw_operation(rng)
    word, noun = OPERATORS[lang][op]
    slots = dict(a=a, b=b, c=c, q=f"{a} {op} {b}", word=word, noun=noun)
    question = rng.choice(SUMS[lang])
    answer = rng.choice(("{c}", "{q} = {c}"))
    if rng.random() < 0.3:
        return fill_pair(rng, FORMS[lang], slots)
    return question.format(**slots), answer.format(**slots)


COLUMNS = parse_tables("""
Tính:
Ghi kết quả của từng phép tính:
Làm các phép tính sau:
""", """
Calculate:
Solve each line:
""")


def ask_column_of_sums(rng, lang):
    """Several sums at once, one per line: an answer may have lines."""
    column = [draw_operation(rng) for _ in range(rng.randint(2, 4))]
    questions = [rng.choice(COLUMNS[lang])] + [f"{a} {op} {b}" for a, op, b, _ in column]
    answers = [f"{a} {op} {b} = {c}" for a, op, b, c in column]
    return "\n".join(questions), "\n".join(answers)


TWO_OPERATIONS = parse_tables(r"""
{q} = ? | {first}, {second}
Tính {q} | {first}, {second}
Tính lần lượt {q} | {first}, {second}
Tính {q}, mỗi dòng một phép tính. | {first}\n{second}
""", r"""
{q} = ? | {first}, {second}
Calculate {q} | {first}, {second}
Calculate {q}, one equation a line. | {first}\n{second}
""")


def ask_two_operations(rng, lang):
    """"3 x 4 + 5 = ?" -> "3 x 4 = 12, 12 + 5 = 17". Left to right is also the right precedence."""
    a, op, b, c = draw_operation(rng)
    op2 = rng.choice("+-")
    d = rng.randint(0, 50 if op2 == "+" else min(c, 50))
    result = c + d if op2 == "+" else c - d
    slots = dict(q=f"{a} {op} {b} {op2} {d}", first=f"{a} {op} {b} = {c}",
                 second=f"{c} {op2} {d} = {result}")
    return fill_pair(rng, TWO_OPERATIONS[lang], slots)


GAPS = parse_tables("""
{}
Tìm số còn thiếu: {}
Điền số vào dấu hỏi: {}
""", """
{}
Find the missing number: {}
""")


def ask_missing_number(rng, lang):
    """"? + 5 = 12" -> "7" or "7 + 5 = 12"."""
    a, op, b, c = draw_operation(rng)
    hidden, gap = rng.choice(((a, f"? {op} {b} = {c}"), (b, f"{a} {op} ? = {c}")))
    question = rng.choice(GAPS[lang]).format(gap)
    return question, rng.choice((f"{hidden}", f"{a} {op} {b} = {c}"))


MULTIPLES = {
    "vi": {2: ("gấp đôi", "một nửa của"), 3: ("gấp ba lần", "một phần ba của"),
           4: ("gấp bốn lần", "một phần tư của"), 5: ("gấp năm lần", "một phần năm của"),
           10: ("gấp mười lần", "một phần mười của")},
    "en": {2: ("double", "half of"), 3: ("triple", "a third of"), 4: ("four times", "a quarter of"),
           5: ("five times", "a fifth of"), 10: ("ten times", "a tenth of")},
}
HOW_MUCH = parse_tables("""
{}
{} là bao nhiêu?
Tính {}
""", """
{}
What is {}?
How much is {}?
""")


def ask_multiple(rng, lang):
    """"gấp đôi 7" -> "14" or "7 x 2 = 14"; "một nửa của 18" -> "9" or "18 / 2 = 9"."""
    k = rng.choice((2, 2, 2, 3, 3, 4, 5, 10))
    n = rng.randint(1, 50 if k == 2 else 12)
    times, part = MULTIPLES[lang][k]
    if lang == "vi" and rng.random() < 0.5:
        times = f"gấp {k} lần"
    phrase, equation, value = rng.choice((
        (f"{times} {n}", f"{n} x {k} = {n * k}", n * k),
        (f"{part} {n * k}", f"{n * k} / {k} = {n}", n),
    ))
    return rng.choice(HOW_MUCH[lang]).format(phrase), rng.choice((equation, f"{value}"))


COMPARISONS = parse_tables("""
Số nào lớn hơn: {a} hay {b}? | {high}
{a} và {b}, số nào lớn hơn? | {high} lớn hơn {low}.
Số nào bé hơn, {a} hay {b}? | {low}
Điền dấu >, < hoặc =: {a} ... {b} | {a} {sign} {b}
So sánh {a} và {b} | {a} {sign} {b}
{high} hơn {low} bao nhiêu đơn vị? | {high} - {low} = {difference}
{low} kém {high} bao nhiêu đơn vị? | {difference}
""", """
Which is larger, {a} or {b}? | {high}
Which number is smaller: {a} or {b}? | {low}
Put >, < or =: {a} ... {b} | {a} {sign} {b}
Compare {a} and {b} | {a} {sign} {b}
""")


def ask_comparison(rng, lang):
    """Which number is larger or smaller, and the signs > < =."""
    a, b = rng.sample(range(1, rng.choice((20, 100, 1000))), 2)
    low, high = min(a, b), max(a, b)
    slots = dict(a=a, b=b, low=low, high=high, sign="<" if a < b else ">", difference=high - low)
    return fill_pair(rng, COMPARISONS[lang], slots)


ORDERINGS = parse_tables("""
Sắp xếp từ bé đến lớn: {numbers} | {up}
Sắp xếp từ lớn đến bé: {numbers} | {down}
Số lớn nhất trong các số {numbers} là số nào? | {greatest}
Số bé nhất trong các số {numbers} là số nào? | {least}
Số liền sau của {n} là số nào? | {after}
Số liền trước của {n} là số nào? | {before}
{n} là số chẵn hay số lẻ? | số {parity}
Đếm từ {n} đến {last} | {count}
Viết số tiếp theo: {series}, ... | {continued}
""", """
Sort in ascending order: {numbers} | {up}
What comes after {n}? | {after}
Which is the greatest of {numbers}? | {greatest}
Is {n} even or odd? | {parity}
Count from {n} to {last} | {count}
Continue: {series}, ... | {continued}
""")
PARITY = [("chẵn", "even"), ("lẻ", "odd")]


def ask_order(rng, lang):
    """Sorting, the greatest and the least, neighbours, even and odd, counting."""
    numbers = rng.sample(range(1, 100), rng.randint(3, 5))
    n, increment = rng.randint(1, 99), rng.choice((1, 2, 3, 5, 10))
    *series, continued = range(n, n + 5 * increment, increment)
    slots = dict(
        numbers=join_commas(numbers), up=join_commas(sorted(numbers)),
        down=join_commas(sorted(numbers, reverse=True)), greatest=max(numbers), least=min(numbers),
        n=n, after=n + 1, before=n - 1, parity=in_language(lang, PARITY[n % 2]),
        last=n + 4, count=join_commas(range(n, n + 5)),
        series=join_commas(series), continued=continued)
    return fill_pair(rng, ORDERINGS[lang], slots)


# ----- scenes: sentences to write, small problems to solve -----

EQUATION = re.compile(r"\d+ [-+x/] \d+ = \d+")


def draw_scene(rng, lang) -> dict:
    """The slots of SENTENCES and PROBLEMS, which phrases.py lists."""
    A, B = rng.sample(NAMES, 2)
    thing = rng.choice(GIFTS)
    container = rng.choice(CONTAINERS[:6])      # things are put *into* it: no shelf, no table
    most = rng.choice((12, 40, 60))
    x, y = rng.randint(2, most), rng.randint(2, most)
    k, e = rng.randint(2, 9), rng.randint(2, 12)
    relative = in_language(lang, rng.choice(FAMILY))
    place = in_language(lang, rng.choice(PLACES))
    plural = 0 if lang == "vi" else 2
    return dict(A=A, B=B, F=relative, P=place, t=thing[plural], c=container[plural],
                c1=container[1], x=x, y=y, s=x + y, k=k, e=e, p=k * e, q=e + k)


def ask_problem(rng, lang):
    """A problem of one step. One answer in three shows the equation."""
    question, short, sentence = rng.choice(PROBLEMS[lang])
    slots = draw_scene(rng, lang)
    answer = rng.choice((short, short, sentence))
    return question.format(**slots), answer.format(**slots)


PARSED_LESSONS = [parse_scenario(lesson) for lesson in LESSONS]
LESSON_REQUESTS = ["{}", "{}", "{} Hãy giải thích.", "Giải bài toán: {}", "{} Trình bày cách làm.",
                   "Em không hiểu bài này: {}"]


def ask_lesson(rng, lang):
    """A problem of lessons.py, worked line by line up to "Đáp số: ..."; one time in ten that alone.

    There are no lessons in English, so this asks for a problem of one step instead.
    """
    if lang == "en":
        return ask_problem(rng, lang)
    lesson = draw_one(rng, PARSED_LESSONS)
    slots = draw_numbers(rng, lesson) | draw_words(rng, lesson)
    explanation, result = fill_slots(lesson.explanation, slots).split(" => ")
    answer = draw_one(rng, ["Đáp số: ", "Đáp số: ", "Đáp án: ", "Kết quả: "]) + result
    if rng.random() >= 0.1:
        answer = explanation.replace(". ", ".\n") + "\n" + answer
    request = draw_one(rng, LESSON_REQUESTS)
    return request.format(fill_slots(draw_one(rng, lesson.questions), slots)), answer


TO_SENTENCE = parse_tables("""
Viết một câu có phép tính {equation} | {sentence}
Dùng phép tính {equation} để viết một câu. | {sentence}
""", """
Write a sentence with {equation} | {sentence}
""")
TO_EQUATION = parse_tables("""
Phép tính trong câu sau là gì? {sentence} | {equation}
Chép lại phép tính trong câu: {sentence} | {equation}
""", """
Which equation is in this sentence? {sentence} | {equation}
""")


def ask_sentence_of_equation(rng, lang):
    """From an equation to a sentence that holds it, and back."""
    sentence = rng.choice(PROBLEMS[lang])[2].format(**draw_scene(rng, lang))
    equation = EQUATION.search(sentence).group()
    rows = TO_SENTENCE if rng.random() < 0.65 else TO_EQUATION
    return fill_pair(rng, rows[lang], dict(sentence=sentence, equation=equation))


TWO_SENTENCES = {
    "vi": "Viết hai câu về {A}, mỗi câu một dòng.",
    "en": "Write two sentences about {A}, one a line.",
}
ABOUT_BOTH = {"vi": "{A} và {t}", "en": "{A} and {t}"}
DESCRIPTIONS = parse_tables("""
Viết một câu về {}.
Kể một câu về {}.
Cho một câu ví dụ về {}.
Đặt một câu có {}.
""", """
Write a sentence about {}.
Give an example sentence with {}.
""")


def ask_description(rng, lang):
    """"Viết một câu về Lan và quả táo." -> a sentence with both; one time in four two sentences."""
    sentence, slots = rng.choice(SENTENCES[lang]), draw_scene(rng, lang)
    answer = sentence.format(**slots)
    if rng.random() < 0.25:
        other = rng.choice(SENTENCES[lang]).format(**draw_scene(rng, lang) | {"A": slots["A"]})
        return TWO_SENTENCES[lang].format(**slots), f"{answer}\n{other}"
    about = "{A}"
    if "{t}" in sentence and rng.random() < 0.6:
        about = ABOUT_BOTH[lang]
    return rng.choice(DESCRIPTIONS[lang]).format(about.format(**slots)), answer


REWRITINGS = {
    "vi": {
        None: ["Nhắc lại câu sau: {sentence}", "Chép lại: {sentence}"],
        "A": ["Thay tên {old} bằng {new}: {sentence}", "Đổi {old} thành {new}: {sentence}"],
        "t": ['Đổi "{old}" thành "{new}": {sentence}'],
    },
    "en": {
        None: ["Repeat: {sentence}"],
        "A": ["Replace {old} with {new}: {sentence}"],
        "t": ['Replace "{old}" with "{new}": {sentence}'],
    },
}


def ask_rewriting(rng, lang):
    """Repeat a sentence, or say it with another name or another thing: only that slot changes."""
    sentence, slots = rng.choice(SENTENCES[lang]), draw_scene(rng, lang)
    name = rng.choice([name for name in NAMES if name not in (slots["A"], slots["B"])])
    changes = {None: None, "A": name, "t": draw_scene(rng, lang)["t"]}
    can_change = [None, "A", "A"]
    if "{t}" in sentence and changes["t"] != slots["t"]:
        can_change.append("t")
    slot = rng.choice(can_change)
    question = rng.choice(REWRITINGS[lang][slot]).format(
        sentence=sentence.format(**slots), old=slots.get(slot), new=changes[slot])
    if slot:
        slots[slot] = changes[slot]
    return question, sentence.format(**slots)


# ----- facts: who did what, in stories to read -----
# The slots of a fact serve both languages at once, so it is its own translation: {N} a name, {n} a
# number, {v} "mua", {past} "bought", {base} "buy", {do} "did", {t} "quả táo", {ts} "apples".
# {told} is the whole sentence.

TELL = {"vi": "{N} {v} {n} {t}.", "en": "{N} {past} {n} {ts}."}
WHEN_DID = {"vi": "{N} {v} {n} {t} khi nào?", "en": "When did {N} {base} {n} {ts}?"}
READINGS = parse_tables("""
{N} {v} bao nhiêu {t}? | {n} {t}
{N} {v} bao nhiêu {t}? | {n} {t}
{N} {v} bao nhiêu {t}? | {N} {v} {n} {t}.
Ai {v} {n} {t}? | {N}
Ai {v} {n} {t}? | {N} {v} {n} {t}.
Số {t} mà {N} {v} là bao nhiêu? | {n}
{N} {v} mấy {t}? Chỉ ghi số. | {n}
Câu nào nói về {N}? | {told}
Viết lại câu có số {n}. | {told}
""", """
How many {ts} {do} {N} {base}? | {n} {ts}
How many {ts} {do} {N} {base}? | {N} {past} {n} {ts}.
Who {past} {n} {ts}? | {N}
How many {ts} {do} {N} {base}? Only the number. | {n}
Which sentence is about {N}? | {told}
""")


def draw_fact(rng, name, timeless=False) -> dict:
    """The slots of "Lan mua 5 quả táo." = "Lan bought 5 apples."

    `when` is a row of WHEN for one act in three, else None.
    """
    is_act = rng.random() < 0.7
    v, past, base, most, things = rng.choice(ACTS if is_act else STATES)
    t, _, ts = rng.choice(things)
    when = None
    if is_act and not timeless and rng.random() < 0.35:
        when = rng.choice(WHEN)
    return dict(N=name, v=v, past=past, base=base, do="did" if is_act else "does",
                n=rng.randint(2, most), t=t, ts=ts, when=when)


def tell_fact(fact, lang) -> str:
    sentence = TELL[lang].format(**fact)
    if not fact["when"]:
        return sentence
    between = " " if lang == "vi" else ", "
    return in_language(lang, fact["when"]) + between + sentence


def draw_story(rng, lang) -> tuple[list[dict], str]:
    """Two or three facts about as many people, and their text, with or without a side remark."""
    facts = [draw_fact(rng, name) for name in rng.sample(NAMES, rng.choice((2, 2, 3)))]
    numbers = {fact["n"] for fact in facts}
    if len(numbers) < len(facts):       # a question about a number would have two answers
        return draw_story(rng, lang)
    sentences = [tell_fact(fact, lang) for fact in facts]
    if rng.random() < 0.25:
        sentences.insert(rng.choice((0, len(sentences))), rng.choice(ASIDES[lang]))
    return facts, " ".join(sentences)


def ask_about_fact(rng, lang, fact):
    """A question about one fact. Its answer can be copied from the fact's sentence."""
    if fact["when"] and rng.random() < 0.3:
        return WHEN_DID[lang].format(**fact), in_language(lang, fact["when"])
    return fill_pair(rng, READINGS[lang], fact | {"told": tell_fact(fact, lang)})


READING_LAYOUTS = parse_tables(r"""
{} {}
{}\n{}
Đọc đoạn sau: {}\nCâu hỏi: {}
""", r"""
{} {}
{}\n{}
Read: {}\nQuestion: {}
""")


def ask_reading(rng, lang):
    """A story and a question about it."""
    facts, text = draw_story(rng, lang)
    question, answer = ask_about_fact(rng, lang, rng.choice(facts))
    return rng.choice(READING_LAYOUTS[lang]).format(text, question), answer


def ask_reading_twice(rng, lang):
    """A story and two questions about it, with one answer per line."""
    facts, text = draw_story(rng, lang)
    one, two = (ask_about_fact(rng, lang, fact) for fact in rng.sample(facts, 2))
    return f"{text}\n1. {one[0]}\n2. {two[0]}", f"1. {one[1]}\n2. {two[1]}"


LISTINGS = {
    "vi": {
        "n": ["Trong đoạn trên có những số nào?", "Các số trong đoạn là gì?"],
        "N": ["Đoạn trên nói về những ai?", "Có những bạn nào trong đoạn trên?"],
    },
    "en": {"n": ["Which numbers are in the text?"], "N": ["Who is in the story?"]},
}
AND = ("và", "and")


def ask_listing(rng, lang):
    """All the numbers, or all the names, of a story."""
    facts, text = draw_story(rng, lang)
    slot = rng.choice("nN")
    *most, last = (fact[slot] for fact in facts)
    question = rng.choice(LISTINGS[lang][slot])
    return f"{text} {question}", f"{join_commas(most)} {in_language(lang, AND)} {last}"


WHO_HAS_MORE = parse_tables("""
Ai {v} nhiều {t} hơn? | {more}
Ai {v} ít {t} hơn? | {less}
""", """
Who {past} more? | {more}
Who {past} less? | {less}
""")


def ask_who_has_more(rng, lang):
    """Two people did the same thing: who more, who less?"""
    A, B = rng.sample(NAMES, 2)
    one = draw_fact(rng, A, timeless=True)
    other = one | {"N": B, "n": one["n"] + rng.choice((-1, 1)) * rng.randint(1, one["n"] - 1)}
    less, more = (A, B) if one["n"] < other["n"] else (B, A)
    question, answer = fill_pair(rng, WHO_HAS_MORE[lang], one | {"less": less, "more": more})
    question = question.replace("nghìn đồng", "tiền")       # dong are counted, but money is more
    return f"{tell_fact(one, lang)} {tell_fact(other, lang)} {question}", answer


LISTS_OF_THINGS = parse_tables("""
{things}. Đứng {ordinal} là gì? | {there}
{things}. Đứng cuối là gì? | {last}
{things}. Có mấy thứ? | {count}
Viết ngược lại danh sách: {things} | {backwards}
""", """
{things}. Which is the {ordinal}? | {there}
How many things are there: {things}? | {count}
Reverse the list: {things} | {backwards}
""")
ORDINALS = [("đầu", "first"), ("thứ hai", "second"), ("thứ ba", "third")]


def ask_place_in_list(rng, lang):
    """The first, second or last of a list of things; how many there are; the list backwards."""
    things = [in_language(lang, thing) for thing in rng.sample(THINGS, rng.randint(3, 5))]
    i = rng.randrange(3)
    slots = dict(things=join_commas(things), backwards=join_commas(things[::-1]),
                 ordinal=in_language(lang, ORDINALS[i]), there=things[i], last=things[-1],
                 count=len(things))
    return fill_pair(rng, LISTS_OF_THINGS[lang], slots)


TO_QUESTION = parse_tables("""
Đặt câu hỏi có từ "bao nhiêu" cho câu: {told} | {N} {v} bao nhiêu {t}?
Đặt câu hỏi có từ "ai" cho câu: {told} | Ai {v} {n} {t}?
Đổi thành câu hỏi: {told} | {N} {v} bao nhiêu {t}?
""", """
Ask "how many" about: {told} | How many {ts} {do} {N} {base}?
Ask "who" about: {told} | Who {past} {n} {ts}?
Turn into a question: {told} | How many {ts} {do} {N} {base}?
""")


def ask_question_of_fact(rng, lang):
    """Turn a statement into a question."""
    fact = draw_fact(rng, rng.choice(NAMES), timeless=True)
    return fill_pair(rng, TO_QUESTION[lang], fact | {"told": tell_fact(fact, lang)})


BLANKS = parse_tables(r"""
{} Điền vào chỗ trống: {}
Dựa vào đoạn văn, điền vào chỗ trống.\n{}\n{}
""", """
{} Fill in the blank: {}
""")


def ask_blank(rng, lang):
    """Fill the blank of a sentence from what was said before."""
    facts, text = draw_story(rng, lang)
    fact = rng.choice(facts)
    blank = {rng.choice("Nn"): "___"}
    sentence = TELL[lang].format(**fact | blank)
    return rng.choice(BLANKS[lang]).format(text, sentence), TELL[lang].format(**fact)


JOININGS = parse_tables("""
Nối hai câu thành một: {first}. {second}. | {first} còn {second}.
Viết thành một câu: {first}. {second}. | {first} còn {second}.
""", """
Join the sentences: {first}. {second}. | {first} and {second}.
""")


def ask_joining(rng, lang):
    """Two sentences become one."""
    facts = [draw_fact(rng, name, timeless=True) for name in rng.sample(NAMES, 2)]
    first, second = (tell_fact(fact, lang).rstrip(".") for fact in facts)
    return fill_pair(rng, JOININGS[lang], dict(first=first, second=second))


# ----- languages, numbers and the world -----

TRANSLATIONS = parse_tables("""
Dịch sang tiếng Anh: {vi} | {en}
"{vi}" tiếng Anh là gì? | {en}
Dịch sang tiếng Việt: {en} | {vi}
"{en}" nghĩa là gì? | {vi}
""", """
Translate into Vietnamese: {en} | {vi}
How do you say "{en}" in Vietnamese? | {vi}
Translate into English: {vi} | {en}
""")


def ask_translation(rng, lang):
    """Words, counted things and whole facts, into the other language and back."""
    fact, n = draw_fact(rng, rng.choice(NAMES)), rng.randint(2, 99)
    t, singular, plural = rng.choice(THINGS)
    vi, en = rng.choice((
        rng.choice(WORDS),
        (t, singular),
        (f"{n} {t}", f"{n} {plural}"),
        (tell_fact(fact, "vi"), tell_fact(fact, "en")),
    ))
    if "giấy màu" in vi:        # its English, "sheet of paper", leaves the colour out
        return ask_translation(rng, lang)
    return fill_pair(rng, TRANSLATIONS[lang], dict(vi=vi, en=en))


DIGITS = "không một hai ba bốn năm sáu bảy tám chín".split()
TO_19 = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell_vi(n: int) -> str:
    """105 is "một trăm linh năm", 115 "một trăm mười lăm", 121 "một trăm hai mươi mốt"."""
    if n < 10:
        return DIGITS[n]
    hundreds, tens, unit = n // 100, n // 10 % 10, n % 10
    words = [DIGITS[hundreds], "trăm"] if hundreds else []
    if tens > 1:
        words += [DIGITS[tens], "mươi"]
    elif tens == 1:
        words.append("mười")
    elif unit:
        words.append("linh")
    if unit == 1 and tens > 1:
        words.append("mốt")
    elif unit == 5 and tens:
        words.append("lăm")
    elif unit:
        words.append(DIGITS[unit])
    return " ".join(words)


def spell_en(n: int) -> str:
    """121 is "one hundred and twenty-one"."""
    if n < 20:
        return TO_19[n]
    if n < 100:
        tens, unit = divmod(n, 10)
        return TENS[tens - 2] + (f"-{TO_19[unit]}" if unit else "")
    hundreds, rest = divmod(n, 100)
    return f"{TO_19[hundreds]} hundred" + (f" and {spell_en(rest)}" if rest else "")


NUMBER_WORDS = parse_tables("""
Viết số {n} bằng chữ | {words}
Đọc số {n} | {words}
Viết bằng số: {words} | {n}
{words} là số nào? | {n}
""", """
Write {n} in words | {words}
Write as a number: {words} | {n}
""")


def ask_number_words(rng, lang):
    n = rng.randint(0, rng.choice((20, 99, 999)))
    words = spell_vi(n) if lang == "vi" else spell_en(n)
    return fill_pair(rng, NUMBER_WORDS[lang], dict(n=n, words=words))


def ask_units(rng, lang):
    """"3 tuần có bao nhiêu ngày?" -> "21 ngày" or "3 x 7 = 21 ngày"."""
    size, (whole_vi, whole, wholes), parts = rng.choice(UNITS)
    k = rng.choice((1, rng.randint(2, 9)))
    part = in_language(lang, parts)
    if lang == "vi":
        question = f"{k} {whole_vi} có bao nhiêu {part}?"
    else:
        question = f"How many {part} are there in {k} {whole if k == 1 else wholes}?"
    if k > 1 and rng.random() < 0.5:
        return question, f"{k} x {size} = {k * size} {part}"
    return question, f"{k * size} {part}"


CALENDAR = parse_tables("""
Hôm nay là {day}. Ngày mai là thứ mấy? | {after}
Hôm nay là {day}. Hôm qua là thứ mấy? | {before}
Sau {day} là ngày nào? | {after}
Bây giờ là {hour} giờ. {later} giờ nữa là mấy giờ? | {then} giờ
""", """
Today is {day}. What day is tomorrow? | {after}
Which day comes before {day}? | {before}
It is {hour} o'clock. What time will it be in {later} {hours}? | {then} o'clock
""")


def ask_calendar(rng, lang):
    """Days of the week and hours of the day."""
    i, hour, later = rng.randrange(7), rng.randint(1, 8), rng.randint(1, 3)
    before, day, after = (in_language(lang, DAYS[j % 7]) for j in (i - 1, i, i + 1))
    slots = dict(before=before, day=day, after=after, hour=hour, later=later, then=hour + later,
                 hours="hour" if later == 1 else "hours")
    return fill_pair(rng, CALENDAR[lang], slots)


KNOWLEDGE = parse_tables("""
Thủ đô của {country} là gì? | {city}
Trái nghĩa của "{one}" là gì? | {other}
""", """
What is the capital of {country}? | {city}
What is the opposite of "{one}"? | {other}
""")


def ask_knowledge(rng, lang):
    """Simple facts, capitals, opposites."""
    column = slice(0, 2) if lang == "vi" else slice(2, 4)
    country, city = rng.choice(CAPITALS)[column]
    one, other = rng.choice(OPPOSITES)[column]
    one, other = rng.choice(((one, other), (other, one)))
    rows = [*KNOWLEDGE[lang], rng.choice(FACTS[lang]), rng.choice(FACTS[lang])]
    return fill_pair(rng, rows, dict(country=country, city=city, one=one, other=other))


def ask_small_talk(rng, lang):
    return rng.choice(TALK[lang])


# ----- words and sentences of the task -----

def list_word_pairs(scenarios: str) -> list[str]:
    """Every pair of neighbouring words in the task's scenarios, sorted: its vocabulary alone.

    Slots, punctuation, digits and line breaks separate words. So a new line break in templates.py
    between two words can remove a pair, and change the corpus.
    """
    text = re.sub(r"\{[^:}]*\}", ",", scenarios)            # {fruit}, {a + b = c}
    text = re.sub(r"[{(|)]|\w*:|[^\w ]|\d", ",", text)      # {box:túi|giỏ} leaves túi, giỏ
    pairs = set()
    for phrase in text.split(","):
        words = phrase.split()
        pairs |= {f"{first} {second}" for first, second in zip(words, words[1:])}
    return sorted(pairs)


WORD_PAIRS = list_word_pairs("\n".join(SCENARIOS))
DICTATIONS = parse_tables("""
Chép lại: {items} | {items}
Chép lại theo thứ tự ngược lại: {items} | {backwards}
Cụm từ nào đứng sau "{item}"? {items} | {after}
""", """
Copy: {items} | {items}
Copy in reverse order: {items} | {backwards}
What comes after "{item}"? {items} | {after}
""")


def ask_dictation(rng, lang):
    """Words of the task, out of order, to be copied.

    At times two of them stand in <think>, so that the base has met these tokens as words. What
    belongs between them is left to fine-tuning.
    """
    items = rng.sample(WORD_PAIRS, rng.randint(2, 6))
    if rng.random() < 0.3:
        items[0] = f"<think>{items[0]}</think>"
    i = rng.randrange(len(items) - 1)
    slots = dict(items=join_commas(items), backwards=join_commas(items[::-1]), item=items[i],
                 after=items[i + 1])
    return fill_pair(rng, DICTATIONS[lang], slots)


PARSED_SCENARIOS = [parse_scenario(scenario) for scenario in SCENARIOS]
STEPS = parse_tables("""
Chép lại: {sentence} | {sentence}
Điền kết quả: {start} ? | {sentence}
Tính tiếp: {start} | {sentence}
Viết một câu có phép tính {equation} | {sentence}
""", """
Copy: {sentence} | {sentence}
Complete: {start} ? | {sentence}
Continue: {start} | {sentence}
Write a sentence with {equation} | {sentence}
""")


def ask_step(rng, lang):
    """One sentence of a worked task: to be copied, completed, or written from its equation."""
    scenario = draw_one(rng, PARSED_SCENARIOS)
    explanation = choose_wordings(rng, scenario.explanation)
    slots = draw_numbers(rng, scenario) | draw_words(rng, scenario)
    sentences = fill_slots(explanation, slots).rstrip(".").split(". ")
    sentence = draw_one(rng, sentences) + "."
    equation = EQUATION.search(sentence).group()
    start = sentence[:sentence.index("=") + 1]
    return fill_pair(rng, STEPS[lang], dict(sentence=sentence, equation=equation, start=start))


# ----- conversations -----

KINDS = {       # the share of each kind, in percent
    # arithmetic, 25
    ask_sum: 14,
    ask_column_of_sums: 2,
    ask_two_operations: 3,
    ask_missing_number: 2,
    ask_multiple: 2,
    ask_comparison: 1,
    ask_order: 1,
    # problems, 26
    ask_problem: 8,
    ask_lesson: 18,
    # reading, 14
    ask_reading: 8,
    ask_reading_twice: 2,
    ask_listing: 1,
    ask_who_has_more: 2,
    ask_place_in_list: 1,
    # writing, 25
    ask_rewriting: 4,
    ask_description: 5,
    ask_sentence_of_equation: 2,
    ask_question_of_fact: 1,
    ask_blank: 1,
    ask_joining: 1,
    ask_dictation: 3,
    ask_step: 8,
    # languages and the world, 10
    ask_translation: 4,
    ask_number_words: 2,
    ask_units: 1,
    ask_calendar: 1,
    ask_knowledge: 1,
    ask_small_talk: 1,
}


def draw_system_message(rng, lang) -> str:
    """A role and up to three manners."""
    role = rng.choice(ROLES[lang])
    manners = rng.sample(MANNERS[lang], rng.choice((0, 1, 1, 2, 2, 3)))
    return " ".join([role, *manners])


def conversations(seed: int) -> Iterator[list[dict]]:
    """Endless conversations, the same for the same seed.

    Six in ten begin with a system message. One to five exchanges of mixed kinds follow.
    """
    rng = random.Random(seed)
    kinds, shares = list(KINDS), list(KINDS.values())
    while True:
        messages = []
        lang = "vi" if rng.random() < 0.75 else "en"
        if rng.random() < 0.6:
            messages.append({"role": "system", "content": draw_system_message(rng, lang)})
        for ask in rng.choices(kinds, shares, k=rng.randint(1, 5)):
            question, answer = ask(rng, lang)
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        yield messages


if __name__ == "__main__":
    stream = conversations(seed=0)
    for _ in range(5):
        for message in next(stream):
            print(f"{message['role']:>9}: {message['content']}")
        print()
