"""Files that are whole or absent, JSON, and the folder of a checkpoint, local or from the hub."""
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from plumbing.errors import UserError
from plumbing.fields import check

ROOT = Path(__file__).resolve().parents[1]
NANO_BASE = ROOT / "data/nano/base"             # the embedded model, which goes by the name "nano"
# the files of a hub repository that are fetched
CHECKPOINT_FILES = ("config.json", "generation_config.json", "model*.safetensors",
                    "model.safetensors.index.json", "tokenizer*.json", "chat_template*")


@contextlib.contextmanager
def replacing(path: Path, make=Path.touch):
    """Yield a name next to `path` to write to. It is renamed to `path` if nothing goes wrong.

    make: Path.mkdir for a folder; `path` must be new or empty then. If something goes wrong, what
    is half written is deleted and `path` is what it was before.
    """
    path = Path(os.path.realpath(path))         # a link stays one
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is a device or a pipe, and would be replaced; give a file")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        make(part)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is gone, or no file can be made in it; make the folder and "
                        "start the command again") from None
    try:
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)            # as usual here: safetensors lets nobody but the owner read
        os.replace(part, path)
    except BaseException as e:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        code = re.search(r"\(os error (\d+)\)", str(e))
        if code and isinstance(e, SafetensorError):     # it has no errno of its own
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
        if isinstance(e, OSError) and e.errno and not e.filename:
            e.filename = str(path)                      # while writing, the system names none
        raise


def make_folder(path) -> Path:
    """Make the folder and those above it. Raises UserError if it cannot be made."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: a file is in the way of this folder; give another one") from None
    except FileNotFoundError:           # below /proc, for instance
        raise UserError(f"{path}: no folder can be made here; give another one") from None
    return path


def read_json(path: Path, shape=dict) -> dict:
    """The JSON object in `path`. Raises UserError if there is none of this `shape` (fields.py)."""
    existing(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON: {e}") from None
    check(content, shape, path)
    return content


def existing(path: Path) -> Path:
    """`path`. Raises UserError unless it is a file: no folder, and no pipe to wait for."""
    if path.is_file():
        return path
    folder = path.parent
    if (folder / "state").is_dir():
        raise UserError(f"{folder} holds a run that is not finished, and has no {path.name} "
                        "yet; finish it: the command that began it, with --resume")
    if path.name == "config.json" and (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter, and no model; give it as --adapter, or make a "
                        "model of it with export.py")
    if path.name == "adapter_config.json" and (folder / "config.json").is_file():
        raise UserError(f"{folder} holds a model, and no adapter; give it as --model")
    if path.exists():
        raise UserError(f"{path} is no file, but a folder, a device or a pipe")
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    raise UserError(f"{folder} has no {path.name}; is it the right folder?")


def hash_file(path: Path) -> str:
    with open(existing(path), "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: Path, content: dict):
    with replacing(path) as part:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


# ----- tensors ------------------------------------------------------------------------------------

def read_tensors(path: Path) -> dict:
    """{name: tensor} of a safetensors file of weights."""
    with open_tensors(path) as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}
    for name, tensor in tensors.items():
        check_weight(path, name, tensor)
    return tensors


@contextlib.contextmanager
def open_tensors(path: Path, remedy="fetch or make it again"):
    """Yield an open safetensors file. Raises UserError for a damaged one, which says the remedy."""
    try:
        with safe_open(existing(path), framework="pt") as f:
            yield f
    except SafetensorError as e:
        raise UserError(f"{path} is damaged or incomplete ({e}); {remedy}") from None


def check_weight(path, name: str, tensor):
    """Raise UserError unless `tensor` holds real numbers, all of them finite."""
    if not tensor.is_floating_point() or tensor.itemsize == 1:      # 8 bits need scales
        raise UserError(f"{path}: {name} is of type {tensor.dtype}, and a weight must be of "
                        "float32, bfloat16, float16 or float64")
    if tensor.numel() and not all(map(math.isfinite, tensor.aminmax())):        # nan is both ends
        raise UserError(f"{path}: {name} holds a number that is infinite or not a number; did its "
                        "run diverge?")


# ----- a checkpoint's folder ----------------------------------------------------------------------

def resolve(name_or_path, files=CHECKPOINT_FILES) -> Path:
    """The folder of a checkpoint: a folder, the embedded "nano", or a hub repository.

    A hub repository is "owner/name" or "owner/name@revision". Its `files` (names, with *) are
    fetched into the hub's cache. HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HOME mean what they
    always mean. Raises UserError that says what to do.
    """
    if name_or_path == "nano":
        return NANO_BASE
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    repo, _, revision = str(name_or_path).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or repo.startswith("."):
        raise UserError(f"{name_or_path}: no such folder, and not the name of a hub repository "
                        "(owner/name or owner/name@revision)")
    return fetch(repo, revision or None, list(files))


def fetch(repo: str, revision: str | None, files: list[str]) -> Path:
    # not at the top of the file, because it takes a second
    from huggingface_hub import constants, errors, snapshot_download
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files))
    except errors.GatedRepoError:
        raise UserError(f"{repo} asks for its licence to be accepted: do so on its page, then set "
                        "HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UserError(f"the hub has no repository {repo!r} (or it is private: set HF_TOKEN)"
                        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"the hub's {repo} has no revision {revision!r}") from None
    except Exception as e:      # no route, a proxy's page, a full disk: there are many kinds
        if getattr(getattr(e, "response", None), "status_code", 0) == 401:
            raise UserError("the hub refuses the token in HF_TOKEN; renew it, or unset it for a "
                            "public model") from None
        why, remedy = str(e).strip().partition("\n")[0][:200] or type(e).__name__, "go online once"
        if constants.HF_HUB_OFFLINE:
            why, remedy = "HF_HUB_OFFLINE is set", "unset it and go online once"
        raise UserError(f"cannot fetch {repo} from the hub, and it is not in the cache ({why}); "
                        f"{remedy}, set HF_ENDPOINT to a mirror, or give a folder with the files"
                        ) from None


def cached_folder(name: str) -> Path:
    """The folder of a hub repository in the hub's cache. Raises UserError if it is not there."""
    from huggingface_hub import errors, try_to_load_from_cache
    repo, _, revision = name.partition("@")
    try:
        path = try_to_load_from_cache(repo, "config.json", revision=revision or None)
        if isinstance(path, str):
            return Path(path).parent
    except errors.HFValidationError:        # not the name of a repository: a folder that is gone
        pass
    raise UserError(f"{name} is not on this machine; --model says where else it is")
