import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from oasisgen import storage
from oasisgen.data.tree import list_tree, read_file
from oasisgen.errors import InvalidFile, UserError

FILES = {f"disc1/OAS1_000{n}_MR1/{name}": os.urandom(30_000 + n) + bytes(70_000) for n in (1, 2) for name in "ab"}
LEFTOVERS = [
    "__MACOSX/disc1/._a", "disc1/._a", "disc1/.DS_Store", "Thumbs.db", "disc1/desktop.ini", "disc1/.directory",
    "disc1/$RECYCLE.BIN/x",
]  # fmt: skip


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix.lower() in (".gz", ".tgz") else "w") as tar:
        for info in others:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read_all(source: str) -> dict[str, bytes]:
    return {file.path: read_file(source, file) for file in list_tree(source).files}


def stored(path: Path, files: dict[str, bytes]) -> Path:
    return write_zip(path, files, zipfile.ZIP_STORED)


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "disc1": write_folder, "disc1.tar": write_tar, "disc1.tar.gz": write_tar, "disc1.TGZ": write_tar,
    "disc1.zip": write_zip, "plain.zip": stored,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_files_are_read_from_folders_and_archives_without_what_systems_leave_behind(
    name: str, tmp_path: Path, s3: str
) -> None:
    (tmp_path / "source").mkdir()
    source = WRITERS[name](tmp_path / "source" / name, FILES | dict.fromkeys(LEFTOVERS, b"left"))
    assert read_all(str(source)) == FILES
    inside = {f"{name}/{path}": data for path, data in FILES.items()}
    assert read_all(str(tmp_path / "source")) == inside
    if source.is_file():
        storage.write_bytes(f"{s3}/trees/{name}/{name}", source.read_bytes())
        assert read_all(f"{s3}/trees/{name}") == inside
        assert read_all(f"{s3}/trees/{name}/{name}") == FILES


def test_zero_byte_markers_of_folders_on_s3_are_no_files(s3: str) -> None:
    from oasisgen import s3 as client

    bucket, _, prefix = f"{s3}/markers".removeprefix("s3://").partition("/")
    for key in ("train/", "train/a/", "train", "other_$folder$"):
        client.client().put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"")
    storage.write_bytes(f"{s3}/markers/train/a/b.png", b"slice")
    tree = list_tree(f"{s3}/markers")
    assert ([file.path for file in tree.files], tree.rejected, tree.unused) == (["train/a/b.png"], [], [])


def test_members_that_lead_outside_links_and_archives_are_named_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    odd = []
    for name, kind in {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "null": tarfile.CHRTYPE}.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, str(tmp_path / "secret")
        odd.append(info)
    names = {"/etc/passwd": b"x", "../secret": b"x", "a/../../secret": b"x", "C:/x": b"x", "inner.zip": b"x"}
    (tmp_path / "source").mkdir()
    write_tar(tmp_path / "source" / "a.tar", {"ok": b"fine"} | names, *odd)
    with zipfile.ZipFile(write_zip(tmp_path / "source" / "b.zip", {"ok": b"fine", **names}), "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(tmp_path / "secret"))
    (tmp_path / "source" / "c.7z").write_bytes(b"7z")
    source = str(tmp_path / "source")
    assert read_all(source) == {"a.tar/ok": b"fine", "b.zip/ok": b"fine"}
    unused = {file.path: file.reason for file in list_tree(source).unused}
    assert unused["a.tar/inner.zip"] == unused["b.zip/inner.zip"] == "an archive in an archive: unpack the outer one"
    assert {unused[name] for name in ("a.tar/link", "a.tar/hard", "a.tar/null", "b.zip/link")} == {
        "in an archive, a link, a device or a sparse file"
    }
    assert list(unused.values()).count("in an archive, under a path that leads outside") == 8
    assert unused["c.7z"].startswith("an archive other than")
    assert len(unused) == 15


def test_files_with_odd_names_are_rejected_and_the_others_are_read(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {"train/a": b"fine", "train/a\nb": b"x", "train/c\x1b[2J": b"x"})
    (source / os.fsdecode(b"M\xfcller")).mkdir()
    (source / os.fsdecode(b"M\xfcller/a")).write_bytes(b"x")
    tree = list_tree(str(source))
    assert [file.path for file in tree.files] == ["train/a"]
    assert {file.file for file in tree.rejected} == {r"M\udcfcller/a", r"train/a\nb", r"train/c\x1b[2J"}
    assert {file.reason for file in tree.rejected} == {
        "its name has characters that cannot be printed, or is not UTF-8: rename it"
    }
    assert storage.list_names(str(source)) == storage.list_folders(str(source)) == ["train"]


def test_members_with_odd_names_or_none_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for name in ("ok", "M\xfcller", "a\nb", "."):
            tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("Z\xfcrich")
        link.type = tarfile.SYMTYPE
        tar.addfile(link)
    with zipfile.ZipFile(write_zip(tmp_path / "b.zip", {"ok": b"fine", "M\xfcller": b"fine", "a\nb": b"x"}), "a") as b:
        nameless = zipfile.ZipInfo()
        nameless.filename = ""
        b.writestr(nameless, b"x")
    tree = list_tree(str(tmp_path))
    assert [file.path for file in tree.files] == ["a.tar/ok", "b.zip/M\xfcller", "b.zip/ok"]
    unused = {file.path: file.reason for file in tree.unused}
    assert unused.pop(r"a.tar/Z\udcfcrich") == "in an archive, a link, a device or a sparse file"
    odd = "in an archive, under a name that is not UTF-8, or with control characters"
    assert unused == {
        r"a.tar/M\udcfcller": odd,
        r"a.tar/a\nb": odd,
        r"b.zip/a\nb": odd,
        "a.tar": "in an archive, without a name",
        "b.zip": "in an archive, without a name",
    }


def test_links_that_lead_upward_are_named_at_once(tmp_path: Path) -> None:
    """Followed, each pair of them doubles the paths with every step."""
    source = write_folder(tmp_path / "source", {"train/a": b"x"})
    (tmp_path / "elsewhere").mkdir()
    (source / "more").symlink_to(tmp_path / "elsewhere")  # leads nowhere upward
    assert read_all(str(source)) == {"train/a": b"x"}
    places = {"again": source, "train/up": tmp_path, "more/back": source}
    for place, target in places.items():
        (source / place).symlink_to(target)
        (source / place).with_name("twin").symlink_to(target)
        with pytest.raises(UserError, match=r"source: cannot list: .* leads to a folder that it is in; .*: fix them$"):
            list_tree(str(source))
        (source / place).unlink()
        (source / place).with_name("twin").unlink()


def broken(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def encrypted(path: Path) -> Path:
    """A .zip whose members are marked as encrypted, as `zip -e` marks them."""
    data = bytearray(write_zip(path, {"a": b"x"}).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    return path


def huge_header(path: Path) -> Path:
    """A .tar.gz of 20 MB whose one header claims 8 GB, so that a reader would take it all into memory."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 7 << 30
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(20):
            file.write(bytes(1 << 20))
    return path


DAMAGED: dict[str, Callable[[Path], Path]] = {
    "empty.zip": lambda path: write_zip(path, {}),
    "empty.tar": lambda path: write_tar(path, {}),
    "zero.tar.gz": lambda path: write_folder(path.parent, {path.name: b""}) / path.name,
    "text.zip": lambda path: write_folder(path.parent, {path.name: b"not found\n" * 99}) / path.name,
    "text.tar": lambda path: write_folder(path.parent, {path.name: b"not found\n" * 99}) / path.name,
    "text.tar.gz": lambda path: write_folder(path.parent, {path.name: b"not found\n" * 99}) / path.name,
    "half.zip": lambda path: broken(write_zip(path, FILES), lambda data: data[: len(data) // 2]),
    "half.tar": lambda path: broken(write_tar(path, FILES), lambda data: data[: len(data) // 2]),
    "half.tar.gz": lambda path: broken(write_tar(path, FILES), lambda data: data[: len(data) // 2]),
    "headers.tar": lambda path: broken(write_tar(path, FILES), lambda data: data[: 512 + 512 * 196]),
    "last.tar.gz": lambda path: broken(write_tar(path, FILES), lambda data: data[:-4]),
    "flipped.tar.gz": lambda path: broken(
        write_tar(path, FILES), lambda data: data[:20_000] + bytes([data[20_000] ^ 8]) + data[20_001:]
    ),
    "secret.zip": encrypted,
    "header.tar.gz": huge_header,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_one_line_that_names_it_and_costs_no_memory(name: str, tmp_path: Path) -> None:
    archive = DAMAGED[name](tmp_path / name)
    tracemalloc.start()
    with pytest.raises(InvalidFile) as raised:
        list_tree(str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(archive) in str(raised.value)
    assert any(fix in str(raised.value) for fix in ("copy it again", "unpack it"))
    assert "\n" not in str(raised.value)
    assert peak < 8 << 20


def test_a_zip_bomb_costs_no_memory_and_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    bomb = write_zip(tmp_path / "bomb.zip", {"slice.png": bytes(200 << 20)})
    data = bytearray(bomb.read_bytes())
    at = data.index(b"PK\1\2") + 24  # the size that it claims
    data[at : at + 4] = struct.pack("<I", 1000)
    bomb.write_bytes(data)
    (file,) = list_tree(str(bomb)).files
    tracemalloc.start()
    with pytest.raises(InvalidFile, match=r"bomb.zip is truncated or damaged \(slice.png is not whole\): copy it"):
        read_file(str(bomb), file)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    whole = stored(tmp_path / "flipped.zip", FILES)
    broken(whole, lambda data: data[:5_000] + bytes([data[5_000] ^ 1]) + data[5_001:])
    with pytest.raises(InvalidFile, match=r"flipped.zip is truncated or damaged"):
        read_all(str(whole))


def test_an_archive_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder at .*a.zip: give --source the folder .* or an archive"):
        list_tree(str(tmp_path / "a.zip"))
