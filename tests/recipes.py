"""The recipes of the documentation, and what each program in them would make of its command line."""

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import click
from packaging.requirements import Requirement
from ray.scripts.scripts import cli as ray_cli

from oasisgen import __version__, cli
from tests.conftest import ROOT

PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "k8s" / "README.md")
BLOCK = re.compile(r"^( *)```(sh|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PROGRAMS = "python", "ray", "pip", "make", "kubectl", "helm", "docker"  # that are noted; others are run
PASSED_ON = "bash", "cp", "base64", "cat", "date"
NOTE = """#!/bin/bash
note=$(printf '%s\\x1f' {program} "$@")
printf '%s\\x1e' "$note" >> {log}  # one write: programs in the background do not mix
"""
NO_SERVER = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Recipe:
    """A block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def recipes(language: str) -> list[Recipe]:
    """All blocks of a language, `sh` or `python`."""
    return [
        Recipe(page, text[: found.start()].count("\n") + 1, language, re.sub(f"^{found[1]}", "", found[3], flags=re.M))
        for page in PAGES
        for text in [page.read_text()]
        for found in BLOCK.finditer(text)
        if found[2] == language
    ]


def inline(page: Path) -> list[str]:
    """What a page sets as `code` in its text."""
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def recipe(page: str, first: str) -> str:
    """The block of a page that begins with `first`."""
    (found,) = [
        each.text
        for language in ("sh", "python")
        for each in recipes(language)
        if each.page == ROOT / page and each.text.startswith(first)
    ]
    return found


def commands(shell: str, folder: Path) -> list[list[str]]:
    """The command lines that bash makes of a recipe, run in `folder`, where PROGRAMS only note how they were called.

    Raises CalledProcessError for a syntax error, an unset variable, and a program of another name.
    """
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    log = programs / "log"
    log.write_text("")
    for name in PROGRAMS:
        (programs / name).write_text(NOTE.format(program=name, log=shlex.quote(str(log))))
        (programs / name).chmod(0o755)
    for name in PASSED_ON:
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / "less").unlink(missing_ok=True)
    (programs / "less").symlink_to(str(shutil.which("cat")))
    subprocess.run(
        [str(shutil.which("bash")), "-euc", f"{shell.replace('<id>', 'raysubmit_1')}\nwait"],
        cwd=folder,
        env={"PATH": str(programs), "HOME": str(folder), "OASISGEN_OASIS_DIR": "raw"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return [call.split("\x1f")[:-1] for call in log.read_text().split("\x1e")[:-1]]


class Understood(Exception):
    """A program has parsed its command line."""


def check(command: Sequence[str], folder: Path) -> None:
    """Let a program parse its command line, as far as that needs nothing else. Raises where it does not understand."""
    CHECKS[command[0]](list(command[1:]), folder)


def check_python(arguments: list[str], folder: Path) -> None:
    """One of our programs: a job, or a module with an argparse parser."""
    with patch.object(sys, "argv", arguments):
        if arguments[0] == "-m":
            _check_module(arguments[1], arguments[2:])
            return
        with patch.object(cli, "run", lambda job, name: None):
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")  # exits with 2 if a flag is wrong


def _check_module(name: str, arguments: list[str]) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *unused: object) -> None:
        parse(self, arguments)
        raise Understood

    try:
        with patch.object(argparse.ArgumentParser, "parse_args", parse_only):
            runpy.run_module(name, run_name="__main__")
    except Understood:
        return
    raise AssertionError(f"{name} did not parse its arguments")


def check_ray(arguments: list[str], folder: Path) -> None:
    """Ray's command line, and the command that it hands on."""
    command: click.Command = ray_cli
    while True:
        context = command.make_context("ray", arguments)  # raises UsageError
        if not isinstance(command, click.Group):
            break
        _, found, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found, arguments
        command = found
    given = context.params
    if entrypoint := given.get("entrypoint"):
        check(list(entrypoint), folder)
    if script := given.get("script"):
        check_python([script, *given["script_args"]], folder)
    if remote := given.get("cmd"):
        check(shlex.split(remote), folder)
    if config := given.get("cluster_config_file"):
        assert (ROOT / config).is_file(), config


def check_pip(arguments: list[str], folder: Path) -> None:
    """Lock files are there, and versions are those that are locked."""
    assert arguments[0] == "install"
    locked = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if match := re.match(r"([\w.-]+)==(\S+)", line):
            locked[match[1]] = match[2]
    for argument in arguments[1:]:
        if argument.endswith(".lock"):
            assert (ROOT / argument).is_file(), argument
        elif not argument.startswith("-") and argument != ".":
            requirement = Requirement(argument)
            assert locked[requirement.name] in requirement.specifier, argument


def check_make(arguments: list[str], folder: Path) -> None:
    """make has the target."""
    subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)


def check_kubectl(arguments: list[str], folder: Path) -> None:
    """kubectl gets as far as to look for the server, which is not there."""
    if not shutil.which("kubectl"):
        return
    server = [] if arguments[0] == "kustomize" else [f"--server={NO_SERVER}"]
    done = subprocess.run(
        ["kubectl", *arguments, *server],
        cwd=folder,
        env=os.environ | {"KUBECONFIG": os.devnull},
        capture_output=True,
        text=True,
    )
    if server:
        assert done.returncode == 1, done
        assert "refused" in done.stderr, done.stderr
    else:
        assert done.returncode == 0, done.stderr


def check_helm(arguments: list[str], folder: Path) -> None:
    """The operator's chart, in the version whose schemas the manifests are tested with."""
    assert arguments[:3] == ["install", "kuberay-operator", "kuberay/kuberay-operator"]
    assert set(arguments[3::2]) - {"kuberay", "1.7.0"} <= {"--namespace", "--create-namespace", "--version"}


def check_docker(arguments: list[str], folder: Path) -> None:
    """The image is built from our Dockerfile with arguments that it has, and tagged with our version."""
    dockerfile = (ROOT / "k8s" / "Dockerfile").read_text()
    base = re.search(r"^ARG BASE=(\S+)$", dockerfile, re.M)
    assert base
    match arguments:
        case ["pull", image]:
            assert image == base[1]
        case ["push", image]:
            assert image.endswith(f"/oasisgen:{__version__}")
        case ["build", "-f", file, "--build-arg", build, "-t", image, "."]:
            assert (ROOT / file).is_file(), file
            assert build.startswith(f"BASE={base[1]}@sha256:")
            assert image.endswith(f"/oasisgen:{__version__}")
        case _:
            raise AssertionError(f"docker {shlex.join(arguments)} is not known to this test")


CHECKS: dict[str, Callable[[list[str], Path], None]] = {
    "python": check_python,
    "ray": check_ray,
    "pip": check_pip,
    "make": check_make,
    "kubectl": check_kubectl,
    "helm": check_helm,
    "docker": check_docker,
}
