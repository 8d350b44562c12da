"""The text that the base model of nano is pretrained on: endless small conversations.

Fine-tuning teaches something only to a base that is able, but does not know the task yet: Qwen2.5
knows Vietnamese, arithmetic and how to chat before it meets GSM8K. This corpus gives a model of
three million parameters the same start. It holds bare arithmetic in the notation of the task's
explanations (7x8=56), problems worked as a schoolbook works them (lessons.py), stories in which a
number changes from sentence to sentence, and a little small talk. A few questions are English.

It does not hold the task (templates.py): none of its problems, no answer that thinks, and not its
system message. Only its words occur, two at a time and out of order, so that no word is new.

How it is built: a *kind* of exchange is a function ask_...(rng) -> (question, answer), and KINDS
gives the share of each. Slots that belong together are computed together, so whatever is written
as "a op b=c" is true.

    python data/nano/corpus.py      # shows a few conversations
"""
import random
import re
from collections.abc import Iterator

from lessons import LESSONS
from lexicon import LISTS
from prepare import (OPERATIONS, SYSTEM, choose_wordings, draw_numbers, draw_one, draw_words,
                     fill_slots, is_easy, parse_scenario)
from templates import SCENARIOS


def parse_rows(text: str) -> list:
    """One row a line. Cells are separated by " | ", and a row of one cell is a string."""
    rows = [line.split(" | ") for line in text.strip().splitlines()]
    return [row if len(row) > 1 else row[0] for row in rows]


def draw_int(rng, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def draw_several(rng, choices, n: int) -> list:
    """n different ones of the choices, in random order."""
    drawn = []
    while len(drawn) < n:
        choice = draw_one(rng, choices)
        if choice not in drawn:
            drawn.append(choice)
    return drawn


# ----- arithmetic: what a model of this size can learn exactly -----

def draw_operation(rng, x: int | None = None) -> tuple[int, str, int, int]:
    """x, op, y, z with x op y = z, all within reach (is_easy). x: go on from this number.

    Two in three are sums and differences, because there are ten times as many of them to learn.
    """
    while True:
        op = draw_one(rng, "+++---x/")
        if op in "+-":
            first = x or draw_int(rng, 1, draw_one(rng, (20, 100, 149)))
            y = draw_int(rng, 1, draw_one(rng, (12, 60, 149)))
        else:
            y = draw_int(rng, 2, 12)
            first = x or draw_int(rng, 2, 49 if y == 2 else 12)
            if op == "/" and not x:
                first *= y
        z = OPERATIONS[op](first, y)
        if z > 0 and is_easy(first, op, y, z):
            return first, op, y, z


WORDS = {"+": ("cộng", "Tổng", "plus"), "-": ("trừ", "Hiệu", "minus"),
         "x": ("nhân", "Tích", "times"), "/": ("chia", "Thương", "divided by")}
SUMS = parse_rows("""
{a}{op}{b}
{a}{op}{b}=?
{a} {op} {b} = ?
Tính {a}{op}{b}
Tính {a} {op} {b}
{a} {op} {b} bằng mấy?
{a} {word} {b} bằng bao nhiêu?
{noun} của {a} và {b} là bao nhiêu?
What is {a} {op} {b}?
How much is {a} {op} {b}?
What is {a} {english} {b}?
""")


def ask_sum(rng):
    """"7 x 8 bằng mấy?" -> "7x8=56"."""
    a, op, b, c = draw_operation(rng)
    word, noun, english = WORDS[op]
    question = draw_one(rng, SUMS)
    return (question.format(a=a, op=op, b=b, word=word, noun=noun, english=english),
            f"{a}{op}{b}={c}")


def ask_column(rng):
    """Three to eight operations, answered by as many equations."""
    column = [draw_operation(rng) for _ in range(draw_int(rng, 3, 8))]
    between = draw_one(rng, (", ", "\n"))
    question = draw_one(rng, ("Tính: ", "Làm các phép tính: ", "Calculate: "))
    question += between.join(f"{a}{op}{b}" for a, op, b, _ in column)
    return question, between.join(f"{a}{op}{b}={c}" for a, op, b, c in column)


STEPS = {"+": ("cộng {y}", "thêm {y}"), "-": ("trừ {y}", "bớt {y}"),
         "x": ("nhân {y}", "gấp {y} lần"), "/": ("chia {y}", "chia cho {y}")}


def ask_chain(rng):
    """"Lấy 12, cộng 5, trừ 2." -> "12+5=17" and "17-2=15", a line per operation."""
    x = start = draw_int(rng, 2, draw_one(rng, (12, 60, 120)))
    parts, lines = [], []
    for _ in range(draw_int(rng, 2, 5)):
        x, op, y, z = draw_operation(rng, x)
        parts.append(draw_one(rng, STEPS[op]).format(y=y))
        lines.append(f"{x}{op}{y}={z}")
        x = z
    question = draw_one(rng, ("Lấy {}, {}.", "Từ {}, {}. Được mấy?", "{}, {} thì còn mấy?"))
    return question.format(start, ", ".join(parts)), "\n".join(lines)


COMPARISONS = parse_rows("""
{z} hơn {x} bao nhiêu? | {z}-{x}={y}
{x} kém {z} bao nhiêu? | {z}-{x}={y}
Số nào hơn {x} là {y} đơn vị? | {x}+{y}={z}
Số nào kém {z} là {y} đơn vị? | {z}-{y}={x}
{x}+?={z} | {z}-{x}={y}
{x} và {z}, số nào lớn hơn? | {z}
{x} và {z}, số nào bé hơn? | {x}
""")
MULTIPLES = parse_rows("""
gấp {k} lần {n} | {n}x{k}={p}
{p} gấp mấy lần {n}? | {p}/{n}={k}
{p} chia thành {k} phần bằng nhau | {p}/{k}={n}
Một phần {k} của {p} là bao nhiêu? | {p}/{k}={n}
gấp đôi {m} | {m}x2={d}
một nửa của {d} | {d}/2={m}
""")


def ask_comparison(rng):
    """"17 hơn 12 bao nhiêu?" -> "17-12=5"; "gấp đôi 7" -> "7x2=14"."""
    z = draw_int(rng, 3, draw_one(rng, (20, 100, 150)))
    x = draw_int(rng, 1, z - 1)
    n, k, m = draw_int(rng, 2, 12), draw_int(rng, 2, 12), draw_int(rng, 2, 49)
    slots = dict(x=x, y=z - x, z=z, n=n, k=k, p=n * k, m=m, d=2 * m)
    question, answer = draw_one(rng, draw_one(rng, (COMPARISONS, MULTIPLES)))
    return question.format(**slots), answer.format(**slots)


# ----- problems, worked as a schoolbook works them -----

PARSED_LESSONS = [parse_scenario(lesson) for lesson in LESSONS]
REQUESTS = ["{}", "{}", "Giải bài toán: {}", "{} Trình bày cách làm.", "Em không hiểu bài này: {}"]


def ask_lesson(rng):
    """A problem of lessons.py, worked line by line up to "Đáp số: 8 quả"."""
    lesson = draw_one(rng, PARSED_LESSONS)
    slots = draw_numbers(rng, lesson) | draw_words(rng, lesson)
    lines, result = fill_slots(lesson.explanation, slots).split(" => ")
    question = choose_wordings(rng, draw_one(rng, lesson.questions))
    question = draw_one(rng, REQUESTS).format(fill_slots(question, slots))
    return question, lines.replace(". ", ".\n") + f"\nĐáp số: {result}"


# A story begins with a number of things and changes it. {A} has them at first. Rows of CHANGES say
# what happens to them. Rows of RELATIONS go on to the next person, {B}, who has another number.
STARTS = parse_rows("""
Trong tay {A} là {x} {t}.
{A} cầm {x} {t}.
Ban đầu {A} giữ {x} {t}.
Đầu tuần {A} đếm thấy mình có {x} {t}.
""")
CHANGES = {
    "+": ("{A} nhặt thêm {y} {t}.", "{A} xin thêm {y} {t}.", "{F} đưa {A} {y} {t} nữa.",
          "{D} trả {A} {y} {t}.", "Hôm sau {A} kiếm thêm {y} {t}."),
    "-": ("{A} đánh rơi {y} {t}.", "{A} đưa {D} {y} {t}.", "{A} bỏ ra {y} {t}.",
          "{F} lấy đi {y} {t}.", "Hôm sau {A} hụt mất {y} {t}."),
    "x": ("Nhờ chăm chỉ, số {t} tăng lên gấp {y} lần.", "Hôm sau số {t} thành gấp {y} lần."),
    "/": ("{A} chia đều làm {y} phần, giữ một phần.",
          "{A} xếp đều ra {y} nơi, chỉ mang về một nơi."),
}
RELATIONS = {
    "+": ("{B} hơn {A} {y} {t}.", "{A} kém {B} {y} {t}.", "So với {A}, {B} nhiều hơn {y} {t}."),
    "-": ("{B} kém {A} {y} {t}.", "{A} hơn {B} {y} {t}.", "So với {A}, {B} ít hơn {y} {t}."),
    "x": ("{B} giữ gấp {y} lần {A}.", "Của {B} gấp {y} lần của {A}."),
    "/": ("{A} giữ gấp {y} lần {B}.", "Của {A} gấp {y} lần của {B}."),
}
RESULTS = ["{A} có {step} {t}.", "Số {t} của {A} là {step} {t}.", "{A} giữ {step} {t}."]
ENDINGS = ["Vậy {A} còn mấy {t}?", "Lúc này {A} giữ mấy {t}?", "{A} có mấy {t} trong tay?"]
TOTALS = ["{A} với {B} gộp lại là mấy {t}?", "Tổng số {t} của {A} và {B} là mấy?"]


def ask_story(rng):
    """One to three changes, of one person's things or from person to person; a line for each."""
    names = draw_several(rng, LISTS["A"], 6)
    slots = {"A": names[0], "B": names[1], "D": names[5], "F": draw_one(rng, LISTS["family"]),
             "t": draw_one(rng, LISTS[draw_one(rng, ("fruit", "pen", "toy", "sweet"))])}
    z = draw_int(rng, 2, draw_one(rng, (12, 40, 80)))
    sentences = [draw_one(rng, STARTS).format(x=z, **slots)]
    lines, owner = [], names[0]
    events = draw_one(rng, (CHANGES, RELATIONS))
    for i in range(draw_int(rng, 1, 3)):
        x, op, y, z = draw_operation(rng, z)
        if events is RELATIONS:
            slots["A"], slots["B"] = names[i], names[i + 1]
            owner = names[i + 1]
        sentences.append(draw_one(rng, events[op]).format(y=y, **slots))
        step = f"{x}{op}{y}={z}"
        lines.append(draw_one(rng, RESULTS).format(A=owner, t=slots["t"], step=step))
    question = draw_one(rng, ENDINGS).format(A=owner, t=slots["t"])
    if events is RELATIONS and rng.random() < 0.5 and x + z <= 150:
        question = draw_one(rng, TOTALS).format(**slots)
        lines.append(f"Cả hai là {x}+{z}={x + z} {slots['t']}.")
        z = x + z
    lines.append(f"Đáp số: {z} {slots['t']}")
    return fill_slots(" ".join([*sentences, question]), {}), "\n".join(lines)


FACTS = ["{N} có {n} {t}", "{N} mua {n} {t}", "{N} đếm được {n} {t}", "{N} được tặng {n} {t}"]
READINGS = parse_rows("""
{N} có mấy {t}? | {n} {t}
Số {t} của {N} là mấy? | {n}
Ai có {n} {t}? | {N}
Câu nào nói về {N}? | {told}.
""")


def ask_reading(rng):
    """Two to five people with different numbers of things, and a question about one of them."""
    names = draw_several(rng, LISTS["A"], draw_int(rng, 2, 5))
    numbers = draw_several(rng, range(2, 150), len(names))
    facts = []
    for name, n in zip(names, numbers):
        thing = draw_one(rng, LISTS[draw_one(rng, ("fruit", "pen", "toy", "sweet", "animal"))])
        facts.append(dict(N=name, n=n, t=thing))
        facts[-1]["told"] = draw_one(rng, FACTS).format(**facts[-1])
    text = draw_one(rng, (", ", ". ")).join(fact["told"] for fact in facts)
    question, answer = draw_one(rng, READINGS)
    fact = draw_one(rng, facts)
    return f"{text}. {question.format(**fact)}", answer.format(**fact)


# ----- words -----

def list_word_pairs(text: str) -> list[str]:
    """Every pair of neighbouring words in the task's texts, sorted: its vocabulary alone.

    Slots, punctuation, digits and line breaks separate words. So a new line break in templates.py
    between two words removes a pair, and changes the corpus.
    """
    text = re.sub(r"\{[^:}]*\}", ",", text)                 # {fruit}, {a + b = c}
    text = re.sub(r"[{(|)]|\w*:|[^\w ]|\d", ",", text)      # {box:túi|giỏ} leaves túi, giỏ
    pairs = set()
    for phrase in text.split(","):
        words = phrase.split()
        pairs |= {f"{first} {second}" for first, second in zip(words, words[1:])}
    return sorted(pairs)


WORD_PAIRS = list_word_pairs("\n".join([SYSTEM, *SCENARIOS]))


def ask_dictation(rng):
    """Words of the task, out of order, to be copied; at times two of them stand in <think>.

    So the base has met these tokens. What belongs between them is left to fine-tuning.
    """
    pairs = draw_several(rng, WORD_PAIRS, draw_int(rng, 2, 6))
    if rng.random() < 0.3:
        pairs[0] = f"<think>{pairs[0]}</think>"
    text = ", ".join(pairs)
    return f"Chép lại: {text}", text


TALK = parse_rows("""
Xin chào! | Xin chào! Bạn cần tính gì?
Chào bạn | Chào bạn! Mình có thể giúp gì?
Bạn là ai? | Tôi là nano, một trợ lý nhỏ.
Bạn tên là gì? | Tôi tên là nano.
Bạn làm được gì? | Tôi biết làm các bài toán nhỏ.
Cảm ơn bạn! | Không có gì!
Tạm biệt! | Tạm biệt, hẹn gặp lại!
Hello! | Hello! How can I help you?
Hi | Hi! How can I help you?
Who are you? | I am nano, a small assistant.
What can you do? | I can solve small problems in arithmetic.
Thank you! | You are welcome!
Goodbye | Goodbye!
""")


def ask_small_talk(rng):
    return draw_one(rng, TALK)


# ----- conversations -----

KINDS = {       # the share of each kind, in percent
    ask_sum: 16,
    ask_column: 14,
    ask_chain: 8,
    ask_comparison: 8,
    ask_lesson: 20,
    ask_story: 22,
    ask_reading: 6,
    ask_dictation: 4,
    ask_small_talk: 2,
}
ROLES = parse_rows("""
Bạn là một trợ lý thân thiện.
Bạn là gia sư toán của học sinh tiểu học.
Bạn là nano, một trợ lý nhỏ.
Bạn giúp các em nhỏ ôn bài mỗi ngày.
Bạn là một giáo viên kiên nhẫn, luôn trả lời đúng câu hỏi.
You are a helpful assistant.
""")
MANNERS = parse_rows("""
Hãy trả lời ngắn gọn.
Hãy đọc kỹ câu hỏi trước khi trả lời.
Tính thật chính xác.
Viết phép tính rồi mới viết kết quả.
Giữ nguyên tên và các con số trong bài.
""")


def draw_system_message(rng) -> str:
    """A role and up to two manners."""
    return " ".join([draw_one(rng, ROLES), *draw_several(rng, MANNERS, draw_int(rng, 0, 2))])


def conversations(seed: int) -> Iterator[list[dict]]:
    """Endless conversations, the same for the same seed.

    Four in ten begin with a system message. One to four exchanges of mixed kinds follow.
    """
    rng = random.Random(seed)
    kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
    while True:
        messages = []
        if rng.random() < 0.4:
            messages.append({"role": "system", "content": draw_system_message(rng)})
        for _ in range(draw_int(rng, 1, 4)):
            question, answer = draw_one(rng, kinds)(rng)
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        yield messages


if __name__ == "__main__":
    stream = conversations(seed=0)
    for _ in range(5):
        for message in next(stream):
            print(f"{message['role']:>9}: {message['content']}")
        print()
