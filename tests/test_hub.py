"""A stand-in for the hub serves a checkpoint to the real huggingface_hub; then it goes away."""
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
WRONG_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
NO_REPOSITORY = "the hub has no repository {!r} (or it is private: set"
REFUSALS = {
    # what a repository answers: status and headers; words of the one line that a user reads
    "owner/missing": (404, {"X-Error-Code": "RepoNotFound"}, NO_REPOSITORY.format("owner/missing")),
    "owner/private": (401, {"X-Error-Code": "RepoNotFound"}, NO_REPOSITORY.format("owner/private")),
    "owner/gated": (
        403, {"X-Error-Code": "GatedRepo"},
        "owner/gated asks for its licence to be accepted: do so on its page"),
    "owner/token": (401, WRONG_TOKEN, "the hub refuses the token in HF_T"),
    "owner/down": (
        500, {},
        "cannot fetch owner/down from the hub, and it is not in the cache (Got: HfHubHTTPError: "
        "Server error"),
    "owner/portal": (           # a proxy's own page
        200, {"Content-Type": "text/html"}, "cannot fetch owner/portal from the hub"),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The four requests of snapshot_download: a revision's commit, its tree, a file's head, a file.

        /api/models/owner/name/revision/v1      /api/models/owner/name/tree/COMMIT
        /owner/name/resolve/COMMIT/config.json
    """

    def do_GET(self):
        self.server.seen.append((self.command, self.path, self.headers.get("authorization")))
        path = self.path.split("?")[0].removeprefix("/api/models").strip("/")
        owner, name, what, revision, file = (path.split("/") + [""] * 3)[:5]
        repo = f"{owner}/{name}"
        if repo in REFUSALS:
            status, headers, _ = REFUSALS[repo]
            self.answer(b"<html>not what was asked for</html>", headers, status)
        elif not what or what == "revision" and revision not in COMMITS:
            self.answer(b"", {"X-Error-Code": "RevisionNotFound"}, 404)
        elif what == "revision":
            self.answer(json.dumps({"id": repo, "sha": COMMITS[revision]}).encode())
        elif what == "tree":
            self.answer_tree(self.server.folders[revision])
        else:
            self.answer_file(repo, revision, self.server.folders[revision] / file)

    do_HEAD = do_GET

    def answer_tree(self, folder):
        files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f)}
                 for f in sorted(folder.iterdir())]
        self.answer(json.dumps(files).encode())

    def answer_file(self, repo, revision, file):
        body = file.read_bytes()
        headers = {"X-Repo-Commit": revision, "ETag": f'"{etag(file)}"',
                   "Content-Length": str(len(body))}
        if repo == "owner/cut":
            body = body[:len(body) // 2]
        self.answer(body, headers)

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
    """A running hub with the two revisions of owner/name, and a cache folder for its client.

    hub.stop() takes it off the net.
    """
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


# Trains one step with each model named, and prints the exit code and what it wrote to stderr.
LOAD = """
import contextlib, io, json, sys, time
import huggingface_hub.utils._http as client
import train
client.time.sleep = lambda seconds: None        # it waits between its tries; a test need not
data, *names = sys.argv[1:]
for name in names:
    argv = ["--model", name, "--data", data, "--max_steps", "1", "--out", f"{data}/{name}"]
    error, code = io.StringIO(), 0
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            train.main([*argv, "--overwrite"])
        except SystemExit as e:
            code = e.code
    print(json.dumps([name, code, error.getvalue()]))
"""


def hub_environment(hub, cache, **changes):
    """The variables that make huggingface_hub ask our hub. It reads them when it is imported."""
    return os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | changes


@pytest.fixture
def load(hub, tmp_path):
    """load(*names, **environment) -> {name: (exit code, stderr)}, in a process of its own."""
    write_chat(tmp_path)

    def run(*names, **changes):
        ran = subprocess.run(
            [sys.executable, "-c", LOAD, tmp_path, *names], cwd=REPO,
            env=hub_environment(hub, hub.cache, **changes), text=True, capture_output=True,
            timeout=600)
        assert ran.returncode == 0, ran.stderr
        ended = map(json.loads, ran.stdout.splitlines())
        return {name: (code, error) for name, code, error in ended}
    return run


def test_what_the_hub_refuses_ends_in_one_line(load):
    ended = load(*REFUSALS, "owner/cut", "owner/name@v2")
    expected = {name: words for name, (_, _, words) in REFUSALS.items()}
    expected["owner/cut"] = "cannot fetch owner/cut from the hub"
    expected["owner/name@v2"] = "the hub's owner/name has no revision 'v2'"
    assert set(ended) == set(expected)
    for name, words in expected.items():
        assert words in one_line(*ended[name])


def test_a_plan_fetches_config_json_alone(hub, tmp_path):
    """And without a hub it ends in one line."""
    def run_plan(**changes):
        return subprocess.run(
            [sys.executable, REPO / "plan.py", "--model=owner/name@v1"],
            env=hub_environment(hub, tmp_path, **changes), text=True, capture_output=True)

    offline = run_plan(HF_HUB_OFFLINE="1")
    line = one_line(offline.returncode, offline.stderr)
    assert "cannot fetch owner/name from the hub" in line
    hub.seen.clear()
    assert "owner/name@v1: lora" in run_plan().stdout
    fetched = {path.split("/")[-1] for _, path, _ in hub.seen if "/resolve/" in path}
    assert fetched == {"config.json"}


@pytest.mark.slow
def test_a_checkpoint_is_fetched_once_and_then_needs_no_hub(load, hub, tmp_path):
    """Two revisions with other weights. Then the hub goes away, and the client knows it or not."""
    names = {"owner/name": "main", "owner/name@v1": "v1"}
    assert load(*names) == {"owner/name": (0, ""), "owner/name@v1": (0, "")}

    # what was fetched, and with which token
    of_main = f"/owner/name/resolve/{COMMITS['main']}"
    fetched = [path.split("/")[-1] for verb, path, _ in hub.seen
               if verb == "GET" and of_main in path]
    shards = {p.name for p in hub.folders[COMMITS["main"]].glob("model-*.safetensors")}
    assert len(shards) > 2 and shards < set(fetched) and len(fetched) == len(set(fetched))
    assert set(fetched) - shards == {                               # and no pytorch_model.bin
        "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json"}
    tokens = {token for _, path, token in hub.seen if "owner/name" in path}
    assert tokens == {"Bearer hf_secret"}

    # what was trained is what the hub has
    before = {name: numbers(tmp_path / name) for name in names}
    assert before["owner/name"][0]["test_nll"] != before["owner/name@v1"][0]["test_nll"]
    for name, revision in names.items():
        train.main(command(hub.folders[COMMITS[revision]], tmp_path, tmp_path / revision, rank=64,
                           lr=2e-4, max_steps=1, eval_steps=10))
        local = [row["test_nll"] for row in numbers(tmp_path / revision)]
        assert local == [row["test_nll"] for row in before[name]]

    # without the hub
    hub.stop()
    for offline in ("0", "1"):
        ended = load(*names, "owner/other", HF_HUB_OFFLINE=offline)
        assert ended["owner/name"] == ended["owner/name@v1"] == (0, "")
        line = one_line(*ended["owner/other"])
        for words in ("cannot fetch owner/other from the hub, and it is not in the cache (",
                      "go online once", "HF_ENDPOINT", "a folder"):
            assert words in line
        assert {name: numbers(tmp_path / name) for name in before} == before


@pytest.mark.parametrize("method", ["lora", "full"])
def test_no_network_unless_a_name_asks_for_it(checkpoint, chat, tmp_path, monkeypatch, method):
    """Saving an adapter may not look up its base, even if HF_HUB_OFFLINE does not forbid it."""
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
