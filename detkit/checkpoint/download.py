"""Files of weights from the net: fetched once into the cache, whole or not at all, over HTTPS only."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from detkit.checkpoint.errors import CheckpointError
from detkit.files import cache_folder, locked
from detkit.log import get_logger

DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"  # what detectron2:// stands for
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")  # torchvision's: the start of the SHA-256
_LONGEST = 200  # bytes of a name in the cache; file systems take 255, with what is appended while it comes
_TRIES = 3
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20


class DownloadError(CheckpointError):
    """A file that could not be fetched; the message says where it can be put by hand."""


class RedirectionError(ConnectionError):
    """A redirection that is not followed."""


def local_file(source: Path | str) -> Path:
    """Return the local file of a path or an address; an address is fetched into the cache, unless it is there.

    Addresses begin with `https://` or `detectron2://`, and may end in `#sha256=<hex>`, which is then checked.
    Raises DownloadError where that fails, and CheckpointError for an address of another kind.
    """
    text = str(source)
    if not re.match(r"[A-Za-z][\w+.-]+:/", text):
        return Path(source)
    text = re.sub(r"^([A-Za-z][\w+.-]+):/+", r"\1://", text)  # a Path has lost one of the slashes
    url, _, fragment = text.partition("#")
    url = DETECTRON2 + url.removeprefix("detectron2://") if url.startswith("detectron2://") else url
    if not url.startswith("https://"):
        raise CheckpointError(
            f"{source}: weights are fetched by https:// (or detectron2://) only; or give a local file"
        )
    target, digest = cache_path(url), _digest(url, fragment, str(source))
    if not target.is_file():
        fetch(url, target, digest=digest)
    elif fragment:  # asked for by hand; the file may have been fetched without, or put there
        _check_kept(target, digest)
    return target


def cache_path(url: str) -> Path:
    """Return where the file of an address is kept: `<cache>/weights/<host>/<path>`, or the CheckpointError of none.

    A query (`?id=7`) is part of which file it is: its hash goes before the name.
    """
    parts = _parts(url)
    steps = [urllib.parse.unquote(step) for step in parts.path.split("/") if step]
    safe = [re.sub(r"[^\w.+=@-]", "_", step) for step in (parts.netloc, *steps)]
    if len(safe) < 2 or any(step in (".", "..") for step in safe):
        raise CheckpointError(f"{url}: is not the address of a file")
    if parts.query:
        safe.insert(-1, hashlib.sha256(parts.query.encode("utf-8", "surrogatepass")).hexdigest()[:8])
    if max(len(step.encode("utf-8", "surrogatepass")) for step in safe) > _LONGEST:
        raise CheckpointError(f"{url[:200]}...: has a name of more than {_LONGEST} bytes, longer than files may have")
    return cache_folder().joinpath("weights", *safe)


def _parts(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an address, refused where it is none, or says a name and a password."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise CheckpointError(f"{url}: is not the address of a file ({error})") from error
    if "@" in parts.netloc:  # https://known.host@another/ is of the other host; and urllib does not log in
        raise CheckpointError(f"{parts.scheme}://...@{parts.hostname}: an address with a user's name is not fetched")
    return parts


def fetch(url: str, target: Path, *, digest: str = "", schemes: Sequence[str] = ("https",)) -> None:
    """Fetch a file: to `<target>.part`, continued where an earlier try broke off, checked, then renamed.

    `digest` is the start of its SHA-256, or "" to check the length only. Redirections stay within `schemes`. Other
    processes that want the same file wait.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{target.name}.lock")):
            if target.is_file():  # another process was faster
                return
            _fetch_all(url, part, _opener(schemes))
            _check(url, part, digest)
            os.replace(part, target)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: of a host or a header that is none
        raise DownloadError(
            f"{url}: not fetched ({_reason(error)}). Without the net: put the file to {target}, or name another place "
            "of it by MODEL.WEIGHTS"
        ) from error
    get_logger(__name__).info("weights: %s is kept as %s", url, target)


def _fetch_all(url: str, part: Path, opener: urllib.request.OpenerDirector) -> None:
    for attempt in range(_TRIES):
        try:
            _fetch_rest(url, part, opener)
            return
        except (OSError, http.client.HTTPException) as error:
            if _is_final(error) or attempt == _TRIES - 1:
                raise
            get_logger(__name__).warning("weights: %s broke off (%s), trying again", url, _reason(error))
            time.sleep(2**attempt)


def _fetch_rest(url: str, part: Path, opener: urllib.request.OpenerDirector) -> None:
    """Fetch what `part` lacks; all of it where the server does not continue the same file."""
    validator = part.with_name(f"{part.name}.etag")
    have = part.stat().st_size if part.is_file() and validator.is_file() else 0
    if part.is_symlink():
        part.unlink()  # not to write over what it leads to
    request = urllib.request.Request(_quoted(url), headers={"User-Agent": "detkit", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator.read_text())
    try:
        response = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()  # longer than the file is: begin anew
        raise ConnectionError("what was there of it did not fit") from error
    with response:
        coding = response.headers.get("Content-Encoding") or "identity"
        if coding.lower() != "identity":
            raise DownloadError(f"{url}: the server sends it compressed ({coding[:40]!r}), which was not asked for")
        if response.status == 206 and not _starts_at(response, have):
            part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another part than was asked for")
        start = have if response.status == 206 else 0
        whole = start + _length(response, default=-1 - start)
        _need_space(part, whole - start)
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        _remember(validator, "" if tag.startswith("W/") else tag)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            _copy(response, file, start, whole, part.name.removesuffix(".part"))
    validator.unlink(missing_ok=True)


def _copy(response: Any, file: BinaryIO, have: int, whole: int, name: str) -> None:
    """Copy a response to its end, and say how far it is, a line for every tenth."""
    logger, said = get_logger(__name__), 0
    while chunk := response.read(_CHUNK):
        file.write(chunk)
        have += len(chunk)
        if whole > 0 and have * 10 // whole > said:
            said = have * 10 // whole
            logger.info("fetching %s: %.1f of %.1f MB", name, have / 1e6, whole / 1e6)
    file.truncate()
    file.flush()
    os.fsync(file.fileno())
    if whole >= 0 and have != whole:
        raise ConnectionError(f"{have} of {whole} bytes came")


def _check(url: str, part: Path, digest: str) -> None:
    found = _sha256(part) if digest else ""
    if not found.startswith(digest):
        part.unlink()
        raise DownloadError(f"{url}: what came has the SHA-256 {found}, and should begin with {digest}; it was dropped")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(url: str, fragment: str, source: str) -> str:
    if fragment:
        match = re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", fragment)
        if not match:
            raise CheckpointError(f"{source}: '#{fragment}' is not #sha256=<8 to 64 hexadecimal digits>")
        return match[1].lower()
    match = _HASH_IN_NAME.search(urllib.parse.urlsplit(url).path)
    # Digits alone are rather a date or a number of iterations: of eight digits of a hash, that is one in forty.
    return match[1] if match and not match[1].isdigit() else ""


def _check_kept(target: Path, digest: str) -> None:
    found = _sha256(target)
    if not found.startswith(digest):
        raise DownloadError(
            f"{target}: has the SHA-256 {found}, and should begin with {digest}; remove it to fetch it anew"
        )


class _StayWithin(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to an address of the same schemes."""

    def __init__(self, schemes: Sequence[str]) -> None:
        self._schemes = schemes

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request of a redirection."""
        if urllib.parse.urlsplit(newurl).scheme not in self._schemes:
            raise RedirectionError(f"it leads to {newurl}, which is not {' or '.join(self._schemes)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(schemes: Sequence[str]) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_StayWithin(schemes))


def _starts_at(response: Any, start: int) -> bool:
    return (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-")


def _length(response: Any, default: int) -> int:
    text = (response.headers.get("Content-Length") or "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else default


def _quoted(url: str) -> str:
    """Return an address with letters beyond ASCII as the net has them."""
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return urllib.parse.urlunsplit(parts._replace(path=path, query=query))


def _remember(validator: Path, tag: str) -> None:
    """Keep what names this version of the file, without which a broken-off one is not continued."""
    if re.fullmatch(r"[ -~]{1,500}", tag):  # what a header can say again
        validator.write_text(tag)
    else:
        validator.unlink(missing_ok=True)


def _need_space(part: Path, count: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if count > free:
        raise OSError(
            errno.ENOSPC, f"{count / 1e6:.0f} MB are needed in {part.parent}, and {free / 1e6:.0f} MB are free"
        )


def _is_final(error: Exception) -> bool:
    """Return whether another try would end in the same: refused by the server or by us, or no space."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500
    return isinstance(error, RedirectionError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", None) or error or type(error).__name__)
