"""What leaves a checkout: to a cluster, by Ray's own packager, and into an image, by a real builder."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from tests.conftest import ROOT

DATA = (
    "raw/train/case_0001_slice_0.nii.png",
    "root/datasets/oasis/train/part-00000.parquet",
    "demo/raw/train/case_0001_slice_0.nii.png",
    "scans/OAS1_0001.nii.gz",
    "oasis.tar",
    "case_0001.nii.gz",
    "x",
    "notes.py",
    ".env",
    ".aws/credentials",
    "id_rsa",
    "key.pem",
    "jobs/raw/case_0001_slice_0.nii.png",
    "jobs/case_0001.nii.gz",
    "jobs/.env",
    "oasisgen/raw/case_0001_slice_0.nii.png",
    "oasisgen/data/train/case_0001_slice_0.nii.png",
    "oasisgen/data/cases.csv",
    "oasisgen/key.pem",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout's files at its top and of its code, with data and keys everywhere."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":  # a file in a worktree
            shutil.copy(path, folder)
    for name in ("jobs", "oasisgen", "tests"):
        shutil.copytree(ROOT / name, folder / name)
    for name in DATA:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of a patient")
    return folder


@pytest.mark.parametrize("reads_gitignore", [True, False])
def test_the_code_travels_to_the_cluster_and_nothing_else(
    checkout: Path, tmp_path: Path, reads_gitignore: bool
) -> None:
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=reads_gitignore)
    carried = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    code = [*(ROOT / "jobs").glob("*.py"), *(ROOT / "oasisgen").rglob("*.py"), *(ROOT / "oasisgen").rglob("*.html")]
    assert carried == {str(path.relative_to(ROOT)) for path in code}


def test_the_code_is_sent_to_the_build_of_an_image_and_no_data_that_lies_beside_it(
    checkout: Path, tmp_path: Path
) -> None:
    if not shutil.which("buildah"):
        pytest.skip("no buildah here: no context is sent")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    place = ["--root", str(tmp_path / "store"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    build = ["build", "--isolation", "chroot", "-f", str(tmp_path / "Dockerfile")]
    build += ["--output", f"type=local,dest={tmp_path / 'sent'}", str(checkout)]
    subprocess.run(["buildah", *place, *build], check=True, capture_output=True)
    sent = {str(path.relative_to(tmp_path / "sent")) for path in (tmp_path / "sent").rglob("*") if path.is_file()}
    files = [*(ROOT / "jobs").glob("*.py"), *(ROOT / "oasisgen").rglob("*.py"), *(ROOT / "oasisgen").rglob("*.html")]
    files += [*(ROOT / "oasisgen").rglob("py.typed"), *(ROOT / n for n in ("pyproject.toml", "README.md", "LICENSE"))]
    assert sent == {str(path.relative_to(ROOT)) for path in [*files, ROOT / "requirements.lock"]}


def test_git_does_not_see_data_where_readme_puts_it(checkout: Path) -> None:
    git = ["git", "-C", str(checkout)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    seen = subprocess.check_output([*git, "ls-files", "--others", "--exclude-standard"], text=True).splitlines()
    assert "README.md" in seen
    assert not [name for name in seen if name.startswith(("raw/", "root/", "demo/")) or ".nii" in name]
    assert not {".env", "jobs/.env", "key.pem", "oasisgen/key.pem", ".aws/credentials", "oasis.tar"} & set(seen)
