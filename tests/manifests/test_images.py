"""The Dockerfiles build what their entrypoint needs and nothing else. No Docker is needed: the same steps make an
environment here, whose command has to run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.manifests.documents import REPOSITORY, of_kind

DOCKERFILES = sorted(REPOSITORY.glob("Dockerfile.*"))
EXTRAS = {"google-re2"}
"""What is installed beside our distributions and their requirements: regular expressions of routes."""
BUILD_TOOLS = ("apt-get", "apk ", "gcc", "build-essential", "cargo", "curl ", "wget ")
INSTALL_TIMEOUT_S = 120

each = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.name))


class Stage(NamedTuple):
    """A stage of a Dockerfile: its instructions in order, lines joined."""

    base: str
    name: str
    steps: list[tuple[str, str]]

    def of(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]


def stages(path: Path) -> list[Stage]:
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name, []))
        else:
            found[-1].steps.append((instruction, rest))
    return found


@cache
def projects() -> dict[str, Path]:
    """Return every distribution of this repository and its folder."""
    folders = [REPOSITORY, *REPOSITORY.glob("plugins/*"), *REPOSITORY.glob("entrypoints/*")]
    return {project(folder)["name"]: folder for folder in folders if (folder / "pyproject.toml").exists()}


@cache
def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def closure(name: str) -> set[str]:
    """Return a distribution and those of this repository that it needs."""
    needed = {re.split(r"[~<>=\[; ]", item)[0] for item in project(projects()[name])["dependencies"]}
    return {name}.union(*(closure(item) for item in needed if item in projects()))


def entrypoint(path: Path) -> str:
    (command,) = json.loads(stages(path)[-1].of("ENTRYPOINT")[0])
    return command


def wheels(path: Path) -> list[str]:
    """Return the folders that `pip wheel` is called with."""
    (command,) = [text for text in stages(path)[0].of("RUN") if text.startswith("pip wheel")]
    words = command.split()
    assert words[:5] == ["pip", "wheel", "--no-deps", "--wheel-dir", "/wheels"]
    return words[5:]


def extras(path: Path) -> list[str]:
    """Return what is installed beside the wheels."""
    (command,) = [text for text in stages(path)[0].of("RUN") if "bin/pip install" in text]
    _, _, rest = command.partition(" install ")
    words = rest.split()
    assert words[:3] == ["--no-cache-dir", "-c", "constraints.txt"]
    assert words[3] == "/wheels/*.whl"
    return words[4:]


def test_every_deployment_has_an_image_that_is_built_here() -> None:
    images = {
        container["image"]
        for _, deployment in of_kind("Deployment")
        for container in deployment["spec"]["template"]["spec"]["containers"]
    }
    built = {re.findall(r"docker build -f (\S+) -t (\S+) \.", path.read_text())[0] for path in DOCKERFILES}
    assert {(f"Dockerfile.{image.split(':')[0].rpartition('-')[2]}", image) for image in images} == built


@each
def test_the_wheels_are_the_entrypoint_and_what_it_needs(path: Path) -> None:
    folders = {(REPOSITORY / folder).resolve() for folder in wheels(path)}
    assert folders == {projects()[name] for name in closure(entrypoint(path))}
    assert set(extras(path)) == EXTRAS
    assert entrypoint(path) in project(projects()[entrypoint(path)])["scripts"]


@each
def test_what_is_copied_is_there_and_not_ignored(path: Path) -> None:
    build = stages(path)[0]
    sources = [source for text in build.of("COPY") for source in text.split()[:-1]]
    let_in = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources
    assert all((REPOSITORY / source).exists() for source in sources)
    assert set(sources) <= let_in
    copied = {REPOSITORY / source for source in sources}
    for folder in wheels(path):
        assert folder == "." or any((REPOSITORY / folder).resolve().is_relative_to(one) for one in copied)


@each
def test_the_image_runs_as_nobody_and_has_no_tools_to_build_with(path: Path) -> None:
    build, image = stages(path)
    user, group = (int(part) for part in image.of("USER")[0].split(":"))
    for _, deployment in of_kind("Deployment"):
        context = deployment["spec"]["template"]["spec"]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (user, group)
    assert image.base == build.base == "python:3.11-slim"
    assert not image.of("RUN")
    assert image.of("COPY") == [f"--from={build.name} /opt/datum-router /opt/datum-router"]
    assert not [tool for tool in BUILD_TOOLS for text in build.of("RUN") if tool in text]


@each
def test_the_image_leaves_listeners_to_vpcingresses(path: Path) -> None:
    assert "DATUM_ROUTER_LISTEN" not in path.read_text()


def _install(python: Path, *what: str) -> None:
    """Install as the Dockerfile does; with uv, which is faster, where it works."""
    options = ("-q", "-c", "constraints.txt", *what)
    uv = Path(sys.executable).with_name("uv")
    commands = [(str(uv), "pip", "install", "--python", str(python), *options)] if uv.exists() else []
    commands.append((sys.executable, "-m", "pip", "--python", str(python), "install", *options))
    for command in commands:
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
        if done.returncode == 0:
            return
    raise AssertionError(done.stderr[-2000:])


@pytest.mark.slow
@each
def test_what_the_image_holds_runs(path: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True, timeout=60)
    python = tmp_path / "bin" / "python"
    _install(python, *wheels(path), *extras(path))
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    command = entrypoint(path)
    shown = subprocess.run(
        [command, "--help"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"Usage: {command}")
    listed = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    installed = set(listed.stdout.split())
    assert {name for name in installed if name in projects()} == closure(command)
    assert installed >= EXTRAS
    assert not installed & {"pytest", "mypy", "ruff", "trustme", "hypothesis"}
