import re
import runpy
import sys
from pathlib import Path

import pytest

from oasisgen import cli, storage
from oasisgen.address import parse
from oasisgen.errors import UserError
from tests.conftest import ROOT, one_line


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "is not a valid address"),
        ("s3://bucket/a\nb", "is not a valid address"),
        ("s3:/bucket/x", "// is missing after the first colon"),
        ("file:/tmp/x", "// is missing after the first colon"),
        ("gs://bucket/x", "gs:// is not supported"),
        ("https://host/x", "https:// is not supported"),
        ("hdfs://x", "hdfs:// is not supported"),
        ("s3:///x", "names no bucket"),
        ("s3://key:secret@bucket/x", "is not a valid bucket name"),
        ("s3://bucket:9000/x", "is not a valid bucket name"),
        ("s3://bucket/a//b", "names between slashes cannot be empty"),
        ("s3://bucket//a", "names between slashes cannot be empty"),
        ("s3://bucket/a/../b", "names between slashes cannot be empty, . or .."),
        ("s3://bucket/x?region=eu-west-1", "options after \\? are not supported: set AWS_REGION"),
        ("file:///tmp/a#b", "a file:// address cannot contain \\? or #"),
        ("file:///tmp/a?b=1", "a file:// address cannot contain \\? or #"),
        ("file://host/x", "names another machine"),
        ("file://[x", "is not a valid address"),
        ("file://[x]/y", "is not a valid address|names another machine"),
        ("file:///tmp/a%00b", "is not a valid address"),
        ("file:///tmp/a%0Ab", "is not a valid address"),
        ("file:///tmp/a%FCb", "is not a valid address"),
        ("~nosuchuser/x", "names no user's home: give a path"),
    ],
)
def test_what_is_no_address_is_one_line_that_says_what_is(uri: str, reason: str) -> None:
    for use in (parse, storage.resolve, storage.absolute, lambda uri: storage.check(uri, write=True)):
        with pytest.raises(UserError, match=reason) as raised:
            use(uri)
        assert len(str(raised.value).splitlines()) == 1


def test_one_place_has_one_spelling(tmp_path: Path) -> None:
    for spelling in (f"{tmp_path}/", f"file://{tmp_path}", f"file://localhost{tmp_path}", f"{tmp_path}/x/.."):
        assert storage.absolute(spelling) == str(tmp_path)
    assert storage.absolute("s3://bucket/run/") == storage.absolute("s3://bucket/run") == "s3://bucket/run"
    assert (parse("s3://bucket/a/b#c").bucket, parse("s3://bucket/a/b#c").key) == ("bucket", "a/b#c")
    assert (parse("s3://bucket").path, parse("s3://bucket/").key) == ("bucket", "")
    assert storage.absolute("file:///tmp/a%20b") == "/tmp/a b"


JOBS = {
    "pack": "--source raw --splits p --table t --out d",
    "phantom": "--out raw",
    "train": "--data d --out r",
    "generate": "--model r --out b --data d --inception w.pth",
    "evaluate": "--model r --data d --out e",
}
CALLS = [
    *((job, flags, name) for job, flags in JOBS.items() for name in re.findall(r"--(\w+)", flags)),
    ("generate", "--verify b", "verify"),
    ("evaluate", "--batch b", "batch"),
]


@pytest.mark.parametrize(("job", "flags", "name"), CALLS)
def test_every_job_refuses_an_address_that_it_cannot_use_before_it_touches_anything(
    job: str,
    flags: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = re.sub(rf"--{name} \S+", f"--{name} gs://bucket/x", flags)
    monkeypatch.setattr(sys, "argv", [job, *given.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    assert ended.value.code == 2
    said = one_line(capsys.readouterr().err)
    assert said.startswith(f"{job}.py: {name} is gs://bucket/x: gs:// is not supported: give a")
    assert not list(tmp_path.iterdir())


def test_every_flag_that_is_an_address_is_checked() -> None:
    sources = [*(ROOT / "jobs").glob("*.py"), *(ROOT / "oasisgen" / "config").glob("*.py")]
    flags = {name for path in sources for name in re.findall(r'(\w+): str.*\n\s+"""URI', path.read_text())}
    assert flags == set(cli.ADDRESSES) == {name for _, _, name in CALLS}
