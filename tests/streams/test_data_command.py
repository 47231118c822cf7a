"""`python -m gentta_utils data` against a local server: resumes, checks, unpacks safely, says how to get the rest."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gentta_utils.__main__ import main
from gentta_utils.streams import downloads, folders, open_vocabulary, photo_maps
from gentta_utils.streams.coop_splits import SPLIT_SETS


class Handler(BaseHTTPRequestHandler):
    """Serves server.files; `stop_after` closes the connection early, `ranges` says whether it can go on."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        content = server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if first >= len(content):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        last = len(content) if server.stop_after is None else first + server.stop_after
        self.wfile.write(content[first:last])
        self.close_connection = True


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.stop_after, server.ranges = {}, [], None, True
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def tar_of(files: dict) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def imagenet_a(server, monkeypatch):
    """The server offers an ImageNet-A of one (unread) image per class."""
    content = tar_of({f"imagenet-a/{wnid}/x.jpg": b"image" for wnid in folders.synsets("imagenet_a")})
    server.files["/imagenet-a.tar"] = content
    offer = {"imagenet-a": (f"{server.url}/imagenet-a.tar", hashlib.md5(content).hexdigest())}
    monkeypatch.setattr(downloads, "ARCHIVES", offer)
    return content


def run(tmp_path, capsys, name="imagenet-a"):
    status = main(["data", name, "--root", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.err.count("\n") <= 1  # one sentence
    return status, printed.out, printed.err


def test_download_check_unpack(imagenet_a, server, tmp_path, capsys):
    status, out, _ = run(tmp_path / "new", capsys)
    assert status == 0
    assert out.startswith("imagenet-a: 200 images (7500 are expected) in ")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["imagenet-a"]
    assert len(folders.listing("imagenet-a", tmp_path / "new").paths) == 200
    status, again, _ = run(tmp_path / "new", capsys)
    assert (status, again) == (0, out)
    assert server.asked == [None]  # what is there is not fetched again


def test_an_interrupted_download_goes_on(imagenet_a, server, tmp_path, capsys):
    server.stop_after = 100_000
    status, _, err = run(tmp_path, capsys)
    assert status == 2
    assert "stopped at 0.1 MB" in err
    assert "goes on from there" in err
    part = tmp_path / "imagenet-a.tar.part"
    assert part.read_bytes() == imagenet_a[:100_000]
    server.stop_after = None
    assert run(tmp_path, capsys)[0] == 0
    assert server.asked == [None, "bytes=100000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["imagenet-a"]


def test_a_server_that_cannot_go_on_sends_all_again(imagenet_a, server, tmp_path, capsys):
    (tmp_path / "imagenet-a.tar.part").write_bytes(b"old" * 1000)
    server.ranges = False
    assert run(tmp_path, capsys)[0] == 0


def test_a_finished_part_is_not_fetched_again(imagenet_a, server, tmp_path, capsys):
    (tmp_path / "imagenet-a.tar.part").write_bytes(imagenet_a)
    assert run(tmp_path, capsys)[0] == 0
    assert server.asked == [f"bytes={len(imagenet_a)}-"]


def test_a_wrong_checksum_is_refused_and_deleted(imagenet_a, server, tmp_path, capsys):
    (tmp_path / "imagenet-a.tar.part").write_bytes(b"other" * 100)
    status, _, err = run(tmp_path, capsys)
    assert status == 2
    assert "checksum" in err
    assert list(tmp_path.iterdir()) == []
    assert run(tmp_path, capsys)[0] == 0


def test_missing_file_and_missing_server(imagenet_a, server, tmp_path, capsys, monkeypatch):
    server.files.clear()
    status, _, err = run(tmp_path, capsys)
    assert status == 2
    assert "answered 404" in err
    gone = {"imagenet-a": ("http://127.0.0.1:1/imagenet-a.tar", "0" * 32)}
    monkeypatch.setattr(downloads, "ARCHIVES", gone)
    status, _, err = run(tmp_path, capsys)
    assert status == 2
    assert "stopped at 0.0 MB" in err


@pytest.mark.parametrize("files", [{"../evil.txt": b""}, {"another/x.jpg": b""}, None])
def test_strange_archives_leave_nothing(files, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    archive = root / "imagenet-a.tar"
    archive.write_bytes(b"no tar at all" * 100 if files is None else tar_of(files))
    with pytest.raises(ValueError, match="cannot be unpacked") as error:
        downloads.unpack(archive, root, "imagenet-a")
    assert "\n" not in str(error.value)
    assert [p.name for p in root.iterdir()] == ["imagenet-a.tar"]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_is_not_whole_is_named(tmp_path, capsys):
    (tmp_path / "imagenet-r" / "n01443537").mkdir(parents=True)
    status, _, err = run(tmp_path, capsys, "imagenet-r")
    assert status == 2
    assert "199 of 200 classes" in err


@pytest.mark.parametrize("name", downloads.guides())
def test_guides_name_the_folder_that_is_looked_for(name, tmp_path, capsys):
    status, out, _ = run(tmp_path, capsys, name)
    assert status == 0
    assert str(tmp_path) in out
    assert "DIR" not in out
    if name in folders.LAYOUTS:
        top = folders.LAYOUTS[name].folder.split("/")[0]
        assert top in out or name == "imagenet-v2"  # whose archive brings its folder


def test_every_data_set_is_offered_or_explained(tmp_path, capsys):
    known = set(folders.LAYOUTS) | set(open_vocabulary.SETS) | set(SPLIT_SETS) | set(photo_maps.SETS) | {"imagenet-w"}
    assert known == set(downloads.ARCHIVES) | set(downloads.guides())
    status, _, err = run(tmp_path, capsys, "imagenet-q")
    assert status == 2
    assert "choose one of imagenet-a, imagenet-r, imagenet" in err
