"""The house around the code: README, version, licence, package files, docstrings, settings."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import omenn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
VERSION = PROJECT["project"]["version"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def modules() -> list[str]:
    return [found.name for found in pkgutil.walk_packages(omenn.__path__, "omenn.")]


# README


def test_python_of_the_readme_runs(inside_tmp: Path) -> None:
    names: dict[str, object] = {}
    for number, block in enumerate(blocks("python"), 1):  # a later one goes on where it stopped
        exec(compile(block, f"README.md, example {number}", "exec"), names)
    assert (inside_tmp / "bird.png").stat().st_size > 10_000


def test_readme_has_an_example_of_about_ten_lines() -> None:
    first = blocks("python")[0]
    assert 5 <= len([line for line in first.splitlines() if line.strip()]) <= 12


def test_commands_of_the_readme_exist() -> None:
    from typer.main import get_command

    from omenn.cli import app

    root = get_command(app)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    calls = [line.split() for line in lines if line.startswith("omenn ")]
    assert len(calls) >= 6
    for words in calls:
        commands = getattr(root, "commands")  # noqa: B009, not an attribute of every command
        command = commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        used = {word for word in words[2:] if word.startswith("-")}
        if not hasattr(command, "commands"):
            assert used <= known, f"{' '.join(words)}: unknown {used - known}"


def test_make_targets_of_readme_and_contributing_exist() -> None:
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    used = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"`+[^`]*`+", text))))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= used <= known


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    text = re.sub(r"<!--.*?-->", "", (ROOT / name).read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    targets += re.findall(r'\b(?:src|href)="([^"#]+)"', text)
    local = [target for target in targets if "://" not in target]
    missing = [target for target in local if not (ROOT / target).exists()]
    assert not missing


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_paths_in_prose_exist(name: str) -> None:
    quoted = re.findall(
        r"`((?:src|tests|experiments|docs|\.ci)/[\w./-]*)`", (ROOT / name).read_text()
    )
    assert [path for path in quoted if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_files_named_in_prose_exist(name: str) -> None:
    named = re.findall(r"`(\w+\.py)`", (ROOT / name).read_text())
    there = {
        path.name
        for folder in ("src", "tests", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert [file for file in named if file not in there] == []


def test_a_file_name_stands_once() -> None:
    names = [path.name for path in (ROOT / "src" / "omenn").rglob("*.py")]
    twice = {name for name in names if names.count(name) > 1}
    assert twice == {"__init__.py"}


# What knows pictures


KNOWS_PICTURES = {"data", "modalities", "viz"}
"""The only rooms that do; ``models`` besides says which modality a network has."""


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_what_a_picture_is_is_known_in_few_rooms() -> None:
    package = ROOT / "src" / "omenn"
    pictures = re.compile(r"PIL\b|omenn\.modalities\.image\b")
    found = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if any(map(pictures.match, imported(path)))
    }
    assert found - KNOWS_PICTURES == {"models"}


# One version, one licence


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert omenn.__version__ == VERSION
    assert re.search(r"^version: (\S+)$", citation, flags=re.MULTILINE)[1] == VERSION
    assert re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)[1] == VERSION


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert re.search(r"^license: Apache-2\.0$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


# What is installed


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src"
    files = [
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    ]
    assert {str(path.relative_to(package)) for path in files} <= names
    assert "omenn/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    endings = {Path(name).suffix for name in names if name.startswith("omenn/models/weights/")}
    assert {".safetensors", ".json"} <= endings


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_oldest_torch_is_the_tested_one() -> None:
    (oldest,) = re.findall(r"^torch>=(\S+)$", "\n".join(PROJECT["project"]["dependencies"]), re.M)
    assert pins()["torch"].startswith(f"{oldest}.")


def test_every_requirement_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(name for extra in extras for name in extra)]
    bare = [re.split(r"[\[<>=]", name)[0].lower().replace("_", "-") for name in wanted]
    assert [name for name in bare if name not in pins()] == []


# The examples in docstrings


@pytest.mark.usefixtures("inside_tmp", "nothing_registered")
@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), verbose=False)
    assert result.failed == 0


# The tests themselves


def test_tests_cannot_reach_the_network() -> None:
    with socket.socket() as sock, pytest.raises(RuntimeError, match="use no network"):
        sock.connect(("203.0.113.1", 80))  # an address that is reserved for documentation


def test_tests_can_talk_to_themselves() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getpeername() == server.getsockname()


# the invariants


def test_every_note_of_the_engine_is_listed_in_the_architecture() -> None:
    engine = Path(omenn.__file__).parent / "engine"
    code = "\n".join(path.read_text() for path in engine.rglob("*.py"))
    notes = {" ".join(name.split()) for name in re.findall(r"NOTE\s+\[([^\]]+)\]", code)}
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\|.*\|.*\| (\[.*\]) \|$", page, flags=re.MULTILINE)
    assert notes == {name for row in listed for name in re.findall(r"\[([^\]]+)\]", row)}
    assert "NOTE" not in re.sub(r"NOTE\s+\[", "", code), "a NOTE has a name"
