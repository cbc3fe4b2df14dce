"""Downloads from a server on this machine: resumed, checked, one process at a time; archives that stay in place."""

from __future__ import annotations

import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import data_recipes
from data_recipes import RecipeError, archive, download
from data_recipes.download import fetch
from data_recipes.lock import locked
from data_recipes.recipe import Folder, Job, RawFile, Recipe
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.dataset import check_dataset, find_folder
from tests.command import environment

CONTENT = bytes(range(256)) * 2000
SUM = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, with ranges; knows what it was asked and can break off."""

    content = CONTENT
    tag = '"one"'
    status = 0
    break_after: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str | None] = []

    def handle_error(self, *args: object) -> None:
        """A client that goes away is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/raw.bin"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        serving = self.server
        wanted = self.headers.get("Range")
        serving.asked.append(wanted)
        if serving.status:
            self.send_error(serving.status)
            return
        start = 0
        fresh = self.headers.get("If-Range") not in (None, serving.tag)
        if wanted and serving.ranges and not fresh:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(serving.content):
                self.send_error(416)
                return
        body = serving.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if serving.tag:
            self.send_header("ETag", serving.tag)
        self.end_headers()
        if serving.break_after is not None:
            body, serving.break_after = body[: serving.break_after], None
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server()
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()


def raw(server: Server, sha256: str | None = SUM) -> RawFile:
    return RawFile("raw.bin", server.url, len(CONTENT), sha256)


# Downloads


def test_a_download_is_whole_told_about_and_not_repeated(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    folder = fetch([raw(server)], tmp_path / "a" / "b", lambda *step: told.append(step))
    assert (folder / "raw.bin").read_bytes() == CONTENT
    assert sorted(path.name for path in folder.iterdir()) == ["raw.bin"]
    assert told[-1] == ("raw.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert len(told) > 3
    fetch([raw(server)], folder)
    assert server.asked == [None]


def test_progress_without_a_terminal_is_a_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch([raw(server)], tmp_path)
    assert capsys.readouterr().err == "downloading raw.bin\ndownloaded raw.bin, 0.5 MB\n"


@pytest.mark.parametrize("sha256", [SUM, None])
def test_a_connection_that_breaks_is_resumed(server: Server, tmp_path: Path, sha256: str | None) -> None:
    server.break_after = 100_000
    fetch([raw(server, sha256)], tmp_path)
    assert (tmp_path / "raw.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_later_process_goes_on_where_the_first_stopped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "raw.bin.part").write_bytes(CONTENT[:7])
    fetch([raw(server)], tmp_path)
    assert (tmp_path / "raw.bin").read_bytes() == CONTENT
    assert server.asked == ["bytes=7-"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "raw.bin.part").write_bytes(b"x" * 7)
    fetch([raw(server)], tmp_path)
    assert (tmp_path / "raw.bin").read_bytes() == CONTENT


def test_a_file_that_changed_between_two_tries_is_not_patched_together(server: Server, tmp_path: Path) -> None:
    (tmp_path / "raw.bin.part").write_bytes(b"x" * 7)
    (tmp_path / "raw.bin.part.tag").write_text('"another"')
    fetch([raw(server, None)], tmp_path)
    assert (tmp_path / "raw.bin").read_bytes() == CONTENT
    (tmp_path / "raw.bin").unlink()
    (tmp_path / "raw.bin.part").write_bytes(b"x" * 7)  # neither a tag nor a sum: begin again
    fetch([raw(server, None)], tmp_path)
    assert (tmp_path / "raw.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "raw.bin.part").write_bytes(CONTENT + b"x")
    fetch([raw(server)], tmp_path)
    assert (tmp_path / "raw.bin").read_bytes() == CONTENT


def test_a_changed_download_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(RecipeError, match=r"is not the published raw\.bin any more: sha256 [0-9a-f]{64}, expected"):
        fetch([raw(server)], tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".tag"]
    (tmp_path / "raw.bin").write_bytes(b"damaged later")
    server.content = CONTENT
    fetch([raw(server)], tmp_path)
    assert (tmp_path / "raw.bin").read_bytes() == CONTENT


def test_servers_that_do_not_answer(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(
        RecipeError, match=r"Cannot download http.*raw\.bin: the server says 404 Not Found; give --from"
    ):
        fetch([raw(server)], tmp_path)
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(RecipeError, match="the server says 503"):
        fetch([raw(server)], tmp_path)
    assert len(server.asked) == 1 + download.TRIES
    nobody = RawFile("raw.bin", "http://127.0.0.1:9/raw.bin")
    with pytest.raises(RecipeError, match=r"Connection refused.*the next try goes on from there"):
        fetch([nobody], tmp_path)
    with pytest.raises(RecipeError, match=r"file:///etc/hosts is no web address"):
        fetch([RawFile("raw.bin", "file:///etc/hosts")], tmp_path)
    with pytest.raises(RecipeError, match=r"raw\.bin cannot be downloaded: no address is known; give --from"):
        fetch([RawFile("raw.bin")], tmp_path)


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> Iterator[int]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    with pytest.raises(RecipeError, match=r"Cannot download to .*: No space left on device"):
        fetch([raw(server)], tmp_path)
    assert not (tmp_path / "raw.bin").exists()


FETCH_SCRIPT = """
import sys
from pathlib import Path
from data_recipes.download import fetch
from data_recipes.recipe import RawFile
fetch([RawFile("raw.bin", sys.argv[1], None, sys.argv[2])], Path(sys.argv[3]))
"""


def test_two_processes_download_once(server: Server, tmp_path: Path) -> None:
    words = [sys.executable, "-c", FETCH_SCRIPT, server.url, SUM, str(tmp_path)]
    runs = [subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0], [run.communicate() for run in runs]
    assert server.asked == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["raw.bin"]


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            with locked(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] * 80
    assert list(tmp_path.iterdir()) == []


# Recipes that download


def recipe(server: Server, read: list[bytes]) -> Recipe:
    def build(job: Job) -> list[Folder]:
        assert job.source is not None
        read.append((job.source / "raw.bin").read_bytes())
        return []

    return Recipe("small", "Small", "", "", "", ("paper",), 1, build, {"paper": (raw(server),)})


def test_a_recipe_downloads_what_it_is_not_given(server: Server, tmp_path: Path) -> None:
    read: list[bytes] = []
    data_recipes.build(recipe(server, read), tmp_path / "out", protocols=["paper"])
    assert read == [CONTENT]
    assert (tmp_path / "out" / ".downloads" / "small" / "raw.bin").is_file()
    data_recipes.build(recipe(server, read), tmp_path / "out", protocols=["paper"])
    assert len(server.asked) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "raw.bin").write_bytes(b"mine")
    data_recipes.build(recipe(server, read), tmp_path / "out", tmp_path / "mine", ["paper"])
    assert read[-1] == b"mine"


def test_train_downloads_too_where_addresses_are_known(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECDENOISE_CACHE", str(tmp_path))
    monkeypatch.delenv("RECDENOISE_DATA", raising=False)
    server.status = 404
    modcloth = data_recipes.RECIPES["modcloth"]
    files = {"paper": (RawFile("modcloth.train.rating", server.url),), "clean": ()}
    monkeypatch.setitem(
        data_recipes.RECIPES, "modcloth", Recipe(*[getattr(modcloth, n) for n in list(vars(modcloth))[:8]], files)
    )
    check_dataset("modcloth", "paper")
    with pytest.raises(UserError, match="the server says 404 Not Found; give --from FOLDER"):
        find_folder("modcloth", "paper")


# Archives


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives(tmp_path: Path, pack: Callable[[Path, dict[str, bytes]], Path]) -> None:
    source = pack(tmp_path / "a.pack", {"DeCA-main/data/x/one": b"1", "DeCA-main/README": b"2"})
    assert archive.is_archive(source)
    folder = archive.unpack(source, tmp_path / "out")
    assert folder == tmp_path / "out" / "DeCA-main"
    assert (folder / "data" / "x" / "one").read_bytes() == b"1"
    assert not archive.is_archive(folder / "README")


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_members_that_lead_out_are_refused(
    tmp_path: Path, pack: Callable[[Path, dict[str, bytes]], Path], name: str
) -> None:
    source = pack(tmp_path / "a.pack", {name: b"x"})
    with pytest.raises(RecipeError, match="would lie outside of its folder; not unpacked"):
        archive.unpack(source, tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.pack"]


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(entry)
    with pytest.raises(RecipeError, match="is a link or no plain file"):
        archive.unpack(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_cut_short(tmp_path: Path, pack: Callable[[Path, dict[str, bytes]], Path]) -> None:
    source = pack(tmp_path / "a.pack", {"x": bytes(range(256)) * 500})
    packed = bytearray(source.read_bytes())
    packed[60:90] = b"?" * 30
    source.write_bytes(packed if pack is zipped else packed[:-300])
    with pytest.raises(RecipeError, match="is an archive that is cut short or broken"):
        archive.unpack(source, tmp_path / "out")


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_a_packed_file_cut_before_its_first_block(tmp_path: Path, ending: str) -> None:
    """tarfile reads 512 bytes to tell what a file is, and raises another error where there are fewer."""
    source = tmp_path / f"a.tar.{ending}"
    with tarfile.open(source, f"w:{ending}") as packed:  # type: ignore[call-overload]
        packed.addfile(tarfile.TarInfo("x"))
    source.write_bytes(source.read_bytes()[:40])
    plain = tmp_path / f"a.csv.{ending}"
    plain.write_bytes(source.read_bytes())
    assert not archive.is_archive(plain)
    with pytest.raises(RecipeError, match="is an archive that is cut short or broken"):
        data_recipes.build("ml-100k", tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


def test_a_recipe_reads_its_files_out_of_a_repositorys_archive(real_data: Path, tmp_path: Path) -> None:
    raw_files = real_data / "recsys" / "modcloth"
    if not raw_files.is_dir():
        pytest.skip(f"{raw_files} is not there")
    members = {f"DeCA-main/data/modcloth/{path.name}": path.read_bytes() for path in raw_files.iterdir()}
    source = zipped(tmp_path / "DeCA-main.zip", members)
    (folder,) = data_recipes.build("modcloth", tmp_path / "out", source)
    assert data_recipes.verify_folder(folder)["splits"]["train"]["rows"] == 79_914
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["paper"]
