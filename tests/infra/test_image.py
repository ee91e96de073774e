"""The image: its Dockerfile, what reaches it, and (infra) a build of its steps on a stand-in for Ray's base."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import oasisgen
from tests.infra.conftest import ROOT

DOCKERFILE = ROOT / "k8s/Dockerfile"
TEXT = DOCKERFILE.read_text()


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not hadolint:
        pytest.skip("no hadolint here: the Dockerfile is not linted")
    done = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    bad = TEXT.replace("--no-cache-dir --require", "--require").replace("FROM ${BASE}", "FROM rayproject/ray:latest")
    done = subprocess.run([hadolint, "--no-color", "-"], input=bad, capture_output=True, text=True)
    assert {"DL3007", "DL3042"} <= set(re.findall(r"DL\d+", done.stdout))


def test_versions_agree() -> None:
    ray = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert ray
    assert f"ARG BASE=rayproject/ray:{ray[1]}-py311-gpu\n" in TEXT
    assert f"ARG VERSION={oasisgen.__version__}\n" in TEXT


def test_the_image_tells_its_base() -> None:
    last = TEXT.split("\nFROM ")[-1]
    assert "\nARG BASE\n" in last
    assert 'org.opencontainers.image.base.name="${BASE}"' in last


def test_it_does_not_run_as_root() -> None:
    stages = TEXT.split("\nFROM ")
    assert re.findall(r"^USER (.+)$", stages[-1], re.M) == ["1000:100"]


def test_only_what_is_copied_is_sent_to_the_build() -> None:
    rules = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    kept = {rule.split("/")[0] for rule in rules}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.M)
        for word in [part for part in line.split() if not part.startswith("--")][:-1]
    }
    assert kept == copied
    assert "\n*\n" in (ROOT / ".dockerignore").read_text()


@pytest.fixture
def buildah(tmp_path: Path) -> Callable[..., str]:
    """Runs buildah with a store of its own, without a daemon or privileges beyond chroot."""
    if not shutil.which("buildah"):
        pytest.skip("no buildah here: the image is not built")
    place = ["--root", str(tmp_path / "store"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]

    def run(command: str, *rest: str) -> str:
        done = subprocess.run(["buildah", *place, command, *rest], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return run


def stand_in(folder: Path) -> list[str]:
    """A root file system with a user `ray`, whose Python has the locked packages already. Returns the mounts it needs.

    Programs and packages are this machine's own, mounted: a build takes seconds, not the gigabytes of Ray's image.
    """
    python, packages = Path(sys.base_prefix), Path(sysconfig.get_path("purelib"))
    root, environment = folder / "root", folder / "home/ray/environment"
    site = environment / f"lib/python3.{sys.version_info.minor}/site-packages"
    for name in ("tmp", "proc", "dev", "etc", "usr", "packages", "opt"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nray:x:1000:100::/home/ray:/bin/bash\n")
    (root / "etc/group").write_text("root:x:0:\nusers:x:100:\n")
    site.mkdir(parents=True)
    for package in packages.iterdir():
        if "oasisgen" not in package.name:
            (site / package.name).symlink_to(f"/packages/{package.name}")
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to(python / f"bin/python3.{sys.version_info.minor}")
    (environment / "pyvenv.cfg").write_text(f"home = {python}/bin\n")
    pip = environment / "bin/pip"
    pip.write_text("#!/home/ray/environment/bin/python\nimport runpy\n\nrunpy.run_module('pip', run_name='__main__')\n")
    pip.chmod(0o755)
    (root / python.relative_to("/")).mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(
        "FROM scratch\nCOPY root /\nCOPY --chown=1000:100 home /home\n"
        "ENV HOME=/home/ray PATH=/home/ray/environment/bin:/usr/bin:/bin PIP_DISABLE_PIP_VERSION_CHECK=1\nUSER 1000\n"
    )
    mounts = {"/usr": "/usr", str(python): str(python), str(packages): "/packages"}
    return [f"--volume={source}:{target}:ro" for source, target in mounts.items()]


@pytest.mark.infra
def test_its_steps_build_and_the_jobs_run_in_it(buildah: Callable[..., str], tmp_path: Path) -> None:
    context = tmp_path / "base"
    mounts = stand_in(context)
    buildah("build", "--isolation=chroot", "--tag=base", str(context))
    buildah(
        "build",
        "--isolation=chroot",
        *mounts,
        "--build-arg=BASE=localhost/base",
        "--pull=never",
        f"--file={DOCKERFILE}",
        "--tag=oasisgen",
        ".",
    )
    image = json.loads(buildah("inspect", "--type=image", "localhost/oasisgen"))["OCIv1"]["config"]
    assert (image["User"], image["WorkingDir"]) == ("1000:100", "/opt/oasisgen")
    assert image["Labels"]["org.opencontainers.image.version"] == oasisgen.__version__
    assert image["Labels"]["org.opencontainers.image.base.name"] == "localhost/base"

    container = buildah("from", "--pull=never", "localhost/oasisgen")

    def inside(command: str) -> str:
        return buildah("run", "--isolation=chroot", *mounts, container, "--", "/bin/sh", "-c", command)

    assert inside("id -u") == "1000"
    assert inside("ls") == "jobs"
    assert inside("touch jobs/new 2>/dev/null || echo refused") == "refused"
    package = Path(inside("python -c 'import oasisgen; print(oasisgen.__path__[0])'"))
    assert package.is_relative_to("/home/ray/environment/lib")
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "oasisgen").rglob("*") if path.suffix in {".py", ".html"}}
    assert files <= set(inside(f"cd {package.parent} && find oasisgen -type f").split())
    assert "--checkpoint-seconds" in inside("python jobs/train.py full --help")
