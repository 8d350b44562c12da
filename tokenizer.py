"""Text -> token ids and back: a byte-level BPE read from tokenizer.json; and the chat template.

A text becomes ids in four steps. tokenizer.json describes each. With the embedded nano model:

    "2 quả táo<|im_end|>"
    added_tokens    "2 quả táo" | <|im_end|>            special tokens are cut out first, whole
    normalizer      a + accent becomes á                one code point if there is one (NFC)
    pre_tokenizer   "2" | " quả" | " táo"               words, by a regular expression
    model           " táo" -> one token                 the bytes of each word are merged
    ids             20 296 544 2

The model is a byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909), here on
bytes (GPT-2). Its training began with 256 tokens, one per byte. Again and again it took the two
neighbours that stood together most often in the training text, and made one token of them: a merge.
The vocabulary is the 256 bytes and the results of the merges. To encode a word, cut it into bytes
and do the merges again, in the order in which they were learned:

    20  74  C3  A1  6F      " táo" in UTF-8; á has two bytes
    20+74   C3  A1  6F      merge   3: " t"         token 262
    20+74   C3+A1   6F      merge   6: "á"          token 265
    20+74   C3+A1+6F        merge 164: "áo"         token 423
    20+74+C3+A1+6F          merge 285: " táo"       token 544

No character can fail here, because every text is bytes and every byte is a token. nano has never
seen 👍 and has no merge for its bytes F0 9F 91 8D, so it becomes four tokens. The price is length:
a language that the training text had little of takes more tokens per word.

The last two steps are done by tiktoken, in Rust. It takes no list of merges, only a rank for each
token, and merges the two neighbours whose joint token has the lowest rank. With ranks in the order
of learning, bytes 0 to 255 and merge m at 256 + m, this gives the same ids. In Qwen and Llama 3 the
ranks are the ids. Elsewhere they are not: nano and SmolLM2 number their special tokens first, and
in nano every id is its rank + 3. So a table translates, `to_id`.
"""
import functools
import json
import re
import unicodedata
from datetime import datetime
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
import tiktoken

from plumbing.errors import UserError, time_limit
from plumbing.fields import whole
from plumbing.files import read_json, replacing, resolve

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

# GPT-2's words: "She's 12 years  old." is She|'s| 12| years| | old|. A word takes one space before
# it along. So a sentence needs no token for single spaces, and " old" is always the same token.
GPT2_WORDS = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
              r"|\s+(?!\S)|\s+")
# The same where each digit is cut out first (SmolLM2): " 12 years" is  |1|2| years. Spaces before
# a digit are the end of their piece, so they stay together.
GPT2_WORDS_AND_DIGITS = (r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+"
                         r"|\s+(?![^\s\p{N}])|\s+")


# ----- reading tokenizer.json ---------------------------------------------------------------------

def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: {letter: byte}.

    JSON holds text, and most sequences of bytes are not valid text. So each byte is written as one
    character: those that are printable in Latin-1 as themselves, the other 68 as the characters
    from 256 on. The space, 0x20, is "Ġ": the token " old" stands in the file as "Ġold".
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
                 *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


def merged_tokens(bpe: dict) -> list[str]:
    """The tokens that the merges make, in the order of learning, each once.

    A merge is written "Ġt Ã", in newer files ["Ġt", "Ã"]. Two merges may make the same token.
    Raises UserError for a merge of a token that no merge makes: Hugging Face never comes to it, and
    tiktoken would make its token from other pieces. With ignore_merges (Llama 3) words that are
    tokens need no merges, so there it may be right.
    """
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in bpe["merges"]]
    joined = dict.fromkeys(map("".join, pairs))
    strays = set().union(*pairs) - {*byte_alphabet(), *joined}
    if strays and not bpe.get("ignore_merges") or {*map(len, pairs)} - {2}:
        raise UserError("tokenizer.json: each of its merges must join two tokens, which are bytes "
                        "or made by other merges")
    return list(joined)


def split_pattern(pre_tokenizer: dict) -> str:
    """The regular expression that cuts a text into words. No token reaches over such a cut.

    Without cuts, "dog", "dog." and "dog!" would become three tokens that share nothing.

    Raises UserError for a pre-tokenizer that no regular expression of ours stands for.
    """
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    kinds = [step["type"] for step in steps]
    first, byte_level = steps[0], steps[-1]
    isolates = first.get("behavior") == "Isolated" and not first.get("invert")
    if kinds == ["Split", "ByteLevel"] and isolates and first.get("pattern"):
        pattern = first["pattern"]["Regex"]                             # Qwen, Llama 3, nano
    elif kinds == ["ByteLevel"]:
        pattern = GPT2_WORDS
    elif kinds == ["Digits", "ByteLevel"] and first.get("individual_digits"):
        pattern = GPT2_WORDS_AND_DIGITS
    else:
        raise UserError(f"tokenizer.json: the pre-tokenizer {' + '.join(kinds)} is not supported; "
                        "it must be byte-level")
    uses_gpt2 = kinds[0] != "Split"
    if byte_level.get("add_prefix_space", True) or byte_level.get("use_regex", True) != uses_gpt2:
        raise UserError("tokenizer.json: a ByteLevel step with these settings is not supported")
    return pattern


# What is read of the files. A value that stands here alone is the only one with which ids are ours.
STEP = {"type": str, "pattern?": {"Regex": str}, "behavior?": str, "invert?": bool,
        "individual_digits?": bool, "add_prefix_space?": bool, "use_regex?": bool}
ID = whole(at_most=2 ** 24)
TOKENIZER = {       # tokenizer.json
    "model": {"type": "BPE", "vocab": {str: int}, "merges": [(str, [str])], "byte_fallback?": False,
              "dropout?": None, "continuing_subword_prefix?": (None, ""),
              "end_of_word_suffix?": (None, ""), "ignore_merges?": bool},
    "normalizer?": ({"type": "NFC"}, None), "pre_tokenizer": STEP | {"pretokenizers?": [STEP]},
    "added_tokens": [{"content": str, "id": ID, "special": bool, "single_word?": False,
                      "lstrip?": False, "rstrip?": False}]}
TOKEN = (str, {"content": str}, None)
TOKENIZER_CONFIG = {"bos_token?": TOKEN, "eos_token?": TOKEN,
                    "chat_template?": (str, [{"name": str, "template": str}], None)}
END_TOKENS = {"eos_token_id?": (whole(), [whole()], None)}  # generation_config.json, config.json


def added_token_text(token) -> str | None:
    """tokenizer_config.json writes a token as a string or as {"content": ...}."""
    return token["content"] if isinstance(token, dict) else token


# ----- the tokenizer ------------------------------------------------------------------------------

class Tokenizer:
    """encode and decode as Hugging Face's tokenizers does, id for id, without its post-processor.

    So no token is added that is not in the text: the chat template writes them all.
    """

    def __init__(self, spec: dict, config: dict, template: str | None):
        """From the contents of tokenizer.json and tokenizer_config.json, and the chat template."""
        self.nfc = bool(spec.get("normalizer"))
        self.template = template
        self.bos_token = added_token_text(config.get("bos_token"))
        self.eos_token = added_token_text(config.get("eos_token"))
        self.eos_ids = set()            # of the checkpoint: from_pretrained reads them

        # The vocabulary in the order of learning. A byte that it lacks has the id None.
        alphabet, vocab = byte_alphabet(), spec["model"]["vocab"]
        merged = merged_tokens(spec["model"])
        self.to_id = [vocab.get(letter) for letter in alphabet] + [vocab[token] for token in merged]
        learned = [bytes(alphabet[letter] for letter in token) for token in [*alphabet, *merged]]
        self.bpe = tiktoken.Encoding(
            "bpe", pat_str=split_pattern(spec["pre_tokenizer"]), special_tokens={},
            mergeable_ranks={token: rank for rank, token in enumerate([*learned, b""])})
        # Of a pattern that fits nothing, words have no letters: tiktoken panics if b"" is no token.
        if self.bpe.decode_bytes(self.cut_words(PROBE)) != PROBE.encode():
            raise UserError("tokenizer.json: its pattern for words passes over parts of a text")

        # Tokens that were added after the learning. All are cut out of a text before anything else.
        # Special ones, <|im_end|>, are structure, and an answer is shown without them. Others are
        # not, as <think>. The longest comes first, because one may begin with another.
        self.added = {token["content"]: token["id"] for token in spec["added_tokens"]
                      if token["content"]}
        self.special_ids = {token["id"] for token in spec["added_tokens"] if token["special"]}
        longest_first = sorted(self.added, key=len, reverse=True)
        matches_nothing = r"(?!)"
        self.cut = re.compile("|".join(map(re.escape, longest_first)) or matches_nothing)

        # The way back: what each id stands for. The model's embedding needs n_vocab rows.
        self.to_bytes = {i: token for i, token in zip(self.to_id, learned) if i is not None}
        self.to_bytes |= {i: token.encode() for token, i in self.added.items()}
        self.n_vocab = max(self.to_bytes) + 1

    @classmethod
    def from_pretrained(cls, name_or_path) -> "Tokenizer":
        """Load tokenizer.json and, where they exist, tokenizer_config.json, chat_template.jinja.

        Raises UserError for files that are missing, broken or of another kind of tokenizer.
        """
        folder = resolve(name_or_path)
        spec, config = read_json(folder / "tokenizer.json", TOKENIZER), {}
        if (folder / "tokenizer_config.json").exists():
            config = read_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
        try:
            tokenizer = cls(spec, config, read_template(folder, config))
            tokenizer.eos_ids = read_eos_ids(folder)
        except UserError:
            raise
        except (KeyError, ValueError) as e:     # a merge of no tokens, a pattern that is none
            raise UserError(f"{folder}: its files are not a byte-level BPE tokenizer's "
                            f"({type(e).__name__}: {e})") from None
        tokenizer.files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES
                           if (folder / name).is_file()}
        return tokenizer

    def save_pretrained(self, folder):
        """Write the files that it was read from to `folder`, byte for byte."""
        for name, content in self.files.items():
            with replacing(Path(folder) / name) as part:
                part.write_bytes(content)

    def check_vocabulary(self, size: int, name):
        """Raise UserError if the embedding of the model `name`, `size` rows, lacks tokens."""
        if self.n_vocab > size or min(self.to_bytes) < 0:
            raise UserError(f"{name}: the tokenizer has {self.n_vocab} tokens, the embedding "
                            f"{size}")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. An added token that is written in it becomes that token.

        So whoever writes <|im_end|> into a question ends the turn there, as in transformers.
        """
        ids, start = [], 0
        for match in self.cut.finditer(text):
            ids += self.encode_plain(text[start:match.start()])
            ids.append(self.added[match.group()])
            start = match.end()
        return ids + self.encode_plain(text[start:])

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text without added tokens. Under NFC, decode gives the composed letters."""
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        ids = [self.to_id[rank] for rank in self.cut_words(text)]
        return [i for i in ids if i is not None]

    def cut_words(self, text: str) -> list[int]:
        """The ranks of the tokens of `text`. Raises UserError where tiktoken's pattern gives up."""
        try:
            return self.bpe.encode(text, disallowed_special=())     # encode_ordinary panics
        except ValueError:                                          # on a million spaces
            raise UserError(f"tiktoken cannot cut a text of {len(text):,} characters into words; "
                            f"it begins with {text[:40]!r}") from None

    def decode(self, ids, skip_special: bool = False) -> str:
        """The text of `ids`.

        A token may be a piece of a character. Bytes that are not valid UTF-8, as those of a
        character cut in half, become U+FFFD. Ids without a token, which an embedding may have at
        its end for the sake of a round number, become nothing.
        """
        ids = [int(i) for i in ids]
        if skip_special:
            ids = [i for i in ids if i not in self.special_ids]
        return b"".join(self.to_bytes.get(i, b"") for i in ids).decode("utf-8", errors="replace")

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool = False,
                            **variables) -> str:
        """Render [{"role": ..., "content": ...}, ...] with the model's own template.

            [{"role": "user", "content": "2 + 2?"}]   ->   <|im_start|>user
                                                           2 + 2?<|im_end|>
        add_generation_prompt: then open the assistant's turn: <|im_start|>assistant

        Raises UserError if there is no template or it refuses the messages.
        """
        if not self.template:
            raise UserError("this tokenizer has no chat template; use an instruction-tuned model")
        known = {"messages": messages, "add_generation_prompt": add_generation_prompt,
                 "tools": None, "documents": None,
                 "bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        try:
            with time_limit(2, "it"):
                text = compile_template(self.template).render(known | variables)
            if len(text) > 1_000_000 + 10 * len(str(messages)):
                raise ValueError(f"it makes {len(text):,} characters of them")
            return text
        except Exception as e:          # a stranger's program can raise anything
            raise UserError(f"the model's chat template refuses these messages: {e}") from None

    @functools.cached_property
    def end_of_turn(self) -> int | None:
        """The token with which the template closes an assistant's turn; None if there is none.

        A model learns to stop by learning this token, so it must be the right one. eos_token in
        tokenizer_config.json is often another: the base models of Qwen2.5 have <|endoftext|> there,
        and their template closes a turn with <|im_end|>. So an answer "!" is rendered, and the
        first special token after it is taken. If there is none, all that the template writes after
        the answer is learned, and generation stops at the eos token or at its limit.
        """
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        after_answer = self.apply_chat_template(turn).rpartition("!")[2]
        special = [i for i in self.encode(after_answer) if i in self.special_ids]
        return special[0] if special else None


# All kinds of characters, and runs of one that make a careless pattern try every way to cut them.
PROBE = "It's 2 quả táo \t\r\n 苹果 e\u0301 👍\x00\u200d" + "".join(c * 60 + "." for c in "aA1 !\n")


# ----- where generation stops ---------------------------------------------------------------------

def read_eos_ids(folder: Path) -> set[int]:
    """The ids that end generation according to the checkpoint: eos_token_id, an id or a list.

    As in transformers, generation_config.json comes first and config.json second. The former is
    not copied when a model is saved: it would not name the end of the turn that the model was
    trained on. save_pretrained writes all stop_ids into config.json instead.
    """
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if file.exists() and (eos := read_json(file, END_TOKENS).get("eos_token_id")) is not None:
            return set(eos) if isinstance(eos, list) else {eos}
    return set()


def stop_ids(tokenizer: Tokenizer) -> set[int]:
    """The tokens that end an answer: the template's end of turn, the tokenizer's own end of text,
    and those of the checkpoint (three in Llama 3.1, and its template writes one of them)."""
    ends = {tokenizer.end_of_turn, tokenizer.added.get(tokenizer.eos_token), *tokenizer.eos_ids}
    return ends - {None}


# ----- the chat template --------------------------------------------------------------------------
# A chat template is a program in Jinja that comes with a checkpoint, from a stranger. In plain
# Jinja it could run any command: {{ cycler.__init__.__globals__.os.popen("id").read() }}. So it
# runs in Jinja's sandbox: no attribute that begins with an underscore, no change of what it is
# given, no range() of more than 100,000 numbers.

def read_template(folder: Path, config: dict) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's: one template or several with names."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {named["name"]: named["template"] for named in template}.get("default")
    return template


@functools.cache
def compile_template(source: str) -> jinja2.Template:
    """`source` in the environment that transformers gives it: same whitespace, same functions."""
    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def strftime_now(form):
        return datetime.now().strftime(form)

    def tojson(value, **options):
        return json.dumps(value, **{"ensure_ascii": False} | options)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[GenerationBlock, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return env.from_string(source)


class GenerationBlock(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: rendered as what is inside.

    With it some templates mark an assistant's words, for trainers that mask by it. Ours does not
    need it, because dataset.py compares two renderings.
    """
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)
