"""The words that the nano task and its base model share: names, and lists of things.

The base meets these words in other sentences (corpus.py) than the task does (templates.py), just as
a large model has met the words of GSM8K before it is fine-tuned on GSM8K.

Vietnamese counts with a classifier: "ba quả táo" is three [fruit] apple. So "quả" is part of the
thing here.
"""

NAMES = """
An Bảo Bình Chi Cường Dũng Duy Giang Hà Hải Hạnh Hiếu Hoa Hoàng Hùng Hương Khánh Khoa Kiên Lan
Linh Long Ly Mai Minh My Nam Nga Ngân Ngọc Nhung Oanh Phong Phúc Phương Quân Quỳnh Sơn Tâm Thảo
""".split()
PEOPLE = ("A", "B", "C", "D")       # the slots for names


def parse_lists(text: str) -> dict[str, list[str]]:
    """'fruit: quả táo, quả cam' -> {"fruit": ["quả táo", "quả cam"]}, a list per line."""
    lists = {}
    for line in text.strip().splitlines():
        slot, words = line.split(": ")
        lists[slot] = words.split(", ")
    return lists


LISTS = dict.fromkeys(PEOPLE, NAMES) | parse_lists("""
family: mẹ, bố, anh trai, chị gái, ông, bà, cô giáo
fruit: quả táo, quả cam, quả chuối, quả xoài, quả ổi, quả lê, quả dừa, quả bưởi
pen: quyển vở, cây bút, quyển sách, cục tẩy, cái thước, hộp màu
toy: viên bi, con búp bê, quả bóng, con diều, tấm thẻ, con tem, nhãn vở
sweet: cái kẹo, cái bánh, hộp sữa, gói mì, quả trứng, chai nước
animal: con gà, con vịt, con bò, con cá, con thỏ, con dê, con lợn, con chim
colour: đỏ, xanh, vàng, trắng, đen, hồng, tím, nâu
box: hộp, túi, giỏ, thùng, khay, rổ
""")
