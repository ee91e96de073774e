"""What is installed is what was locked: every file by its digest, with every installer, on every way to a node."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.infra.conftest import ROOT

LOCKS = {"requirements.lock": (), "requirements-dev.lock": ("dev", "bench")}
INSTALL = re.compile(r"\bpip (?:install|wheel)\b[^|&\n]*(?:\\\n[^|&\n]*)*")
OWN = {"-e .", "/tmp/wheel/*.whl", "/tmp/source"}  # our own sources, which no registry sends


def locked(name: str) -> dict[str, set[str]]:
    """Requirement -> digests, of a lock file."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        requirement, *digests = re.split(r"\s+--hash=", line.strip())
        found[requirement] = set(digests)
    return found


def test_every_locked_package_has_one_version_and_digests() -> None:
    for name in LOCKS:
        for requirement, digests in locked(name).items():
            assert re.fullmatch(r"[a-z0-9.-]+==[^ *]+( ; .+)?", requirement), (name, requirement)
            assert digests, (name, requirement)
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests), (name, requirement)


def test_developers_and_nodes_have_the_same_versions() -> None:
    node, developer = ({Requirement(each).name: each for each in locked(name)} for name in LOCKS)
    assert node.keys() < developer.keys()
    for name, requirement in node.items():
        assert Requirement(requirement).specifier == Requirement(developer[name]).specifier
    tools = {Requirement(each).name for each in ("pytest", "ruff", "moto", "uv")}
    assert tools <= developer.keys()
    assert not tools & node.keys()


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_fits_what_the_project_asks_for(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(each for extra in LOCKS[name] for each in project["optional-dependencies"][extra]),
    ]
    versions: dict[str, list[str]] = {}
    for requirement in map(Requirement, locked(name)):
        [exact] = requirement.specifier
        versions.setdefault(requirement.name, []).append(exact.version)
    for requirement in map(Requirement, asked):
        assert versions[requirement.name], requirement
        assert all(version in requirement.specifier for version in versions[requirement.name]), requirement


def test_nothing_is_installed_without_its_digest() -> None:
    commands = {}
    for name in ("Makefile", "k8s/Dockerfile"):
        text = re.sub(r"^\s*#.*$|^PIP := .*$", "", (ROOT / name).read_text(), flags=re.M).replace(
            "$(PIP)", "pip install"
        )
        commands[name] = [" ".join(each.replace("\\\n", " ").split()) for each in INSTALL.findall(text)]
    assert len(commands["Makefile"]) >= 3
    assert commands["k8s/Dockerfile"]
    page = "docs/cluster.md"
    commands[page] = re.findall(r"pip install [^`\n]*requirements[^`\n]*", (ROOT / page).read_text())
    assert commands[page]
    for name, found in commands.items():
        for command in found:
            own = "--no-deps" in command and any(each in command for each in OWN)
            if own:
                # A source is built with the setuptools of the lock, not with one that pip fetches for it.
                assert "--no-build-isolation" in command or command.endswith(".whl"), (name, command)
            else:
                assert "--require-hashes" in command, (name, command)
