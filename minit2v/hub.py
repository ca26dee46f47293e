"""Brings a model from the Hugging Face Hub: only the files that are needed, each one checked.

A repository often holds every network four times (float32 and float16, safetensors and pickle). `choose` takes
one file for each part; `fetch` brings what the cache lacks and returns a folder that `load` reads.

The cache is huggingface_hub's own, shared with other programs, and so are its settings: HF_ENDPOINT, HF_HOME,
HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE. Its layout (huggingface_hub's guide "Understand caching"):

    models--owner--name/blobs/DIGEST             a file, under the hash of its content
    models--owner--name/snapshots/COMMIT/PATH    a link to it, under its name
    models--owner--name/refs/main                which commit is the current one

Listing and transfer are the client's, but its newer versions throw a part away when its process ends, which is
hard on a file of 5 GB. Here the part stays beside the blobs and the next run goes on with it; it gets its place
among them only when its size and its hash are right.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, NamedTuple

from huggingface_hub import HfApi, constants, try_to_load_from_cache, utils
from huggingface_hub.file_download import are_symlinks_supported, http_get, repo_folder_name

from minit2v import limits
from minit2v.configfiles import DIFFUSERS_STEMS, MODELSCOPE_FILES, weight_names
from minit2v.files import write_whole

DEFAULT = "ali-vilab/text-to-video-ms-1.7b"
RELEASED = json.loads((Path(__file__).parent / "released.json").read_text(encoding="utf-8"))
MODELSCOPE = ("configuration.json", *(name for _, name in MODELSCOPE_FILES.values()))
OURS = ("config.json", "unet.safetensors", "autoencoder.safetensors", "text_encoder.safetensors")
ID_PART = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
PLAIN_PATH = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)         # one folder deep at most, never upwards
DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")                    # SHA-256, or git's SHA-1 for the small files
NETWORK_ERROR = utils.HfHubHTTPError.__bases__[0]                    # root of the errors of the client's HTTP library


class File(NamedTuple):
    path: str                                                        # in the repository
    bytes: int
    digest: str                                                      # what DIGEST matches; also the blob's name


class Listing(NamedTuple):
    """What a model needs of its repository at one commit, and the folder where that is, or will be."""
    hub_id: str
    commit: str
    licence: str
    files: list[File]

    @property
    def folder(self) -> Path:
        return _home(self.hub_id) / "snapshots" / self.commit

    def missing(self) -> list[File]:
        """The files that the cache lacks, or has in another size."""
        return [file for file in self.files if _size(self.folder / file.path) != file.bytes]


def fetch(hub_id: str = DEFAULT, half: bool = False, check: bool = False) -> Path:
    """Brings a model into the cache, if it is not there, and returns its folder.

    half: half-precision files where the repository has them (3.7 GB instead of 7.3 for the released model).
    check: hash the files that were in the cache before, too, and bring the wrong ones anew.

    Says on the standard error what it will fetch and under which licence; nothing if all is there. Without a
    connection, or with HF_HUB_OFFLINE=1, it uses the cache. Raises ValueError for an id that the Hub does not
    allow, a repository of something else, and a file that came wrong (which is removed); OSError for what lies
    with the network, the Hub, the token or the disk.
    """
    listing = survey(hub_id, half)
    for file in listing.files if check else []:
        path = listing.folder / file.path
        if _size(path) == file.bytes and (fault := _fault(path, file)):
            print(f"minit2v: warning: {path} is damaged and was removed: {fault}", file=sys.stderr)
            path.resolve().unlink(missing_ok=True)                   # the blob behind the link
            path.unlink(missing_ok=True)
    if lacking := listing.missing():
        _announce(listing, lacking)
        for file in sorted(lacking, key=lambda file: file.bytes):    # if something is amiss, small ones show it soon
            _bring(listing, file)
    with _explained(hub_id):
        _write_ref(_home(hub_id) / "refs" / "main", listing.commit)
    return listing.folder


def survey(hub_id: str = DEFAULT, half: bool = False) -> Listing:
    """Asks the Hub which files a model has (or the cache, without a connection) and chooses what is needed."""
    _check_id(hub_id)
    ours = hub_id.lower() in RELEASED["repo_ids"]
    try:
        listing = _ask_hub(hub_id, half)
    except ConnectionError as error:
        listing = _ask_cache(hub_id, half, error)
    for file in listing.files if ours else []:
        told = {"bytes": file.bytes, "sha256": file.digest}
        for what, expected in RELEASED["files"].get(file.path, {}).items():
            if told[what] != expected and (what == "bytes" or DIGEST.fullmatch(file.digest)):
                raise ValueError(f"{file.path} of {hub_id} is not the released file: {what} {told[what]}, expected "
                                 f"{expected}; it is not used. Check HF_ENDPOINT; if the authors replaced the file and "
                                 "you trust the new one, fetch it with `hf download` and give its folder")
    return listing


def choose(names: set[str], half: bool, read: Callable[[str], str], hub_id: str = "the repository") -> list[str]:
    """Which of a repository's files a model needs: its layout's small files, and one copy of each network.

    The number type comes first (float16 where `half`, and where there is one), then safetensors before pickle.
    read: gives the text of one of the files. Raises ValueError for what is not a whole model of this kind.
    """
    if "model_index.json" in names:
        unet = _parse(read("model_index.json")).get("unet")
        if not isinstance(unet, list) or unet[-1:] != ["UNet3DConditionModel"]:
            raise ValueError(f"{hub_id!r} is another kind of model: its model_index.json has {unet!r} as unet, but it "
                             f"must be a UNet3DConditionModel; {DEFAULT!r} is one that fits")
        weights = [name for part in DIFFUSERS_STEMS for name in _choose_weights(part, names, half, read, hub_id)]
        small = [name for name in names if name.split("/")[0] in (*DIFFUSERS_STEMS, "tokenizer", "scheduler")
                 and name.endswith((".json", ".txt", ".txt.gz")) and ".index." not in name]
        return ["model_index.json", *sorted(small), *weights]
    if names.issuperset(OURS):
        return [*OURS, *sorted(name for name in names if name.endswith(".txt.gz"))]          # the tokenizer's merges
    if "configuration.json" not in names:
        raise ValueError(f"{hub_id!r} holds no model in a known layout: neither model_index.json (diffusers) nor "
                         f"configuration.json (ModelScope), but {', '.join(sorted(names)[:6]) or 'nothing'}")
    if lacking := [name for name in MODELSCOPE if name not in names]:
        raise ValueError(f"{hub_id!r} is not a whole ModelScope model: it has no {', '.join(lacking)}")
    return list(MODELSCOPE)


def _choose_weights(part: str, names: set[str], half: bool, read: Callable[[str], str], hub_id: str) -> list[str]:
    """One network in the diffusers layout: a single file, or an index and the shards that it lists."""
    for options in weight_names(*DIFFUSERS_STEMS[part], half):
        single, index = (f"{part}/{name}" for name in options)
        if single in names:
            return [single]
        if index in names:
            places = _parse(read(index)).get("weight_map")
            shards = sorted({f"{part}/{shard}" for shard in places.values()}) if isinstance(places, dict) else []
            if not shards or not names.issuperset(shards):
                raise ValueError(f"{hub_id!r} is not whole: {index} lists "
                                 f"{', '.join(sorted(set(shards) - names)) or 'nothing'}, which is not there")
            return [index, *shards]
    stem, pickle_stem = DIFFUSERS_STEMS[part]
    raise ValueError(f"{hub_id!r} is not a whole model: in {part}/ there is neither {stem}.safetensors nor "
                     f"{pickle_stem}.bin")


def _check_id(hub_id: str) -> None:
    """Raises ValueError unless it is "owner/name" by the Hub's rules, and so nothing that could lead elsewhere."""
    if (not isinstance(hub_id, str) or not re.fullmatch(f"{ID_PART}/{ID_PART}", hub_id) or "--" in hub_id
            or ".." in hub_id or hub_id.endswith(".git")):
        raise ValueError(f"{hub_id!r} is not the id of a model on the Hub: that is owner/name, each of at most 96 of "
                         "a-z A-Z 0-9 _ - . (no - or . at an end, no -- or .., no .git at the end), for example "
                         + DEFAULT)


def _ask_hub(hub_id: str, half: bool) -> Listing:
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set, so the Hub is not asked")
    try:
        if not constants.ENDPOINT.startswith(("http://", "https://")):
            raise ValueError("an address begins with http:// or https://")
        with _explained(hub_id):
            info = HfApi().model_info(hub_id, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        known = {s.rfilename: File(s.rfilename, *((s.lfs.size, s.lfs.sha256) if s.lfs else (s.size, s.blob_id)))
                 for s in info.siblings if PLAIN_PATH.fullmatch(s.rfilename)}
        if not re.fullmatch("[0-9a-f]{40}", info.sha):
            raise ValueError(f"the commit is {info.sha!r}")
        for file in known.values():
            if not isinstance(file.bytes, int) or not DIGEST.fullmatch(file.digest):
                raise ValueError(f"{file.path} has size {file.bytes!r} and hash {file.digest!r}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OSError(f"{constants.ENDPOINT} does not answer as the Hub does ({error}); check HF_ENDPOINT, and whether "
                      "a proxy or a log-in page stands between") from error
    stated = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    listing = Listing(hub_id, info.sha, stated[0] if stated else "none stated", [])
    names = choose(set(known), half, lambda name: _bring(listing, known[name]).read_text(encoding="utf-8"), hub_id)
    listing.files.extend(known[name] for name in names)
    return listing


def _ask_cache(hub_id: str, half: bool, reason: ConnectionError) -> Listing:
    """The same from the cache's current snapshot; a file is there as a whole or not at all."""
    anchors = [try_to_load_from_cache(hub_id, layout, cache_dir=constants.HF_HUB_CACHE)
               for layout in ("model_index.json", OURS[0], MODELSCOPE[0])]
    folder = next((Path(path).parent for path in anchors if isinstance(path, str)), _home(hub_id) / "snapshots/none")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        if not names:
            raise ValueError("nothing of it is there")
        chosen = choose(names, half, lambda name: (folder / name).read_text(encoding="utf-8"), hub_id)
    except ValueError as error:
        raise ConnectionError(f"{reason}; and the cache {constants.HF_HUB_CACHE} has no whole copy ({error}). With a "
                              f"connection, and without HF_HUB_OFFLINE, run: minit2v download {hub_id}"
                              f"{' --half' if half else ''}") from reason
    if not constants.HF_HUB_OFFLINE:
        print(f"minit2v: warning: {reason}; using the copy in the cache", file=sys.stderr)
    paths = [folder / name for name in chosen]
    files = [File(name, _size(path), path.resolve().name) for name, path in zip(chosen, paths)]
    return Listing(hub_id, folder.name, "unknown", files)


def _announce(listing: Listing, lacking: list[File]) -> None:
    """Says what comes, how much and under which licence; raises OSError if the disk has no room for it."""
    blobs, place = _home(listing.hub_id) / "blobs", Path(constants.HF_HUB_CACHE).absolute()
    total = sum(file.bytes for file in lacking)
    here = sum(max(_size(_part(blobs / file.digest)), _size(blobs / file.digest), 0) for file in lacking)
    small = [file for file in lacking if file.bytes < 1e7]
    lines = [f"{file.bytes / 1e6:10,.1f} MB  {file.path}" for file in lacking if file not in small]
    lines += [f"{sum(file.bytes for file in small) / 1e6:10,.1f} MB  in {len(small)} small files"] if small else []
    begun = f" ({here / 1e9:.2f} GB of it are here already)" if here else ""
    terms = ("; free to use and change with the authors' names, but for nothing commercial. It comes from the Hub to "
             "you; this package does not redistribute it" if listing.licence == "cc-by-nc-4.0" else "")
    print(f"{listing.hub_id}: fetching {total / 1e9:.2f} GB{begun}, into {place}", *lines,
          f"licence of the model: {listing.licence.upper()}{terms}. See {constants.ENDPOINT}/{listing.hub_id}",
          sep="\n", file=sys.stderr)
    if listing.hub_id.lower() in RELEASED["repo_ids"]:
        limits.tell()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    if free < total - here:
        raise OSError(f"the disk of the cache {place} has {free / 1e9:,.2f} GB free, but {listing.hub_id} needs "
                      f"{(total - here) / 1e9:,.2f}; make room, or set HF_HOME to a folder on another disk")


def _bring(listing: Listing, file: File) -> Path:
    """Puts one file into the cache, unless it is there, and returns its path in the snapshot."""
    home, pointer = _home(listing.hub_id), listing.folder / file.path
    blob = home / "blobs" / file.digest
    lock = home.parent / ".locks" / home.name / f"{file.digest}.lock"       # the client's own: other programs wait too
    with _explained(listing.hub_id, file.path):
        for path in (blob, lock, pointer):
            path.parent.mkdir(parents=True, exist_ok=True)
        with utils.WeakFileLock(lock):
            if _size(pointer) != file.bytes:                         # else it is here, or another process was faster
                if _size(blob) != file.bytes:
                    _download(listing, file, blob)
                pointer.unlink(missing_ok=True)
                if are_symlinks_supported(home.parent):
                    pointer.symlink_to(os.path.relpath(blob, pointer.parent))
                else:                                                # some Windows machines
                    os.replace(blob, pointer)
    return pointer


def _download(listing: Listing, file: File, blob: Path) -> None:
    """Transfers a file, going on with the part that is here, and gives it its name when it is right."""
    url = f"{constants.ENDPOINT}/{listing.hub_id}/resolve/{listing.commit}/{file.path}"       # nothing to quote in it
    headers = {**utils.build_hf_headers(library_name="minit2v"), "Accept-Encoding": "identity"}   # packed has no ranges
    part = _part(blob)
    with part.open("ab") as out:
        if out.tell() < file.bytes:
            http_get(url, out, resume_size=out.tell(), headers=headers, displayed_filename=file.path)
    if fault := _fault(part, file):
        part.unlink()
        raise ValueError(f"{file.path} of {listing.hub_id} came wrong: {fault}. It was removed; run again to fetch it "
                         f"anew, and if that does not help, look for a proxy or a mirror (HF_ENDPOINT is "
                         f"{constants.ENDPOINT})")
    os.replace(part, blob)


def _write_ref(ref: Path, commit: str) -> None:
    """Notes which commit is the current one; at the end, so that without a connection it is a whole one."""
    if not ref.is_file() or ref.read_text() != commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(ref) as temporary:
            temporary.write_text(commit)


def _fault(path: Path, file: File) -> str | None:
    """What is wrong with the content of a file, in words; None if its size and its hash are right."""
    if _size(path) != file.bytes:
        return f"its size is {_size(path):,} bytes, not {file.bytes:,}"
    if not DIGEST.fullmatch(file.digest):
        return None                                                  # a cache without links does not keep hashes
    git = len(file.digest) == 40
    digest = hashlib.sha1(b"blob %d\0" % file.bytes) if git else hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    return None if found == file.digest else f"its {'git hash' if git else 'sha256'} is {found}, not {file.digest}"


@contextmanager
def _explained(hub_id: str, path: str | None = None):
    """Turns what the client, its HTTP library and the disk raise into one message that says what to do."""
    page = f"{constants.ENDPOINT}/{hub_id}"
    try:
        yield
    except utils.GatedRepoError as error:
        raise PermissionError(f"{page} is gated: its owners let in whom they accept. Ask for access on that page, and "
                              "set HF_TOKEN to a token of your account") from error
    except utils.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"there is no model {page}, or it is private; check the spelling, or set HF_TOKEN to "
                                "a token that may read it") from error
    except (NETWORK_ERROR, OSError) as error:
        said = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no answer'])[0]}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(f"the Hub refuses {page} ({said}); check that HF_TOKEN is valid and may read "
                                  "it") from error
        if status == 404 and path is not None:
            raise FileNotFoundError(f"{page} lists {path}, but the Hub does not have it ({said}); run again later. "
                                    "If it stays so, the repository is broken, or HF_ENDPOINT not the Hub") from error
        if status is not None and status < 500 and status not in (408, 429):
            raise OSError(f"the Hub cannot serve {page} ({said}); check HF_ENDPOINT and the spelling") from error
        if getattr(error, "errno", None) is not None:                # the disk; the network's errors have no number
            full = " is full: make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f" cannot be used ({said})"
            raise OSError(f"the cache {constants.HF_HUB_CACHE}{full}, or set HF_HOME to a folder on another disk, and "
                          "run again; what came is kept") from error
        raise ConnectionError(f"cannot get {page} ({said}); check the connection and HF_ENDPOINT, and run again: what "
                              "came is kept") from error


def _home(hub_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE).absolute() / repo_folder_name(repo_id=hub_id, repo_type="model")


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.minit2v.incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _parse(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}                  # what is not in it, is missed where it is needed
