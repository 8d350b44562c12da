"""tokenizer.json, Hugging Face's description of a byte-level BPE, turned into a tiktoken.Encoding; and the chat template.

A text becomes ids in four steps, and tokenizer.json describes each:

    added_tokens    "<|im_start|>" and its like are cut out first, the longest first, and never split
    normalizer      what lies between them is brought to Unicode's form NFC (Qwen), or left as it is
    pre_tokenizer   a regular expression cuts it into words, which no token may cross
    model           the bytes of each word are merged, pair by pair, the earliest-learned merge first

tiktoken does the last two, in Rust. It numbers tokens by the order in which they were learned, which is the order of
their merges; where a vocabulary numbers them otherwise (SmolLM2 puts its special tokens first), a table translates.
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

from plumbing.errors import UserError
from plumbing.files import read_json, replacing, resolve

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT2 over pieces that end at each digit (SmolLM2): spaces before a digit end their piece, so they stay together
GPT2_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: tokenizer.json writes the token " a" as "Ġa"."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def split_pattern(pre_tokenizer: dict) -> str:
    """The regular expression that cuts a text into words. Raises UserError for a pre-tokenizer that it cannot express."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] for step in steps]
    if kinds == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
        pattern = steps[0]["pattern"]["Regex"]                                                  # Qwen, Llama 3
    elif kinds == ["ByteLevel"]:
        pattern = GPT2
    elif kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        pattern = GPT2_DIGITS
    else:
        raise UserError(f"tokenizer.json: the pre-tokenizer {' + '.join(kinds)} is not supported; it has to be byte-level")
    if steps[-1]["add_prefix_space"] or steps[-1]["use_regex"] != (kinds[0] != "Split"):
        raise UserError("tokenizer.json: a ByteLevel step with these settings is not supported")
    return pattern


class Tokenizer:
    """encode and decode as the `tokenizers` library does without its post-processor: no token is added that is not in the text."""

    def __init__(self, spec: dict, config: dict, template: str | None):
        bpe = spec["model"]
        if bpe["type"] != "BPE" or bpe.get("byte_fallback"):
            raise UserError(f"tokenizer.json: a {bpe['type']} model is not supported; it has to be a byte-level BPE")
        normalizer = (spec.get("normalizer") or {"type": None})["type"]
        if normalizer not in (None, "NFC"):
            raise UserError(f"tokenizer.json: the normalizer {normalizer} is not supported; it has to be NFC or none")
        self.nfc = normalizer == "NFC"
        alphabet = byte_alphabet()
        merges = [m.split(" ") if isinstance(m, str) else m for m in bpe["merges"]]
        learned = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges)])               # in order, each token once
        learned = [token for token in learned if token in bpe["vocab"] or token in alphabet]
        self.to_id = [bpe["vocab"].get(token) for token in learned]     # None: a byte that the vocabulary lacks
        ranks = {bytes(alphabet[c] for c in token): rank for rank, token in enumerate(learned)}
        self.bpe = tiktoken.Encoding("bpe", pat_str=split_pattern(spec["pre_tokenizer"]), mergeable_ranks=ranks, special_tokens={})
        for t in spec["added_tokens"]:
            for option in ("single_word", "lstrip", "rstrip"):
                if t.get(option):
                    raise UserError(f"tokenizer.json: the added token {t['content']} has {option}, which is not supported")
        self.added = {t["content"]: t["id"] for t in spec["added_tokens"]}
        self.special_ids = {t["id"] for t in spec["added_tokens"] if t["special"]}
        self.cut = re.compile("|".join(map(re.escape, sorted(self.added, key=len, reverse=True))) or r"(?!)")
        self.to_bytes = {i: bytes(alphabet[c] for c in token) for token, i in zip(learned, self.to_id) if i is not None}
        self.to_bytes |= {i: token.encode() for token, i in self.added.items()}
        self.n_vocab = max(self.to_bytes) + 1
        self.bos_token, self.eos_token = (content(config.get(name)) for name in ("bos_token", "eos_token"))
        self.template = template
        self.eos_ids = set()            # of the checkpoint: from_pretrained reads them

    @classmethod
    def from_pretrained(cls, name_or_path) -> "Tokenizer":
        """Load tokenizer.json and, if they are there, tokenizer_config.json and chat_template.jinja."""
        folder = resolve(name_or_path)
        spec = read_json(folder / "tokenizer.json")
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        template = config.get("chat_template")
        if isinstance(template, list):              # several named templates
            template = {t["name"]: t["template"] for t in template}.get("default")
        try:
            if (folder / "chat_template.jinja").exists():
                template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
            tokenizer = cls(spec, config, template)
            tokenizer.eos_ids = read_eos_ids(folder)
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as e:          # null, say, where a table should be
            raise UserError(f"{folder}: its files are not a byte-level BPE tokenizer's ({type(e).__name__}: {e})") from None
        tokenizer.files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).exists()}
        return tokenizer

    def save_pretrained(self, folder):
        """Write the files that it was read from beside a model's weights."""
        for name, data in self.files.items():
            with replacing(Path(folder) / name) as part:
                part.write_bytes(data)

    def check_vocabulary(self, size: int, name):
        """Raise UserError if the embedding of the model called `name`, of `size` rows, lacks some of the tokens."""
        if self.n_vocab > size:
            raise UserError(f"{name}: the tokenizer has {self.n_vocab} tokens, the embedding {size}")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; an added token written in it becomes that token, as in `tokenizers`."""
        ids, start = [], 0
        for match in self.cut.finditer(text):
            ids += self.encode_plain(text[start:match.start()])
            ids.append(self.added[match.group()])
            start = match.end()
        return ids + self.encode_plain(text[start:])

    def encode_plain(self, text: str) -> list[int]:
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        return [i for rank in self.bpe.encode_ordinary(text) if (i := self.to_id[rank]) is not None]

    def decode(self, ids, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are no valid UTF-8, as of a character cut in half, become U+FFFD."""
        keep = (i for i in map(int, ids) if not (skip_special and i in self.special_ids))
        return b"".join(self.to_bytes.get(i, b"") for i in keep).decode("utf-8", errors="replace")

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool = False, **variables) -> str:
        """Render [{"role", "content"}, ...] with the model's own template, in a sandbox: a template is a stranger's program."""
        if not self.template:
            raise UserError("this tokenizer has no chat template; use an instruction-tuned model")
        try:
            return compiled(self.template).render({
                "messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None,
                "bos_token": self.bos_token or "", "eos_token": self.eos_token or "", **variables})
        except Exception as e:          # a stranger's program can raise anything
            raise UserError(f"the model's chat template refuses these messages: {e}") from None

    @functools.cached_property
    def end_of_turn(self) -> int | None:
        """The token with which the template closes an assistant's turn; None if it closes it with no token of its own."""
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        end = self.encode(self.apply_chat_template(turn).rpartition("!")[2])
        return next((i for i in end if i in self.special_ids), None)


def read_eos_ids(folder: Path) -> set[int]:
    """The ids that end generation according to the checkpoint: eos_token_id, an id or a list.

    As in transformers, generation_config.json comes first and config.json second. The former is
    not copied when a model is saved: it would not name the end of the turn that the model was
    trained on. save_pretrained writes all stop_ids into config.json instead.
    """
    for name in ("generation_config.json", "config.json"):
        eos = read_json(folder / name).get("eos_token_id") if (folder / name).exists() else None
        if eos is not None:
            return set(eos) if isinstance(eos, list) else {eos}
    return set()


def stop_ids(tokenizer: Tokenizer) -> set[int]:
    """The tokens that end an answer: the template's end of turn, the tokenizer's own end of text,
    and those of the checkpoint (three in Llama 3.1, and its template writes one of them)."""
    ends = {tokenizer.end_of_turn, tokenizer.added.get(tokenizer.eos_token), *tokenizer.eos_ids}
    return ends - {None}


def content(token) -> str | None:
    """tokenizer_config.json writes a token as a string or as {"content": ...}."""
    return token["content"] if isinstance(token, dict) else token


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, with which some templates mark an assistant's words: rendered as they are."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


@functools.cache
def compiled(template: str) -> jinja2.Template:
    """The environment that transformers gives a template, rebuilt: same whitespace, same functions."""
    def raise_exception(message):
        raise jinja2.TemplateError(message)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                       extensions=[Generation, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False} | options)
    env.globals |= {"raise_exception": raise_exception, "strftime_now": lambda form: datetime.now().strftime(form)}
    return env.from_string(template)
