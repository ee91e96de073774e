"""What the repository says in more than one place, it says alike."""

import re
from itertools import chain

import yaml

from oasisgen import __version__
from tests.conftest import ROOT

PLACES = re.compile(
    r"(?:\boasisgen:|name: oasisgen, .*newTag: |^ARG VERSION=|^version: )(\d+\.\d+\.\d+)\b", re.MULTILINE
)


def test_every_image_tag_label_and_citation_names_the_version_of_the_package() -> None:
    files = [ROOT / "cluster.yaml", ROOT / "CITATION.cff", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    files += [file for file in ROOT.glob("k8s/**/*") if file.suffix in {"", ".yaml", ".md"} and file.is_file()]
    named = {str(file.relative_to(ROOT)): set(PLACES.findall(file.read_text())) for file in files}
    found = {name: versions for name, versions in named.items() if versions}
    overlays = [f"k8s/overlays/{overlay.name}/kustomization.yaml" for overlay in ROOT.glob("k8s/overlays/*")]
    assert {"CITATION.cff", "cluster.yaml", "k8s/Dockerfile", "k8s/README.md", *overlays} <= set(found)
    assert set(chain.from_iterable(found.values())) == {__version__}, found


def test_the_workflow_runs_targets_of_the_makefile_and_actions_by_digest() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert job["steps"][-1] == {"run": "make ${{ matrix.target }}"}
    assert {"lint", "test", "test-slow"} <= set(job["strategy"]["matrix"]["target"]) <= targets
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert actions
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action) for action in actions)


def test_every_hook_is_a_check_of_make_lint() -> None:
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    checks = {" ".join(line.split()[:2]).replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()}
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {" ".join(hook["entry"].split()[:2]) for hook in repository["hooks"]} == checks
