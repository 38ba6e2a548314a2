"""What README.md and docker/README.md say can be typed: every command and option there is one of the program's."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import typer.main
from services import REPOSITORY

from app.cli.main import cli

README = (REPOSITORY / "README.md").read_text()
MANUALS = [README, (REPOSITORY / "docker" / "README.md").read_text(), (REPOSITORY / "CONTRIBUTING.md").read_text()]
PROGRAM = typer.main.get_command(cli)


def listed() -> Iterator[str]:
    """Commands of the README's list, where `ls | show ID` are two of one group."""
    (block,) = re.findall(r"^## Commands\n+```sh\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        for typed in re.split(r"\s{3,}", line):
            if not typed.startswith("flywheel "):
                continue
            group, *rest = typed.removeprefix("flywheel ").split(" ")
            # `otlp|kafka` are values; ` | ` stands between commands.
            for part in " ".join(rest).split(" | "):
                yield f"{group} {part}".strip()


def quoted() -> Iterator[str]:
    """Commands between backticks and in blocks."""
    for text in MANUALS:
        without_list = re.sub(r"^## Commands\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
        for inline in re.findall(r"`flywheel ([a-z][^`\n]*)`", without_list):
            yield from alternatives(inline)
        for block in re.findall(r"```sh\n(.*?)```", without_list, re.DOTALL):
            yield from re.findall(r"(?:^|[ \t])flywheel ([a-z][^#\n;&|]*)", block, re.MULTILINE)


def alternatives(typed: str) -> Iterator[str]:
    """`cycles halt | resume` are `cycles halt` and `cycles resume`."""
    group, _, rest = typed.partition(" ")
    for part in rest.split(" | "):
        yield f"{group} {part}".strip()


@pytest.mark.parametrize("typed", sorted({*listed(), *quoted()}))
def test_what_the_manuals_say_is_a_command(typed: str) -> None:
    words = typed.split()
    command = PROGRAM
    while words and (inner := getattr(command, "commands", None)):
        name = words.pop(0)
        assert name in inner, f"flywheel {typed}: {name} is no command of {command.name}"
        command = inner[name]
    known = {option for parameter in command.params for option in parameter.opts}
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= known, f"flywheel {typed}: {used - known}"
    # A bare name in a list stands for the command; with anything behind it, it is to be typed as it stands.
    needed = [
        set(parameter.opts) for parameter in command.params if parameter.required and parameter.opts[0][:2] == "--"
    ]
    assert not words or not [options for options in needed if not options & used], f"flywheel {typed} needs {needed}"


def test_enough_was_found_to_mean_something() -> None:
    assert len({*listed()}) > 40
    assert len({*quoted()}) > 20
