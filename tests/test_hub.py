"""A stand-in for the hub on the loopback serves a checkpoint in shards to the real huggingface_hub; then it goes away."""
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from conftest import REPO, tiny
from runs import command, numbers, one_line, write_chat

import train

COMMITS = {"main": "1" * 40, "v1": "2" * 40}        # two revisions: "v1" has other weights
REFUSALS = {            # what a repository answers, and words of the one line that a user reads
    "owner/missing": (404, {"X-Error-Code": "RepoNotFound"}, "the hub has no repository 'owner/missing' (or it is private: set"),
    "owner/private": (401, {"X-Error-Code": "RepoNotFound"}, "the hub has no repository 'owner/private' (or it is private: set"),
    "owner/gated": (403, {"X-Error-Code": "GatedRepo"}, "owner/gated asks for its licence to be accepted: do so on its page"),
    "owner/token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "the hub refuses the token in HF_T"),
    "owner/down": (500, {}, "cannot fetch owner/down from the hub, and it is not in the cache (Got: HfHubHTTPError: Server error"),
    "owner/portal": (200, {"Content-Type": "text/html"}, "cannot fetch owner/portal from the hub"),     # a proxy's own page
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The four requests that snapshot_download makes: a revision's commit, its tree, a file's head, the file."""

    def do_GET(self):
        self.server.seen.append((self.command, self.path, self.headers.get("authorization")))
        path = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        repo, what, revision, file = "/".join(path[:2]), *(path[2:] + [""] * 3)[:3]
        if repo in REFUSALS:
            self.answer(b"<html>not what was asked for</html>", *REFUSALS[repo][1::-1])
        elif what == "revision" and revision not in COMMITS or not what:
            self.answer(b"", {"X-Error-Code": "RevisionNotFound"}, 404)
        elif what == "revision":
            self.answer(json.dumps({"id": repo, "sha": COMMITS[revision]}).encode())
        elif what == "tree":
            self.answer(json.dumps([{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f)}
                                    for f in sorted(self.server.folders[revision].iterdir())]).encode())
        else:
            body, headers = (self.server.folders[revision] / file).read_bytes(), {"X-Repo-Commit": revision}
            headers |= {"ETag": f'"{etag(self.server.folders[revision] / file)}"', "Content-Length": str(len(body))}
            self.answer(body[:len(body) // 2] if repo == "owner/cut" else body, headers)

    do_HEAD = do_GET

    def answer(self, body, headers=(), status=200):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def etag(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A running hub, with the two revisions of owner/name, and a cache of its own; hub.stop() takes it off the net."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.folders, server.cache = [], {}, tmp_path_factory.mktemp("cache")
    for seed, commit in enumerate(COMMITS.values()):
        folder = server.folders[commit] = tmp_path_factory.mktemp("repository")
        tiny("qwen2", folder, shard="40KB", seed=seed)
        (folder / "pytorch_model.bin").write_bytes(b"never to be fetched")
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop():
        server.shutdown()
        server.server_close()

    server.stop = stop
    yield server
    stop()


# trains one step with each model named, and prints the exit code and what it wrote to stderr
LOAD = """
import contextlib, io, json, sys, time
import huggingface_hub.utils._http as client
import train
client.time.sleep = lambda seconds: None        # it waits between its tries; a test need not
data, *names = sys.argv[1:]
for name in names:
    error, code = io.StringIO(), 0
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            train.main(["--model", name, "--data", data, "--max_steps", "1", "--out", data + "/" + name, "--overwrite"])
        except SystemExit as e:
            code = e.code
    print(json.dumps([name, code, error.getvalue()]))
"""


@pytest.fixture
def load(hub, chat, tmp_path):
    """load(*names, **environment) -> {name: (exit code, stderr)}, in a process of its own, for the client reads it at import."""
    write_chat(tmp_path)

    def run(*names, **env):
        env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(hub.cache), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret",
                            "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | env
        ran = subprocess.run([sys.executable, "-c", LOAD, tmp_path, *names], cwd=REPO, env=env, text=True, capture_output=True,
                             timeout=600)
        assert ran.returncode == 0, ran.stderr
        return {name: (code, error) for name, code, error in map(json.loads, ran.stdout.splitlines())}
    return run


def test_what_the_hub_refuses_ends_in_one_line(load):
    ended = load(*REFUSALS, "owner/cut", "owner/name@v2")
    lines = {name: words for name, (_, _, words) in REFUSALS.items()}
    lines |= {"owner/cut": "cannot fetch owner/cut from the hub", "owner/name@v2": "the hub's owner/name has no revision 'v2'"}
    assert set(ended) == set(lines)
    for name, words in lines.items():
        one_line(*ended[name])
        assert words in ended[name][1]


def test_a_plan_fetches_config_json_alone(hub, tmp_path):
    """And without a hub ends in one line."""
    def plan(**env):
        env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret"} | env
        return subprocess.run([sys.executable, REPO / "plan.py", "--model=owner/name@v1"], env=env, text=True, capture_output=True)

    offline = plan(HF_HUB_OFFLINE="1")
    assert "cannot fetch owner/name from the hub" in one_line(offline.returncode, offline.stderr)
    hub.seen.clear()
    assert "owner/name@v1: lora" in plan().stdout
    assert {path.split("/")[-1] for _, path, _ in hub.seen if "/resolve/" in path} == {"config.json"}


def test_a_checkpoint_is_fetched_once_and_then_needs_no_hub(load, hub, tmp_path):
    """Two revisions with other weights; then the hub goes away, with the client told so and not."""
    assert load("owner/name", "owner/name@v1") == {"owner/name": (0, ""), "owner/name@v1": (0, "")}
    gets = [path for verb, path, _ in hub.seen if verb == "GET"]
    fetched = [path.split("/")[-1] for path in gets if f"/owner/name/resolve/{COMMITS['main']}" in path]
    shards = [p.name for p in hub.folders[COMMITS["main"]].glob("model-*.safetensors")]
    assert len(shards) > 2 and set(shards) < set(fetched) and len(fetched) == len(set(fetched))
    assert set(fetched) - set(shards) == {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
                                          "tokenizer_config.json"}              # and no pytorch_model.bin
    assert {token for _, path, token in hub.seen if "owner/name" in path} == {"Bearer hf_secret"}
    before = {name: numbers(tmp_path / name) for name in ("owner/name", "owner/name@v1")}
    assert before["owner/name"][0]["test_nll"] != before["owner/name@v1"][0]["test_nll"]
    for name, commit in (("owner/name", "main"), ("owner/name@v1", "v1")):      # what was trained is what the hub has
        train.main(command(hub.folders[COMMITS[commit]], tmp_path, tmp_path / commit, rank=64, lr=2e-4, max_steps=1, eval_steps=10))
        assert [row["test_nll"] for row in numbers(tmp_path / commit)] == [row["test_nll"] for row in before[name]]
    hub.stop()
    for offline in ("0", "1"):
        ended = load("owner/name", "owner/name@v1", "owner/other", HF_HUB_OFFLINE=offline)
        assert ended["owner/name"] == ended["owner/name@v1"] == (0, "")
        one_line(*ended["owner/other"])
        assert all(words in ended["owner/other"][1] for words in (
            "cannot fetch owner/other from the hub, and it is not in the cache (", "go online once", "HF_ENDPOINT", "a folder"))
        assert {name: numbers(tmp_path / name) for name in before} == before


@pytest.mark.parametrize("method", ["lora", "full"])
def test_no_network_unless_a_name_asks_for_it(checkpoint, chat, tmp_path, monkeypatch, method):
    """Saving an adapter may not look up its base. HF_HUB_OFFLINE is not what keeps it from that."""
    tried = []

    def connect(*args, **_):
        tried.append(args)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, connect)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, connect)
    train.main(command(checkpoint(), chat, tmp_path, method=method))
    assert tried == [] and (tmp_path / "tokenizer.json").exists()
    with pytest.raises(SystemExit):             # where a name does ask, the block shows
        train.main(command("owner/name", chat, tmp_path / "hub"))
    assert tried
