"""Fetching from the Hub: the real client against a small look-alike of the Hub on this machine."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import HFValidationError, validate_repo_id

from minit2v import cli, hub, limits

ID = "someone/tiny-model"
LFS = (".safetensors", ".bin", ".pth", ".ckpt")


@dataclass
class Repo:
    files: dict[str, bytes]
    told: dict[str, tuple] = field(default_factory=dict)        # path -> (size, hash) that the listing claims
    commit: str = "c0ffee" + "0" * 34
    tags: tuple = ("license:cc-by-nc-4.0",)
    token: str | None = None                                    # what one must send to see it at all
    gated: bool = False

    def entry(self, path):
        """A file in the answer of /api/models/ID?blobs=true."""
        content = self.files[path]
        if path.endswith(LFS):
            size, sha = self.told.get(path, (len(content), hashlib.sha256(content).hexdigest()))
            return {"rfilename": path, "size": size, "blobId": "1" * 40,
                    "lfs": {"size": size, "sha256": sha, "pointerSize": 135}}
        size, sha = self.told.get(path, (len(content), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()))
        return {"rfilename": path, "size": size, "blobId": sha}


class LookAlike(ThreadingHTTPServer):
    """What the Hub does for its client: list a repository, serve small files, send to a store for the large ones."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.served: list[tuple[str, str | None]] = []          # path and Range of each content that was asked for
        self.asked: list[str] = []                              # all requests, as "GET /api/models/..."
        self.lost: set[str] = set()                             # listed, and yet 404
        self.cut: dict[str, int] = {}                           # path -> hang up after so many bytes, once
        self.dies = self.down = False                           # whether a cut brings it down; then contents get 503
        self.api_status, self.api_body, self.delay, self.stall = 200, None, 0.0, threading.Event()
        self.stall.set()                                        # cleared: large ones stop half-way until it is set


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LookAlike

    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            return self.list(found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(found[1], found[3])
        if found := re.fullmatch(r"/store/([^/]+/[^/]+)/(.+)", path):
            if "Authorization" in self.headers:
                return self.answer(400, b"the store must not see tokens")
            return self.content(self.server.repos[found[1]], found[2])
        self.answer(404, b"no such page")

    do_HEAD = do_GET

    def list(self, hub_id):
        time.sleep(self.server.delay)
        if self.server.api_body is not None or self.server.api_status != 200:
            return self.answer(self.server.api_status, self.server.api_body or b"")
        if repo := self.find(hub_id):
            files = [repo.entry(path) for path in repo.files]
            if "blobs" not in parse_qs(urlsplit(self.path).query):
                files = [{"rfilename": file["rfilename"]} for file in files]
            self.answer(200, json.dumps({"id": hub_id, "sha": repo.commit, "siblings": files, "private": False,
                                         "tags": repo.tags, "downloads": 0, "likes": 0}).encode())

    def resolve(self, hub_id, path):
        if not (repo := self.find(hub_id)):
            return
        if repo.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if path not in repo.files or path in self.server.lost:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": repo.commit}
        entry = repo.entry(path)
        if "lfs" not in entry:
            return self.content(repo, path, {**headers, "ETag": f'"{entry["blobId"]}"'})
        headers |= {"X-Linked-Etag": f'"{entry["lfs"]["sha256"]}"', "X-Linked-Size": str(entry["size"])}
        store = self.server.url.replace("127.0.0.1", "localhost")               # another host, as on the Hub
        self.answer(302, b"", {**headers, "Location": f"{store}/store/{hub_id}/{path}"})

    def content(self, repo, path, headers=None):
        data, wanted = repo.files[path], self.headers.get("Range")
        if self.command == "GET":
            self.server.served.append((path, wanted))
            if self.server.down:
                return self.answer(503, b"")
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        more = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if wanted else {}
        self.answer(206 if wanted else 200, data[begin:], {**(headers or {}), **more}, self.server.cut.pop(path, None))

    def find(self, hub_id):
        repo = self.server.repos.get(hub_id)
        sent = self.headers.get("Authorization")
        if repo is None or (repo.token and sent != f"Bearer {repo.token}"):
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def answer(self, status, body, headers=None, cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not self.server.stall.is_set() and len(body) > 1e6:
            self.wfile.write(body[:len(body) // 2])
            self.server.stall.wait(100)
            body = body[len(body) // 2:]
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True                        # hangs up, though more was promised
            self.server.down = self.server.dies

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    one = LookAlike()
    thread = threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield one
    one.stall.set()
    one.shutdown()
    one.server_close()


@pytest.fixture
def cache(server, tmp_path, monkeypatch):
    """An empty cache, and the client in this process pointed to it and to the look-alike (it reads the environment
    only when it is imported; the tests with processes of their own set the environment)."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)         # not 10 MB; it keeps whole chunks of a cut file
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "cache"


def noise(seed, size=30_000):
    return random.Random(seed).randbytes(size)


def small_files():
    files = {"model_index.json": json.dumps({"_class_name": "TextToVideoSDPipeline",
                                             "unet": ["diffusers", "UNet3DConditionModel"]}).encode()}
    for path in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
                 "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"):
        files[path] = f'{{"of": "{path}"}}'.encode()
    return files


def diffusers_repo(**more):
    """The released repository in small: each network in four files, and things that nobody needs."""
    files = {**small_files(), "README.md": b"card", ".gitattributes": b"*", "clips/one.webp": b"x",
             "feature_extractor/config.json": b"{}", "unet/old/config.json": b"{}"}
    for variant in ("", ".fp16"):
        for path in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
            files[f"{path}{variant}.safetensors"] = noise(path + variant)
            files[f"{path.replace('/model', '/pytorch_model')}{variant}.bin"] = noise(path + variant + "bin")
    return Repo(files, **more)


SAFE = ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"]
UNET = "unet/diffusion_pytorch_model.safetensors"


def paths_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read_all(folder):
    return {name: (folder / name).read_bytes() for name in paths_in(folder)}


# --- what is fetched ---

@pytest.mark.parametrize("half, variant", [(False, ""), (True, ".fp16")])
def test_only_what_is_needed_is_fetched(server, cache, capsys, half, variant):
    repo = server.repos[ID] = diffusers_repo()
    needed = {*small_files(), *(f"{path}{variant}.safetensors" for path in SAFE)}
    folder = hub.fetch(ID, half=half)
    assert folder == cache / "models--someone--tiny-model" / "snapshots" / repo.commit
    assert sorted(server.served) == sorted((path, None) for path in needed)      # each once, and nothing else
    assert read_all(folder) == {path: repo.files[path] for path in needed}
    out, err = capsys.readouterr()
    assert out == "" and "fetching 0.00 GB" in err and "\r" not in err           # no bar where nobody watches
    assert err.count("CC-BY-NC-4.0") == 1 and "commercial" in err and "not redistribute" in err

    server.served.clear()
    assert hub.fetch(ID, half=half) == folder and server.served == []
    assert capsys.readouterr() == ("", "")                                       # the licence once, not each time


def test_the_released_model_in_numbers(server, cache, capsys):
    """The real sizes and hashes: 3.7 GB in half precision, 7.3 else; the large files by name before it starts."""
    weights = {name: (facts["bytes"], facts["sha256"]) for name, facts in hub.RELEASED["files"].items() if "/" in name}
    assert len(weights) == 12 and all(len(sha) == 64 for _, sha in weights.values())
    server.repos[hub.DEFAULT] = diffusers_repo(told=weights)
    assert cli.main(["download", "--list", "--half"]) == 0
    out, err = capsys.readouterr()
    assert "3.67 GB to fetch, licence: cc-by-nc-4.0" in out
    assert "2,822.7 MB   to fetch  unet/diffusion_pytorch_model.fp16.safetensors" in out
    assert cli.main(["download", "--list", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["hub_id"] == hub.DEFAULT == cli.RELEASED
    assert round(sum(file["bytes"] for file in answer["files"]) / 1e9, 2) == 7.34
    assert {file["path"] for file in answer["files"] if file["cached"]} == {"model_index.json"}
    assert {path for path, _ in server.served} == {"model_index.json"}           # all that a look needs


@pytest.mark.parametrize("half, index, shards", [
    (False, ".safetensors.index.json", ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors"]),
    (True, ".safetensors.index.fp16.json", [".fp16-00001-of-00001.safetensors"]),
])
def test_shards(server, cache, half, index, shards):
    name = "diffusion_pytorch_model"
    unused = [f"unet/{name}-00001-of-00009.safetensors", "vae/config.fp16.index.json"]         # of another save
    weights = [*(f"unet/{name}{shard}" for shard in shards), f"vae/{name}.bin", "text_encoder/model.safetensors"]
    repo = server.repos[ID] = Repo({**small_files(), **{path: noise(path) for path in weights + unused}})
    places = {f"weight {i}": name + shards[i % len(shards)] for i in range(9)}
    repo.files[f"unet/{name}{index}"] = json.dumps({"weight_map": places}).encode()
    folder = hub.fetch(ID, half=half)
    assert paths_in(folder) == {*small_files(), *weights, f"unet/{name}{index}"}
    assert all((folder / path).read_bytes() == repo.files[path] for path in weights)


@pytest.mark.parametrize("half", [False, True])
def test_pickles_only_and_half_without_saying_so(server, cache, half):
    """As ZeroScope v2: float16 .bin files under plain names, and a second model in a folder."""
    weights = {"unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"}
    other = {"zs2/text2video_pytorch_model.pth": b"no", "zs2/open_clip_pytorch_model.bin": b"no"}
    server.repos[ID] = Repo({**small_files(), **{path: noise(path) for path in weights}, **other})
    assert paths_in(hub.fetch(ID, half=half)) == {*small_files(), *weights}


def test_modelscope_and_our_own_layout(server, cache):
    for needed in (hub.MODELSCOPE, (*hub.OURS, "merges.txt.gz")):
        files = {**{name: noise(name) for name in needed}, "README.md": b"", "more/unet.safetensors": b"", "a.gif": b""}
        server.repos[ID] = Repo(files, commit=hashlib.sha1(needed[0].encode()).hexdigest())
        assert paths_in(hub.fetch(ID)) == set(needed)


MISSING_SHARD = json.dumps({"weight_map": {"w": "../../vae/config.json", "v": "gone.safetensors"}}).encode()


@pytest.mark.parametrize("change, message", [
    ({"model_index.json": None}, "no model in a known layout"),
    ({"model_index.json": b'{"unet": ["diffusers", "UNet2DConditionModel"]}'}, "another kind of model"),
    ({"model_index.json": b"[]"}, "another kind of model"),
    ({"vae/diffusion_pytorch_model.safetensors": None}, "in vae/ there is neither diffusion_pytorch_model.safetensors"),
    ({UNET: None, "unet/diffusion_pytorch_model.safetensors.index.json": MISSING_SHARD},
     "lists unet/../../vae/config.json, unet/gone.safetensors, which is not there"),
    ({"model_index.json": None, "configuration.json": b"{}"}, "it has no text2video_pytorch_model.pth, VQGAN"),
])
def test_repositories_of_something_else(server, cache, change, message):
    files = {**small_files(), **{f"{path}.safetensors": noise(path) for path in SAFE}} | change
    server.repos[ID] = Repo({path: content for path, content in files.items() if content is not None})
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        hub.fetch(ID)
    assert ID in str(caught.value)
    assert not [path for path, _ in server.served if path.endswith(LFS)]          # found out before the large files


# --- cut, wrong, damaged ---

def test_a_cut_connection_is_resumed(server, cache):
    repo = server.repos[ID] = diffusers_repo()
    server.cut[UNET] = 12_345
    try:
        hub.fetch(ID)                                                            # the client tries again by itself,
    except ConnectionError:                                                      # if it is a newer one
        pass
    folder = hub.fetch(ID)
    assert [wanted for path, wanted in server.served if path == UNET] == [None, "bytes=12000-"]
    assert (folder / UNET).read_bytes() == repo.files[UNET]


def test_the_next_call_goes_on_where_the_last_was_cut(server, cache, capsys):
    repo = server.repos[ID] = diffusers_repo()
    home, old = cache / "models--someone--tiny-model", repo.commit
    hub.fetch(ID)
    repo.files[UNET], repo.commit = noise("new"), "f" * 40                       # a new version of one file
    server.cut[UNET], server.dies = 20_000, True
    with pytest.raises(ConnectionError, match="cannot get .*tiny-model.*run again: what came is kept"):
        hub.fetch(ID)
    assert UNET not in paths_in(home / "snapshots" / repo.commit)
    assert (home / "refs/main").read_text() == old                               # without a connection: the whole one

    server.down = False
    server.served.clear()
    capsys.readouterr()
    folder = hub.fetch(ID)
    assert server.served == [(UNET, "bytes=20000-")]                             # the rest of it, and nothing else
    assert "GB of it are here already" in capsys.readouterr().err
    assert (folder / UNET).read_bytes() == repo.files[UNET] and (home / "refs/main").read_text() == repo.commit
    assert not list(cache.rglob("*.incomplete"))


@pytest.mark.parametrize("told, message", [
    (lambda data: (len(data) + 1, hashlib.sha256(data).hexdigest()), "its size is 30,000 bytes, not 30,001"),
    (lambda data: (len(data) - 1, hashlib.sha256(data).hexdigest()), "its size is 30,000 bytes, not 29,999"),
    (lambda data: (len(data), hashlib.sha256(b"").hexdigest()), "its sha256 is "),
])
def test_a_file_that_comes_wrong_is_named_and_removed(server, cache, told, message):
    repo = server.repos[ID] = diffusers_repo()
    repo.told[UNET] = told(repo.files[UNET])
    with pytest.raises(ValueError, match=f"{UNET} of {ID} came wrong: {message}.*run again"):
        hub.fetch(ID)
    assert not list(cache.rglob("*.incomplete")) and repo.files[UNET] not in read_all(cache).values()
    repo.told.clear()
    server.served.clear()
    assert (hub.fetch(ID) / UNET).read_bytes() == repo.files[UNET]
    assert (UNET, None) in server.served                                         # from its beginning


def test_small_files_are_checked_too(server, cache):
    repo = server.repos[ID] = diffusers_repo()
    repo.told["vae/config.json"] = len(repo.files["vae/config.json"]), "2" * 40
    with pytest.raises(ValueError, match="vae/config.json of .* came wrong: its git hash is [0-9a-f]{40}, not 2222"):
        hub.fetch(ID)


def test_a_released_file_must_be_the_released_one(server, cache, monkeypatch, capsys):
    repo = diffusers_repo()
    for hub_id in (ID, "Someone/Other-Case"):
        server.repos[hub_id] = repo
    facts = {"bytes": 30_000, "sha256": hashlib.sha256(repo.files[UNET]).hexdigest()}
    monkeypatch.setattr(hub, "RELEASED", {"repo_ids": [ID, "someone/other-case"], "files": {UNET: facts}})
    limits.tell.cache_clear()
    hub.fetch(ID)
    assert capsys.readouterr().err.count(limits.NOTE) == 1                       # what the weights cannot do
    for what, value in (("sha256", "0" * 64), ("bytes", 7)):
        monkeypatch.setitem(hub.RELEASED["files"], UNET, {**facts, what: value})
        for hub_id in (ID, "Someone/Other-Case"):
            fails(ValueError, f"{UNET} of {hub_id} is not the released file: {what} .*expected {value}", hub_id)
    hub.fetch(ID, half=True)                                                     # the file is not among those


def test_damage_in_the_cache_is_mended(server, cache, capsys):
    repo = server.repos[ID] = diffusers_repo()
    path = hub.fetch(ID) / UNET
    for damaged, check in ((b"cut short", False), (b"x" * 30_000, True)):        # a size is always looked at
        path.resolve().write_bytes(damaged)
        server.served.clear()
        capsys.readouterr()
        hub.fetch(ID, check=check)
        assert path.read_bytes() == repo.files[UNET] and server.served == [(UNET, None)]
    assert f"{path} is damaged and was removed: its sha256 is " in capsys.readouterr().err


# --- what can go wrong with the Hub, the network and the disk ---

def fails(kind, message, hub_id=ID):
    with pytest.raises(kind, match=message) as caught:
        hub.fetch(hub_id)
    assert "\n" not in str(caught.value) and type(caught.value).__module__ == "builtins"     # written here, one line
    return str(caught.value)


def test_there_is_no_such_model(server, cache):
    assert ID in fails(FileNotFoundError, "there is no model .*tiny-model.* or it is private; check the spelling")


@pytest.mark.parametrize("path", [UNET, "vae/config.json", "model_index.json"])
def test_a_file_that_is_listed_and_not_there(server, cache, path):
    server.repos[ID] = diffusers_repo()
    server.lost = {path}
    fails(FileNotFoundError, f"{ID} lists {path}, but the Hub does not have it .*404.*run again later")
    server.lost = set()
    assert path in paths_in(hub.fetch(ID))


def test_tokens_and_gates(server, cache, monkeypatch):
    server.repos[ID] = diffusers_repo(token="hf_secret")
    fails(FileNotFoundError, "set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fetch(ID)
    server.repos["a/gated"] = diffusers_repo(gated=True)
    fails(PermissionError, "a/gated is gated.*Ask for access.*HF_TOKEN", "a/gated")
    server.api_status = 403
    fails(PermissionError, "refuses .*check that HF_TOKEN is valid")


def test_the_hub_is_ill_or_something_else(server, cache, monkeypatch):
    server.repos[ID] = diffusers_repo()
    for body in (b"<html>please log in</html>", b"[1]", b"{}", b'{"id": "a/b", "sha": null, "siblings": []}'):
        server.api_body = body
        fails(OSError, f"{server.url} does not answer as the Hub does .*check HF_ENDPOINT")
    server.api_status = 410
    fails(OSError, "cannot serve")
    server.api_status = 503
    fails(ConnectionError, "503.*no whole copy.*nothing of it is there.*minit2v download " + ID)
    server.api_status, server.api_body = 200, None
    hub.fetch(ID)
    server.api_status = 503
    assert UNET in paths_in(hub.fetch(ID))                                       # what is in the cache will do
    server.api_status, server.delay = 200, 1.0
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "other"))
    fails(ConnectionError, "Timeout")


def test_no_connection(server, cache, monkeypatch, capsys):
    server.repos[ID] = diffusers_repo()
    folder = hub.fetch(ID)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")             # nobody listens there
    capsys.readouterr()
    assert hub.fetch(ID) == folder
    assert "warning: cannot get http://127.0.0.1:9/" in (err := capsys.readouterr().err) and "using the copy" in err
    fails(ConnectionError, "cannot get http://127.0.0.1:9/a/b .*check the connection", "a/b")
    monkeypatch.setattr(constants, "ENDPOINT", "hf.example")
    fails(OSError, "hf.example does not answer.*begins with http")


def test_the_disk_is_full(server, cache, monkeypatch):
    repo = server.repos[ID] = diffusers_repo()
    digest = hashlib.sha256(repo.files[UNET]).hexdigest()
    repo.told[UNET] = 10 ** 16, digest
    fails(OSError, "GB free, but .* needs 10,000,000.00; make room, or set HF_HOME")
    assert {path for path, _ in server.served} == {"model_index.json"}           # found out before it began
    if sys.platform == "linux":                                                  # it can also fill up on the way
        repo.told.clear()
        (cache / f"models--someone--tiny-model/blobs/{digest}.minit2v.incomplete").symlink_to("/dev/full")
        fails(OSError, "is full: make room, or set HF_HOME")
    cache.with_name("file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.with_name("file")))
    fails(OSError, "cannot be used .*set HF_HOME")


# --- offline ---

@pytest.mark.parametrize("links", [True, False])
def test_offline_uses_a_whole_copy(server, cache, monkeypatch, capsys, links):
    if not hasattr(constants, "HF_HUB_DISABLE_SYMLINKS"):
        pytest.skip("this client always links where it can")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    repo = server.repos[ID] = diffusers_repo()
    folder = hub.fetch(ID)
    assert sys.platform == "win32" or (folder / UNET).is_symlink() == links
    server.served.clear()
    assert hub.fetch(ID, check=True) == folder and server.served == []
    server.asked.clear()
    capsys.readouterr()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch(ID, check=True) == folder and capsys.readouterr() == ("", "")
    (folder / UNET).unlink()
    fails(ConnectionError, "HF_HUB_OFFLINE is set.*no whole copy.*in unet/ there is neither.*minit2v download " + ID)
    fails(ConnectionError, "HF_HUB_OFFLINE is set.*nothing of it is there", "a/b")
    assert server.asked == [] and repo.files


# --- ids and paths ---

def test_ids_that_the_hub_does_not_allow(server, cache):
    for bad in ("", "model", "a/b/c", "/a/b", "a/", "/b", "../b", "a/..", "./b", "a/.b", "a/b.", "-a/b", "a/b-",
                "a--b/c", "a/b..c", "a/b.git", "a b/c", "a/b\n", "a\\b", "C:/b", "a/b?x=1", "a/b#c", "a/%2e%2e",
                "a/b@main", "ä/b", "a/文", "a/" + "b" * 97, "https://huggingface.co/a/b", "~/b", None, 7, Path("a/b")):
        with pytest.raises(ValueError, match="is not the id of a model on the Hub: that is owner/name") as caught:
            hub.fetch(bad)
        assert repr(bad) in str(caught.value)
    assert server.asked == [] and not cache.exists()


def test_ids_are_judged_as_the_client_judges_them():
    dice, seen = random.Random(0), {True: 0, False: 0}
    for _ in range(5000):
        hub_id = "/".join("".join(dice.choices("abZ09_-. ", [4, 4, 4, 4, 4, 2, 1, 1, .2], k=dice.randint(1, 5)))
                          for _ in range(2))
        try:
            validate_repo_id(hub_id)
            allowed = True
        except HFValidationError:
            allowed = False
        try:
            hub._check_id(hub_id)
        except ValueError:
            assert not allowed, hub_id
        else:
            assert allowed, hub_id
        seen[allowed] += 1
    assert min(seen.values()) > 1000
    for fine in (hub.DEFAULT, "cerspense/zeroscope_v2_576w", "a/" + "b" * 96, *hub.RELEASED["repo_ids"]):
        hub._check_id(fine)


def test_a_wicked_hub_cannot_write_elsewhere(server, cache, tmp_path):
    good = diffusers_repo()
    for path in ("../../../evil.json", "unet/../../../../evil.json", "tokenizer/..\\..\\evil.json", "/evil.json",
                 "tokenizer/.evil.json", "vae/..json"):
        good.files[path] = b"evil"
    server.repos[ID] = good
    assert not any("evil" in path or ".." in path for path in paths_in(hub.fetch(ID)))
    for change in ({"told": {UNET: (30_000, "../../../../evil")}}, {"commit": "../../../evil"}, {"commit": "main"},
                   {"told": {"vae/config.json": (None, "1" * 40)}}):
        server.repos["b/wicked"] = diffusers_repo(**change)
        fails(OSError, "does not answer as the Hub does", "b/wicked")
    assert {path.name for path in tmp_path.iterdir()} == {"cache"} and not list(tmp_path.rglob("*evil*"))


# --- together with other programs ---

def test_the_cache_is_the_clients_own(server, cache):
    """What we fetched, the client finds; what it fetched, we do not fetch again."""
    repo = server.repos[ID] = diffusers_repo()
    folder = hub.fetch(ID)
    server.served.clear()
    for path in ("model_index.json", UNET):
        assert Path(hf_hub_download(ID, path, cache_dir=cache, endpoint=server.url)) == folder / path
        assert Path(hf_hub_download(ID, path, cache_dir=cache, local_files_only=True)) == folder / path
    assert server.served == []
    theirs = "unet/diffusion_pytorch_model.fp16.safetensors"
    hf_hub_download(ID, theirs, cache_dir=cache, endpoint=server.url)
    server.served.clear()
    assert (hub.fetch(ID, half=True) / theirs).read_bytes() == repo.files[theirs]
    assert sorted(path for path, _ in server.served) == [f"{path}.fp16.safetensors" for path in sorted(SAFE[1:])]

    server.served.clear()
    repo.commit, repo.files["vae/config.json"] = "f" * 40, b'{"new": 1}'
    folder = hub.fetch(ID, half=True)
    assert read_all(folder) == {path: repo.files[path] for path in paths_in(folder)} and folder.name == repo.commit
    assert server.served == [("vae/config.json", None)]                          # what did not change is not fetched


def start(*argv, **env):
    """The command in a process of its own, with nothing of this one's settings of the Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XDG_"))}
    return subprocess.Popen([sys.executable, "-m", "minit2v.cli", *argv], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), **env})


def wait_until(reached, *processes):
    end = time.monotonic() + 100
    while not reached():
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def test_processes(server, tmp_path):
    """One is killed on its way, two go on at the same time, one comes without a connection."""
    repo = server.repos[ID] = diffusers_repo()
    repo.files[UNET] = noise("large", 30_000_000)                                # the client writes chunks of 10 MB
    home = tmp_path / "hf"
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HOME": str(tmp_path / "home")}
    server.stall.clear()
    killed = start("download", ID, **settings)
    wait_until(lambda: [part for part in home.rglob("*.incomplete") if part.stat().st_size > 10e6], killed)
    killed.kill()
    killed.communicate()
    assert server.served[-1] == (UNET, None)                                     # the largest is the last

    server.served.clear()
    server.asked.clear()
    both = [start("download", ID, "--json", **settings) for _ in range(2)]
    wait_until(lambda: server.served and len([a for a in server.asked if "/api/models/" in a]) == 2, *both)
    time.sleep(0.5)                                                              # one is at it, the other waits for it
    server.stall.set()
    answers = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    folder = home / "hub" / "models--someone--tiny-model" / "snapshots" / repo.commit
    assert [json.loads(out) for out, _ in answers] == [{"hub_id": ID, "folder": str(folder)}] * 2
    assert server.served == [(UNET, "bytes=10485760-")]                          # once, from where the killed one was
    assert (folder / UNET).read_bytes() == repo.files[UNET]

    server.asked.clear()
    offline = start("download", ID, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(home / "hub"), HOME=str(tmp_path / "home"))
    out, err = offline.communicate(timeout=100)
    assert (offline.returncode, out, err) == (0, f"{folder}\n", "") and server.asked == []
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}                  # HF_HOME, and nothing beside it


# --- the command ---

def test_the_command(server, cache, capsys):
    server.repos[ID] = diffusers_repo()
    assert cli.main(["download", ID, "--half"]) == 0
    out, err = capsys.readouterr()
    folder = Path(out.strip())
    assert paths_in(folder) == {*small_files(), *(f"{path}.fp16.safetensors" for path in SAFE)} and "licence" in err
    (folder / "vae/config.json").write_bytes(b"x" * (folder / "vae/config.json").stat().st_size)
    assert cli.main(["download", ID, "--half"]) == 0                             # run again, it looks for damage
    assert (folder / "vae/config.json").read_bytes() == small_files()["vae/config.json"]
    assert capsys.readouterr().out == out
    assert cli.main(["download", ID, "--list", "--half"]) == 0
    assert "0.00 GB to fetch" in (out := capsys.readouterr().out) and " to fetch  " not in out
    with pytest.raises(SystemExit) as ended:
        cli.main(["download", "--help"])
    assert ended.value.code == 0 and hub.DEFAULT in capsys.readouterr().out


@pytest.mark.parametrize("hub_id, message", [("../etc", "is not the id of a model"), ("a/b", "there is no model")])
def test_the_command_fails_in_one_line(server, cache, capsys, hub_id, message):
    assert cli.main(["download", hub_id]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minit2v: error: ") and message in err and err.count("\n") == 1
    assert cli.main(["download", hub_id, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
