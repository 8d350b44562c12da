"""The text that nano's base model is pretrained on: endless small conversations, drawn from templates.

A fine-tuning run shows something only on a base that is able, but not yet at the task: Qwen2.5 knows Vietnamese, arithmetic
and how to chat before it meets GSM8K. This corpus gives a model of 3.2M parameters the same start. It holds the chat format
in both languages (three conversations of four are Vietnamese), arithmetic, little problems answered shortly or worked as a
schoolbook works them (lessons.py), stories to copy names, things and numbers from, sentences to rewrite, to translate or to
invent, and some knowledge of the world. It does not hold the task (prepare.py): none of its problems, no answer that thinks,
no system prompt of the task's; the task's words and single sentences it has met, as a large model has.

How it is built: a *kind* of exchange is a function (rng, lang) -> (question, answer), lang "vi" or "en"; KINDS gives each
its share. Most kinds draw a dict of slots, a `scene` or a `fact`, and fill a template with it; the templates stand in
phrases.py. What is written as "a op b = c" is true everywhere, since the slots are computed together: x + y = s, so s - y = x.

    python data/nano/corpus.py     # shows a few conversations
"""
import random
import re
from collections.abc import Iterator

from lessons import LESSONS
from lexicon import CONTAINERS, DAYS, FAMILY, NAMES, PLACES, THINGS
from phrases import (ACTS, ASIDES, CAPITALS, DAYS_EN, FACTS, FAMILY_EN, GIFTS, MANNERS, OPPOSITES, PLACES_EN, PROBLEMS, ROLES,
                     SENTENCES, STATES, TALK, UNITS, WHEN, WORDS)
from prepare import draw_numbers, draw_words, fill, parse, pick
from templates import SCENARIOS


def comma(items):
    return ", ".join(map(str, items))


# ----- arithmetic -----

OPERATORS = {"vi": {"+": ("cộng", "Tổng"), "-": ("trừ", "Hiệu"), "x": ("nhân", "Tích"), "/": ("chia", "Thương")},
             "en": {"+": ("plus", "sum"), "-": ("minus", "difference"), "x": ("times", "product"),
                    "/": ("divided by", "quotient")}}
# {q} is "23 + 45", {c} its value, {word} and {noun} come from OPERATORS. A question of SUMS leaves the form of the answer open,
# the equation or its value; one of FORMS asks for it.
SUMS = {"vi": ["{q} = ?", "{q}", "Tính {q}", "Tính: {q} = ?", "{q} bằng mấy?", "bao nhiêu là {q}", "Kết quả của {q} là gì?",
               "Tính giúp mình {q} nhé.", "lấy {a} {word} {b}", "{a} {word} {b} bằng bao nhiêu?",
               "{noun} của {a} và {b} là bao nhiêu?"],
        "en": ["{q} = ?", "{q}", "What is {q}?", "Calculate {q}", "{a} {word} {b}", "How much is {a} {word} {b}?",
               "What is the {noun} of {a} and {b}?"]}
FORMS = {"vi": [("Chỉ ghi kết quả: {q}", "{c}"), ("Viết cả phép tính: {q}", "{q} = {c}"),
                ("Viết phép tính: {a} {word} {b}", "{q} = {c}"), ("Trả lời cả câu: {a} {word} {b}", "{a} {word} {b} bằng {c}."),
                ("Dòng đầu ghi phép tính, dòng sau ghi kết quả: {q}", "{q} = {c}\n{c}")],
         "en": [("Only the result: {q}", "{c}"), ("Write the whole equation: {q}", "{q} = {c}"),
                ("First line the equation, second line the result: {q}", "{q} = {c}\n{c}")]}


def operation(rng):
    """a, op, b, c with a op b = c: terms up to 100, some to 999 or round; the 12 x 12 table, and digits times round numbers."""
    op = rng.choice("+-x/")
    if op in "+-":
        most, step = rng.choice(((20, 1), (100, 1), (100, 1), (999, 1), (10, 10), (9, 100)))
        a, b = step * rng.randint(1, most), step * rng.randint(1, most)
        return (a, op, b, a + b) if op == "+" else (max(a, b), op, min(a, b), abs(a - b))
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    if rng.random() < 0.4:
        a, b = rng.randint(2, 9), rng.randint(1, 9) * rng.choice((10, 10, 100))
    a, b = rng.choice(((a, b), (b, a)))
    return (a, op, b, a * b) if op == "x" else (a * b, op, b, a)


def sums(rng, lang):
    """"Tính 7 x 8" -> "7 x 8 = 56" or "56"."""
    a, op, b, c = operation(rng)
    word, noun = OPERATORS[lang][op]
    slots = dict(a=a, b=b, c=c, q=f"{a} {op} {b}", word=word, noun=noun)
    question, answer = rng.choice(SUMS[lang]), rng.choice(("{c}", "{q} = {c}"))
    if rng.random() < 0.3:
        question, answer = rng.choice(FORMS[lang])
    return question.format(**slots), answer.format(**slots)


def column_of_sums(rng, lang):
    """Several sums at once, a line each: an answer may have lines."""
    column = [operation(rng) for _ in range(rng.randint(2, 4))]
    ask = {"vi": ["Tính:", "Ghi kết quả của từng phép tính:", "Làm các phép tính sau:"],
           "en": ["Calculate:", "Solve each line:"]}
    return ("\n".join([rng.choice(ask[lang]), *(f"{a} {op} {b}" for a, op, b, _ in column)]),
            "\n".join(f"{a} {op} {b} = {c}" for a, op, b, c in column))


def two_operations(rng, lang):
    """"3 x 4 + 5 = ?" -> "3 x 4 = 12, 12 + 5 = 17": from left to right, which is also the order of precedence here."""
    a, op, b, c = operation(rng)
    more = rng.choice("+-")
    d = rng.randint(0, 50 if more == "+" else min(c, 50))
    ask = {"vi": [("{} = ?", ", "), ("Tính {}", ", "), ("Tính lần lượt {}", ", "), ("Tính {}, mỗi dòng một phép tính.", "\n")],
           "en": [("{} = ?", ", "), ("Calculate {}", ", "), ("Calculate {}, one equation a line.", "\n")]}
    question, between = rng.choice(ask[lang])
    return (question.format(f"{a} {op} {b} {more} {d}"),
            f"{a} {op} {b} = {c}{between}{c} {more} {d} = {c + d if more == '+' else c - d}")


def missing_number(rng, lang):
    """"? + 5 = 12" -> "7" or "7 + 5 = 12"."""
    a, op, b, c = operation(rng)
    hidden, gap = rng.choice(((a, f"? {op} {b} = {c}"), (b, f"{a} {op} ? = {c}")))
    ask = {"vi": ["{}", "Tìm số còn thiếu: {}", "Điền số vào dấu hỏi: {}"], "en": ["{}", "Find the missing number: {}"]}
    return rng.choice(ask[lang]).format(gap), rng.choice((f"{hidden}", f"{a} {op} {b} = {c}"))


MULTIPLES = {"vi": {2: ("gấp đôi", "một nửa"), 3: ("gấp ba lần", "một phần ba"), 4: ("gấp bốn lần", "một phần tư"),
                    5: ("gấp năm lần", "một phần năm"), 10: ("gấp mười lần", "một phần mười")},
             "en": {2: ("double", "half"), 3: ("triple", "a third"), 4: ("four times", "a quarter"),
                    5: ("five times", "a fifth"), 10: ("ten times", "a tenth")}}


def multiples(rng, lang):
    """"gấp đôi 7" -> "14" or "7 x 2 = 14"; "một nửa của 18" -> "9" or "18 / 2 = 9"."""
    k = rng.choice((2, 2, 2, 3, 3, 4, 5, 10))
    n = rng.randint(1, 50 if k == 2 else 12)
    times, part = MULTIPLES[lang][k]
    if lang == "vi" and rng.random() < 0.5:
        times = f"gấp {k} lần"
    phrase, equation, value = rng.choice(((f"{times} {n}", f"{n} x {k} = {n * k}", n * k),
                                          (f"{part} {'của' if lang == 'vi' else 'of'} {n * k}", f"{n * k} / {k} = {n}", n)))
    ask = {"vi": ["{}", "{} là bao nhiêu?", "Tính {}"], "en": ["{}", "What is {}?", "How much is {}?"]}
    return rng.choice(ask[lang]).format(phrase), rng.choice((equation, f"{value}"))


def comparison(rng, lang):
    """Which number is larger or smaller, and the signs > < =."""
    a, b = rng.sample(range(1, rng.choice((20, 100, 1000))), 2)
    lo, hi, sign = min(a, b), max(a, b), "<" if a < b else ">"
    asks = {"vi": [(f"Số nào lớn hơn: {a} hay {b}?", f"{hi}"), (f"{a} và {b}, số nào lớn hơn?", f"{hi} lớn hơn {lo}."),
                   (f"Số nào bé hơn, {a} hay {b}?", f"{lo}"), (f"Điền dấu >, < hoặc =: {a} ... {b}", f"{a} {sign} {b}"),
                   (f"So sánh {a} và {b}", f"{a} {sign} {b}"),
                   (f"{hi} hơn {lo} bao nhiêu đơn vị?", f"{hi} - {lo} = {hi - lo}"),
                   (f"{lo} kém {hi} bao nhiêu đơn vị?", f"{hi - lo}")],
            "en": [(f"Which is larger, {a} or {b}?", f"{hi}"), (f"Which number is smaller: {a} or {b}?", f"{lo}"),
                   (f"Put >, < or =: {a} ... {b}", f"{a} {sign} {b}"), (f"Compare {a} and {b}", f"{a} {sign} {b}")]}
    return rng.choice(asks[lang])


def ordering(rng, lang):
    """Sorting, the greatest and the least, neighbours, even and odd, counting."""
    numbers = rng.sample(range(1, 100), rng.randint(3, 5))
    n, step = rng.randint(1, 99), rng.choice((1, 2, 3, 5, 10))
    *count, after = range(n, n + 5 * step, step)
    asks = {"vi": [(f"Sắp xếp từ bé đến lớn: {comma(numbers)}", comma(sorted(numbers))),
                   (f"Sắp xếp từ lớn đến bé: {comma(numbers)}", comma(sorted(numbers, reverse=True))),
                   (f"Số lớn nhất trong các số {comma(numbers)} là số nào?", f"{max(numbers)}"),
                   (f"Số bé nhất trong các số {comma(numbers)} là số nào?", f"{min(numbers)}"),
                   (f"Số liền sau của {n} là số nào?", f"{n + 1}"), (f"Số liền trước của {n} là số nào?", f"{n - 1}"),
                   (f"{n} là số chẵn hay số lẻ?", "số lẻ" if n % 2 else "số chẵn"),
                   (f"Đếm từ {n} đến {n + 4}", comma(range(n, n + 5))),
                   (f"Viết số tiếp theo: {comma(count)}, ...", f"{after}")],
            "en": [(f"Sort in ascending order: {comma(numbers)}", comma(sorted(numbers))),
                   (f"What comes after {n}?", f"{n + 1}"), (f"Which is the greatest of {comma(numbers)}?", f"{max(numbers)}"),
                   (f"Is {n} even or odd?", "odd" if n % 2 else "even"),
                   (f"Count from {n} to {n + 4}", comma(range(n, n + 5))), (f"Continue: {comma(count)}, ...", f"{after}")]}
    return rng.choice(asks[lang])


# ----- scenes: sentences to write, little problems to solve -----

EQUATION = re.compile(r"\d+ [-+x/] \d+ = \d+")


def scene(rng, lang):
    """The slots of SENTENCES and PROBLEMS, as phrases.py explains them."""
    en = lang == "en"
    A, B = rng.sample(NAMES, 2)
    thing, (c, c1, cs) = rng.choice(GIFTS), rng.choice(CONTAINERS[:6])  # not the last two, shelf and table: one puts into
    most = rng.choice((12, 40, 60))
    x, y = rng.randint(2, most), rng.randint(2, most)
    k, e = rng.randint(2, 9), rng.randint(2, 12)
    return dict(A=A, B=B, F=rng.choice(FAMILY_EN if en else FAMILY), P=rng.choice(PLACES_EN if en else PLACES),
                t=thing[2 if en else 0], c=cs if en else c, c1=c1, x=x, y=y, s=x + y, k=k, e=e, p=k * e, q=e + k)


def problem(rng, lang):
    """A problem of one step, answered by the thing or, one time in three, by a sentence with the equation."""
    question, short, sentence = rng.choice(PROBLEMS[lang])
    slots = scene(rng, lang)
    return question.format(**slots), rng.choice((short, short, sentence)).format(**slots)


PARSED = [parse(lesson) for lesson in LESSONS]
ASK_LESSON = ["{}", "{}", "{} Hãy giải thích.", "Giải bài toán: {}", "{} Trình bày cách làm.", "Em không hiểu bài này: {}"]


def lesson(rng, lang):
    """A problem of lessons.py, worked in lines that end in "Đáp số: ..."; one time in ten only that. English has none."""
    if lang == "en":
        return problem(rng, lang)
    questions, worked, words, numbers, steps = pick(rng, PARSED)
    slots = draw_numbers(numbers, steps, rng) | draw_words(words, rng)
    sentences, result = fill(worked, slots).split(" => ")
    closing = pick(rng, ["Đáp số: ", "Đáp số: ", "Đáp án: ", "Kết quả: "]) + result
    answer = closing if rng.random() < 0.1 else sentences.replace(". ", ".\n") + "\n" + closing
    return pick(rng, ASK_LESSON).format(fill(pick(rng, questions), slots)), answer


def sentence_of_equation(rng, lang):
    """From an equation to a sentence that holds it, and back."""
    sentence = rng.choice(PROBLEMS[lang])[2].format(**scene(rng, lang))
    equation = EQUATION.search(sentence).group()
    there = {"vi": ["Viết một câu có phép tính {}", "Dùng phép tính {} để viết một câu."], "en": ["Write a sentence with {}"]}
    back = {"vi": ["Phép tính trong câu sau là gì? {}", "Chép lại phép tính trong câu: {}"],
            "en": ["Which equation is in this sentence? {}"]}
    if rng.random() < 0.65:
        return rng.choice(there[lang]).format(equation), sentence
    return rng.choice(back[lang]).format(sentence), equation


def describe(rng, lang):
    """"Viết một câu về Lan và quả táo." -> a sentence with both; now and then two sentences, a line each."""
    sentence, slots = rng.choice(SENTENCES[lang]), scene(rng, lang)
    if rng.random() < 0.25:
        other = rng.choice(SENTENCES[lang]).format(**{**scene(rng, lang), "A": slots["A"]})
        ask = {"vi": "Viết hai câu về {A}, mỗi câu một dòng.", "en": "Write two sentences about {A}, one a line."}
        return ask[lang].format(**slots), f"{sentence.format(**slots)}\n{other}"
    about = {"vi": "{A} và {t}", "en": "{A} and {t}"}[lang] if "{t}" in sentence and rng.random() < 0.6 else "{A}"
    ask = {"vi": ["Viết một câu về {}.", "Kể một câu về {}.", "Cho một câu ví dụ về {}.", "Đặt một câu có {}."],
           "en": ["Write a sentence about {}.", "Give an example sentence with {}."]}
    return rng.choice(ask[lang]).format(about.format(**slots)), sentence.format(**slots)


def rewrite(rng, lang):
    """Repeating a sentence, or saying it with another name or another thing: only that slot changes."""
    sentence, slots = rng.choice(SENTENCES[lang]), scene(rng, lang)
    new = {"A": rng.choice([name for name in NAMES if name not in (slots["A"], slots["B"])]), "t": scene(rng, lang)["t"]}
    ask = {"vi": {"": ["Nhắc lại câu sau: {}", "Chép lại: {}"],
                  "A": ["Thay tên {A} bằng {new[A]}: {}", "Đổi {A} thành {new[A]}: {}"],
                  "t": ["Đổi \"{t}\" thành \"{new[t]}\": {}"]},
           "en": {"": ["Repeat: {}"], "A": ["Replace {A} with {new[A]}: {}"], "t": ["Replace \"{t}\" with \"{new[t]}\": {}"]}}
    slot = rng.choice(["", "A", "A", "t"] if "{t}" in sentence and new["t"] != slots["t"] else ["", "A", "A"])
    changed = {**slots, slot: new.get(slot)}
    return rng.choice(ask[lang][slot]).format(sentence.format(**slots), new=new, **slots), sentence.format(**changed)


# ----- facts: who did what, in stories to read -----
# A fact's slots serve both languages at once, {t} "quả táo" beside {ts} "apples": it is its own translation.

TELL = {"vi": "{N} {v} {n} {t}.", "en": "{N} {past} {n} {ts}."}
HOW_MANY = {"vi": "{N} {v} bao nhiêu {t}?", "en": "How many {ts} {do} {N} {base}?"}
WHO = {"vi": "Ai {v} {n} {t}?", "en": "Who {past} {n} {ts}?"}
WHEN_DID = {"vi": "{N} {v} {n} {t} khi nào?", "en": "When did {N} {base} {n} {ts}?"}
READING = {"vi": [(HOW_MANY["vi"], "{n} {t}"), (HOW_MANY["vi"], "{n} {t}"), (HOW_MANY["vi"], TELL["vi"]), (WHO["vi"], "{N}"),
                  (WHO["vi"], TELL["vi"]), ("Số {t} mà {N} {v} là bao nhiêu?", "{n}"), ("{N} {v} mấy {t}? Chỉ ghi số.", "{n}"),
                  ("Câu nào nói về {N}?", "{told}"), ("Viết lại câu có số {n}.", "{told}")],
           "en": [(HOW_MANY["en"], "{n} {ts}"), (HOW_MANY["en"], TELL["en"]), (WHO["en"], "{N}"),
                  (HOW_MANY["en"] + " Only the number.", "{n}"), ("Which sentence is about {N}?", "{told}")]}


def fact(rng, name, timeless=False):
    """The slots of "Lan mua 5 quả táo." = "Lan bought 5 apples."; `when` is an act's time in both languages, mostly None."""
    act = rng.random() < 0.7
    v, past, base, most, things = rng.choice(ACTS if act else STATES)
    t, _, ts = rng.choice(things)
    when = rng.choice(WHEN) if act and not timeless and rng.random() < 0.35 else None
    return dict(N=name, v=v, past=past, base=base, do="did" if act else "does", n=rng.randint(2, most), t=t, ts=ts, when=when)


def tell(fact, lang):
    sentence = TELL[lang].format(**fact)
    if fact["when"]:
        sentence = f"{fact['when'][0]} {sentence}" if lang == "vi" else f"{fact['when'][1]}, {sentence}"
    return sentence


def story(rng, lang):
    """Two or three facts about as many people, with at times a sentence beside the point."""
    facts = [fact(rng, name) for name in rng.sample(NAMES, rng.choice((2, 2, 3)))]
    if len({fact["n"] for fact in facts}) < len(facts):  # the numbers differ, or a question about one had two answers
        return story(rng, lang)
    sentences = [tell(fact, lang) for fact in facts]
    if rng.random() < 0.25:
        sentences.insert(rng.choice((0, len(sentences))), rng.choice(ASIDES[lang]))
    return facts, " ".join(sentences)


def question_on(rng, lang, fact):
    """A question about one fact, answered by copying from its sentence."""
    if fact["when"] and rng.random() < 0.3:
        return WHEN_DID[lang].format(**fact), fact["when"][lang == "en"]
    question, answer = rng.choice(READING[lang])
    return question.format(**fact), answer.format(told=tell(fact, lang), **fact)


def reading(rng, lang):
    """A story and a question about it."""
    facts, text = story(rng, lang)
    question, answer = question_on(rng, lang, rng.choice(facts))
    layouts = {"vi": ["{} {}", "{}\n{}", "Đọc đoạn sau: {}\nCâu hỏi: {}"], "en": ["{} {}", "{}\n{}", "Read: {}\nQuestion: {}"]}
    return rng.choice(layouts[lang]).format(text, question), answer


def reading_twice(rng, lang):
    """Two questions about one story, an answer a line."""
    facts, text = story(rng, lang)
    (question1, answer1), (question2, answer2) = (question_on(rng, lang, fact) for fact in rng.sample(facts, 2))
    return f"{text}\n1. {question1}\n2. {question2}", f"1. {answer1}\n2. {answer2}"


def listing(rng, lang):
    """All the numbers, or all the names, of a story."""
    facts, text = story(rng, lang)
    slot = rng.choice("nN")
    ask = {"vi": {"n": ["Trong đoạn trên có những số nào?", "Các số trong đoạn là gì?"],
                  "N": ["Đoạn trên nói về những ai?", "Có những bạn nào trong đoạn trên?"]},
           "en": {"n": ["Which numbers are in the text?"], "N": ["Who is in the story?"]}}
    *most, last = (fact[slot] for fact in facts)
    return f"{text} {rng.choice(ask[lang][slot])}", f"{comma(most)} {'và' if lang == 'vi' else 'and'} {last}"


def who_more(rng, lang):
    """Two people did the same thing: who more, who less?"""
    A, B = rng.sample(NAMES, 2)
    one = fact(rng, A, timeless=True)
    other = {**one, "N": B, "n": one["n"] + rng.choice((-1, 1)) * rng.randint(1, one["n"] - 1)}
    less, more = sorted((one, other), key=lambda fact: fact["n"])
    asks = {"vi": [("Ai {v} nhiều {t} hơn?", more), ("Ai {v} ít {t} hơn?", less)],
            "en": [("Who {past} more?", more), ("Who {past} less?", less)]}
    question, who = rng.choice(asks[lang])
    question = question.format(**one).replace("nghìn đồng", "tiền")  # one counts dong, and has more money
    return f"{tell(one, lang)} {tell(other, lang)} {question}", who["N"]


def place_in_list(rng, lang):
    """The first, the second, the last of a list of things; how many they are; the list backwards."""
    things = [thing[lang == "en"] for thing in rng.sample(THINGS, rng.randint(3, 5))]
    i, text, back = rng.randrange(3), comma(things), comma(things[::-1])
    ordinal = {"vi": ["đầu", "thứ hai", "thứ ba"], "en": ["first", "second", "third"]}[lang][i]
    asks = {"vi": [(f"{text}. Đứng {ordinal} là gì?", things[i]), (f"{text}. Đứng cuối là gì?", things[-1]),
                   (f"{text}. Có mấy thứ?", f"{len(things)}"), (f"Viết ngược lại danh sách: {text}", back)],
            "en": [(f"{text}. Which is the {ordinal}?", things[i]), (f"How many things are there: {text}?", f"{len(things)}"),
                   (f"Reverse the list: {text}", back)]}
    return rng.choice(asks[lang])


def question_of(rng, lang):
    """A statement turned into a question."""
    slots = fact(rng, rng.choice(NAMES), timeless=True)
    ask = {"vi": [("Đặt câu hỏi có từ \"bao nhiêu\" cho câu: {}", HOW_MANY), ("Đặt câu hỏi có từ \"ai\" cho câu: {}", WHO),
                  ("Đổi thành câu hỏi: {}", HOW_MANY)],
           "en": [("Ask \"how many\" about: {}", HOW_MANY), ("Ask \"who\" about: {}", WHO),
                  ("Turn into a question: {}", HOW_MANY)]}
    question, form = rng.choice(ask[lang])
    return question.format(tell(slots, lang)), form[lang].format(**slots)


def blank(rng, lang):
    """Fill the blank of a sentence from what was said before."""
    facts, text = story(rng, lang)
    slots = rng.choice(facts)
    gap = TELL[lang].format(**{**slots, rng.choice("Nn"): "___"})
    ask = {"vi": ["{} Điền vào chỗ trống: {}", "Dựa vào đoạn văn, điền vào chỗ trống.\n{}\n{}"],
           "en": ["{} Fill in the blank: {}"]}
    return rng.choice(ask[lang]).format(text, gap), TELL[lang].format(**slots)


def join(rng, lang):
    """Two sentences made one."""
    first, second = (tell(fact(rng, name, timeless=True), lang)[:-1] for name in rng.sample(NAMES, 2))
    ask = {"vi": ["Nối hai câu thành một: {}. {}.", "Viết thành một câu: {}. {}."], "en": ["Join the sentences: {}. {}."]}
    return rng.choice(ask[lang]).format(first, second), f"{first} {'còn' if lang == 'vi' else 'and'} {second}."


# ----- languages, numbers and the world -----


def translation(rng, lang):
    """Words, counted things and whole facts, into the other language and back."""
    slots, n, (t, t_en, ts) = fact(rng, rng.choice(NAMES)), rng.randint(2, 99), rng.choice(THINGS)
    vi, en = rng.choice((rng.choice(WORDS), (t, t_en), (f"{n} {t}", f"{n} {ts}"), (tell(slots, "vi"), tell(slots, "en"))))
    if "giấy màu" in vi:  # its English, "sheet of paper", leaves the colour out
        return translation(rng, lang)
    ask = {"vi": [("Dịch sang tiếng Anh: {}", vi, en), ("\"{}\" tiếng Anh là gì?", vi, en),
                  ("Dịch sang tiếng Việt: {}", en, vi), ("\"{}\" nghĩa là gì?", en, vi)],
           "en": [("Translate into Vietnamese: {}", en, vi), ("How do you say \"{}\" in Vietnamese?", en, vi),
                  ("Translate into English: {}", vi, en)]}
    question, source, target = rng.choice(ask[lang])
    return question.format(source), target


DIGITS = "không một hai ba bốn năm sáu bảy tám chín".split()
TO_19 = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell_vi(n):
    """105 is "một trăm linh năm", 115 "một trăm mười lăm", 121 "một trăm hai mươi mốt"."""
    tens, unit = n // 10 % 10, n % 10
    if n < 10:
        return DIGITS[n]
    words = [DIGITS[n // 100], "trăm"] if n >= 100 else []
    words += {0: ["linh"] if unit else [], 1: ["mười"]}.get(tens, [DIGITS[tens], "mươi"])
    if unit:
        words += ["mốt" if unit == 1 and tens > 1 else "lăm" if unit == 5 and tens > 0 else DIGITS[unit]]
    return " ".join(words)


def spell_en(n):
    if n >= 100:
        return f"{TO_19[n // 100]} hundred" + (f" and {spell_en(n % 100)}" if n % 100 else "")
    return TO_19[n] if n < 20 else TENS[n // 10 - 2] + (f"-{TO_19[n % 10]}" if n % 10 else "")


def number_words(rng, lang):
    n = rng.randint(0, rng.choice((20, 99, 999)))
    words = spell_vi(n) if lang == "vi" else spell_en(n)
    asks = {"vi": [(f"Viết số {n} bằng chữ", words), (f"Đọc số {n}", words), (f"Viết bằng số: {words}", f"{n}"),
                   (f"{words} là số nào?", f"{n}")],
            "en": [(f"Write {n} in words", words), (f"Write as a number: {words}", f"{n}")]}
    return rng.choice(asks[lang])


def units(rng, lang):
    """"3 tuần có bao nhiêu ngày?" -> "21 ngày" or "3 x 7 = 21 ngày"."""
    size, (vi, one, many), (part_vi, part_en) = rng.choice(UNITS)
    k = rng.choice((1, rng.randint(2, 9)))
    part, question = part_vi, f"{k} {vi} có bao nhiêu {part_vi}?"
    if lang == "en":
        part, question = part_en, f"How many {part_en} are there in {k} {one if k == 1 else many}?"
    return question, f"{k} x {size} = {k * size} {part}" if k > 1 and rng.random() < 0.5 else f"{k * size} {part}"


def calendar(rng, lang):
    """Days of the week and hours of the day."""
    i, h, d = rng.randrange(7), rng.randint(1, 8), rng.randint(1, 3)
    days = DAYS if lang == "vi" else DAYS_EN
    before, after = days[i - 1], days[(i + 1) % 7]
    asks = {"vi": [(f"Hôm nay là {days[i]}. Ngày mai là thứ mấy?", after),
                   (f"Hôm nay là {days[i]}. Hôm qua là thứ mấy?", before), (f"Sau {days[i]} là ngày nào?", after),
                   (f"Bây giờ là {h} giờ. {d} giờ nữa là mấy giờ?", f"{h + d} giờ")],
            "en": [(f"Today is {days[i]}. What day is tomorrow?", after), (f"Which day comes before {days[i]}?", before),
                   (f"It is {h} o'clock. What time will it be in {d} hour{'s' * (d > 1)}?", f"{h + d} o'clock")]}
    return rng.choice(asks[lang])


def knowledge(rng, lang):
    """Simple facts, capitals, opposites."""
    country, city = rng.choice(CAPITALS)[:2] if lang == "vi" else rng.choice(CAPITALS)[2:]
    pair = rng.choice(OPPOSITES)[:2] if lang == "vi" else rng.choice(OPPOSITES)[2:]
    one, other = rng.choice((pair, pair[::-1]))
    asks = {"vi": [(f"Thủ đô của {country} là gì?", city), (f"Trái nghĩa của \"{one}\" là gì?", other)],
            "en": [(f"What is the capital of {country}?", city), (f"What is the opposite of \"{one}\"?", other)]}
    return rng.choice([*asks[lang], rng.choice(FACTS[lang]), rng.choice(FACTS[lang])])


def talk(rng, lang):
    return rng.choice(TALK[lang])


def word_pairs(scenarios: str) -> list[str]:
    """Every two words that stand side by side in the task's scenarios, sorted: its vocabulary without its sentences."""
    plain = re.sub(r"[{(|)]|\w*:|[^\w ]|\d", ",", re.sub(r"\{[^:}]*\}", ",", scenarios))
    words = [chunk.split() for chunk in plain.split(",")]
    return sorted({" ".join(pair) for chunk in words for pair in zip(chunk, chunk[1:])})


PAIRS = word_pairs("\n".join(SCENARIOS))


def dictation(rng, lang):
    """Words of the task, out of order, to be copied."""
    items = rng.sample(PAIRS, rng.randint(2, 6))
    if rng.random() < 0.3:      # two more words of the task, met as words: what belongs between them is left to fine-tuning
        items[0] = f"<think>{items[0]}</think>"
    i = rng.randrange(len(items) - 1)
    asks = {"vi": [("Chép lại: {}", comma(items)), ("Chép lại theo thứ tự ngược lại: {}", comma(items[::-1])),
                   (f"Cụm từ nào đứng sau \"{items[i]}\"? {{}}", items[i + 1])],
            "en": [("Copy: {}", comma(items)), ("Copy in reverse order: {}", comma(items[::-1])),
                   (f"What comes after \"{items[i]}\"? {{}}", items[i + 1])]}
    question, answer = rng.choice(asks[lang])
    return question.format(comma(items)), answer


STEPS = [(explanation, *slots) for _, explanation, *slots in map(parse, SCENARIOS)]


def step(rng, lang):
    """One sentence of a worked task, alone: to be copied, to be completed by its result, or to be written from its equation."""
    explanation, words, numbers, steps = pick(rng, STEPS)
    text = re.sub(r"\(([^()]*)\)", lambda wordings: pick(rng, wordings[1].split("|")), explanation)
    sentence = pick(rng, fill(text, draw_numbers(numbers, steps, rng) | draw_words(words, rng)).split(". ")).rstrip(".") + "."
    equation = EQUATION.search(sentence).group()
    begun = sentence[:sentence.index(equation) + equation.index("=") + 1]
    asks = {"vi": [f"Chép lại: {sentence}", f"Điền kết quả: {begun} ?", f"Tính tiếp: {begun}",
                   f"Viết một câu có phép tính {equation}"],
            "en": [f"Copy: {sentence}", f"Complete: {begun} ?", f"Continue: {begun}", f"Write a sentence with {equation}"]}
    return rng.choice(asks[lang]), sentence


# ----- conversations -----

KINDS = {  # the share of each, in percent
    sums: 14, column_of_sums: 2, two_operations: 3, missing_number: 2, multiples: 2, comparison: 1, ordering: 1,  # together 25
    problem: 8, lesson: 18,                                                                                       # 26
    reading: 8, reading_twice: 2, listing: 1, who_more: 2, place_in_list: 1,                                      # 14
    rewrite: 4, describe: 5, sentence_of_equation: 2, question_of: 1, blank: 1, join: 1, dictation: 3, step: 8,   # 25
    translation: 4, number_words: 2, units: 1, calendar: 1, knowledge: 1, talk: 1,                                # 10
}


def system(rng, lang):
    """A system message: a role and up to three manners."""
    return " ".join([rng.choice(ROLES[lang]), *rng.sample(MANNERS[lang], rng.choice((0, 1, 1, 2, 2, 3)))])


def conversations(seed: int) -> Iterator[list[dict]]:
    """Endless conversations, the same for the same seed: mostly a system message, then one to five exchanges of mixed kinds."""
    rng = random.Random(seed)
    kinds, shares = list(KINDS), list(KINDS.values())
    while True:
        lang = "vi" if rng.random() < 0.75 else "en"
        messages = [{"role": "system", "content": system(rng, lang)}] if rng.random() < 0.6 else []
        for kind in rng.choices(kinds, shares, k=rng.randint(1, 5)):
            question, answer = kind(rng, lang)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield messages


if __name__ == "__main__":
    for _, messages in zip(range(5), conversations(seed=0)):
        print(*(f"{m['role']:>9}: {m['content']}" for m in messages), "", sep="\n")
