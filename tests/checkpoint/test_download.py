"""Downloads from a server on this machine: whole or not at all, continued, checked, and clear where they fail."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from detkit.checkpoint import CheckpointError, local_file
from detkit.checkpoint.download import DownloadError, cache_path, fetch

CONTENT = bytes(range(256)) * 9000  # 2.3 MB
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; `server.plan` lists what goes wrong with each request in turn."""

    def do_GET(self):
        plan = self.server.plan.pop(0) if self.server.plan else ""
        self.server.seen.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if plan.startswith("status"):
            self.send_error(int(plan.split()[1]))
            return
        if plan.startswith("redirect"):
            self.send_response(302)
            self.send_header("Location", plan.split()[1])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        tag = "other" if plan == "changed" else self.server.tag
        start = int(wanted[6:-1]) if wanted and self.headers.get("If-Range") == tag and plan != "whole" else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start and plan == "earlier":
            start -= 100
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if tag:
            self.send_header("ETag", tag)
        if plan.startswith("header"):
            self.send_header(*plan.split(maxsplit=2)[1:])
        if plan != "header Content-Length abc":
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        body = CONTENT[start:]
        self.wfile.write(body[: len(body) // 2] if plan == "break" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.plan, server.seen, server.tag = [], [], '"v1"'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("detkit.checkpoint.download.time.sleep", lambda _: None)
    yield server
    server.shutdown()
    server.server_close()


def url(server, path="/models/R-50.pkl"):
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def get(server, tmp_path, **options):
    target = tmp_path / "cache" / "R-50.pkl"
    fetch(url(server), target, schemes=("http",), **options)
    return target


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_a_file_comes_whole_and_once(server, tmp_path):
    assert get(server, tmp_path).read_bytes() == CONTENT
    get(server, tmp_path)
    assert len(server.seen) == 1
    assert files(tmp_path) == ["R-50.pkl", "R-50.pkl.lock"]


def test_a_broken_one_is_continued(server, tmp_path):
    server.plan = ["break", "break", ""]
    assert get(server, tmp_path, digest=SHA).read_bytes() == CONTENT
    starts = [wanted for _, wanted, _ in server.seen]
    half, three_quarters = len(CONTENT) // 2, len(CONTENT) // 2 + len(CONTENT) // 4
    assert starts == [None, f"bytes={half}-", f"bytes={three_quarters}-"]


def test_what_a_dead_process_left_is_continued(server, tmp_path):
    server.plan = ["break"] * 3
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    assert files(tmp_path) == ["R-50.pkl.lock", "R-50.pkl.part", "R-50.pkl.part.etag"]
    assert get(server, tmp_path, digest=SHA).read_bytes() == CONTENT
    assert server.seen[-1][1].startswith("bytes=")


def test_another_part_than_was_asked_for_is_not_taken(server, tmp_path):
    server.plan = ["break", "earlier", ""]
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("plan", ["changed", "whole"])
def test_another_file_under_the_address_is_fetched_from_its_start(server, tmp_path, plan):
    server.plan = ["break", plan]
    assert get(server, tmp_path, digest=SHA).read_bytes() == CONTENT


def test_without_a_tag_nothing_is_continued(server, tmp_path):
    server.tag = ""
    server.plan = ["break", ""]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.seen] == [None, None]


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "R-50.pkl.part").write_bytes(CONTENT + b"more")
    (tmp_path / "cache" / "R-50.pkl.part.etag").write_text('"v1"')
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"{SHA}, and should begin with deadbeef.*dropped"):
        get(server, tmp_path, digest="deadbeef")
    assert files(tmp_path) == ["R-50.pkl.lock"]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 3)])
def test_an_error_of_the_server_says_where_the_file_can_be_put(server, tmp_path, status, tries):
    server.plan = [f"status {status}"] * tries
    with pytest.raises(DownloadError, match=rf"answers {status}.*put the file to .*cache/R-50.pkl, or .*MODEL.WEIGHTS"):
        get(server, tmp_path)
    assert len(server.seen) == tries


def test_no_net_says_where_the_file_can_be_put(tmp_path, monkeypatch):
    monkeypatch.setattr("detkit.checkpoint.download.time.sleep", lambda _: None)
    with pytest.raises(DownloadError, match=r"not fetched .*put the file to .*R-50.pkl"):
        fetch("http://127.0.0.1:9/R-50.pkl", tmp_path / "R-50.pkl", schemes=("http",))


def test_a_redirection_is_followed_within_the_schemes_only(server, tmp_path):
    server.plan = ["redirect /elsewhere"]
    assert get(server, tmp_path).read_bytes() == CONTENT
    server.plan = ["redirect file:///etc/hostname"]
    with pytest.raises(DownloadError, match=r"file:///etc/hostname"):
        fetch(url(server, "/x"), tmp_path / "x", schemes=("http",))
    server.plan = ["redirect " + url(server)]
    with pytest.raises(DownloadError, match=r"which is not https"):
        fetch(url(server, "/y"), tmp_path / "y", schemes=("https",))


def test_many_at_once_fetch_once(server, tmp_path):
    threads = [threading.Thread(target=get, args=(server, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "cache" / "R-50.pkl").read_bytes() == CONTENT
    assert len(server.seen) == 1


def test_a_full_disk_is_said_before_anything_comes(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("detkit.checkpoint.download.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=r"2 MB are needed in .*, and 0 MB are free"):
        get(server, tmp_path)
    assert len(server.seen) == 1


# Addresses


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    return tmp_path / "weights"


def test_addresses_and_their_places(cache):
    place = cache / "dl.fbaipublicfiles.com" / "detectron2" / "ImageNetPretrained" / "MSRA" / "R-50.pkl"
    assert cache_path("https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl") == place
    place.parent.mkdir(parents=True)
    place.write_bytes(b"here")
    assert local_file("detectron2://ImageNetPretrained/MSRA/R-50.pkl") == place
    assert local_file("weights/R-50.pth").parts == ("weights", "R-50.pth")
    percent = cache_path("https://host/a%3Ab/c%20d.pkl")
    assert percent == cache / "host" / "a_b" / "c_d.pkl"


@pytest.mark.parametrize(
    "address", ["https://host/../../x.pkl", "https://host/%2e%2e/x.pkl", "https://host", "https://"]
)
def test_no_address_leaves_the_cache(cache, address):
    with pytest.raises(CheckpointError, match="is not the address of a file"):
        local_file(address)


@pytest.mark.parametrize("address", ["http://host/x.pkl", "s3://bucket/x.pkl", "file:///etc/passwd", "ftp://host/x"])
def test_other_schemes_are_refused(cache, address):
    with pytest.raises(CheckpointError, match=r"by https:// \(or detectron2://\) only"):
        local_file(address)


def test_the_hash_in_a_name_or_behind_it_is_what_is_checked(cache, monkeypatch):
    asked = []
    monkeypatch.setattr("detkit.checkpoint.download.fetch", lambda url, target, *, digest: asked.append((url, digest)))
    local_file("https://host/resnet50-19c8e357.pth")
    local_file(f"https://host/x.pkl#sha256={SHA}")
    local_file("detectron2://COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl")
    base = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/retinanet_R_50_FPN_3x/190397829"
    assert asked == [
        ("https://host/resnet50-19c8e357.pth", "19c8e357"),
        ("https://host/x.pkl", SHA),
        (f"{base}/model_final_5bd44e.pkl", ""),  # of what that is the hash is not published
    ]
    with pytest.raises(CheckpointError, match=r"#md5=1' is not #sha256="):
        local_file("https://host/x.pkl#md5=1")


def test_a_query_is_part_of_which_file_it_is(cache):
    first, second = (cache_path(f"https://host/download?id={i}") for i in (1, 2))
    assert first != second
    assert first.name == second.name == "download"


def test_digits_alone_in_a_name_are_no_hash(cache, monkeypatch):
    asked = []
    monkeypatch.setattr("detkit.checkpoint.download.fetch", lambda url, target, *, digest: asked.append(digest))
    local_file("https://host/model-20240131.pth")
    local_file("https://host/model-20241331.pth")
    assert asked == ["", ""]


def test_a_file_in_the_cache_is_checked_where_its_hash_is_given(cache):
    place = cache / "host" / "x.pkl"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert local_file(f"https://host/x.pkl#sha256={SHA}") == place
    with pytest.raises(DownloadError, match=r"x.pkl: has the SHA-256 .* should begin with deadbeef; remove it"):
        local_file("https://host/x.pkl#sha256=deadbeef")


@pytest.mark.parametrize(
    "address",
    [
        "https://known.host@127.0.0.1/x.pkl",
        "https://user:secret@host/x.pkl",
        "https://[::1/x.pkl",
        "https://host:port/x.pkl",
        "https://host:99999/x.pkl",
        f"https://host/{'x' * 300}.pkl",
        "https://a..b/x.pkl",
        f"https://{'a' * 100}.de/x.pkl",
        "https://ho st/x.pkl",
    ],
)
def test_addresses_that_are_none(cache, address, monkeypatch):
    monkeypatch.setattr("detkit.checkpoint.download.time.sleep", lambda _: None)
    with pytest.raises(CheckpointError) as caught:
        local_file(address)
    assert "secret" not in str(caught.value)


def test_a_name_beyond_ascii(server, tmp_path):
    fetch(url(server, "/modèle %20.pkl"), tmp_path / "x", schemes=("http",))
    assert server.seen[0][0] == "/mod%C3%A8le%20%20.pkl"


def test_odd_headers(server, tmp_path):
    server.plan = ["header Content-Encoding gzip"]
    with pytest.raises(DownloadError, match=r"sends it compressed \('gzip'\)"):
        get(server, tmp_path)
    server.plan = ["header Content-Length abc"]
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("tag", ['"a\r\n b"', '"\xe9"', '"' + "x" * 1000 + '"'])
def test_a_tag_that_no_header_can_say_is_not_kept(server, tmp_path, tag):
    server.tag = tag
    server.plan = ["break", ""]
    assert get(server, tmp_path, digest=SHA).read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.seen] == [None, None]


def test_a_link_in_the_cache_is_not_written_through(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "cache" / "R-50.pkl.part").symlink_to(tmp_path / "mine")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert (tmp_path / "mine").read_bytes() == b"mine"
