"""The command line: every command of `flywheel` with any arguments, through its entry point, in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

import typer
import yaml
from web_rig import HOSTILE, Rig

from app.cli.main import cli, main
from app.settings.export import to_environment
from fuzz.document_seeds import constitution
from fuzz.frame import Case, Target, check
from fuzz.values import MARK, Changer
from models.cycle import CycleState

PLANTED = "planted-secret-of-the-command-line-0123"
STATUSES = frozenset((0, 1, 2, 130))
RUNNERS = frozenset(("worker", "up", "demo", "policy-engine", "audit-engine", "topics create", "emit"))
"""They run until they are stopped, or wait long for a broker: with a setting that is wrong, they only get so far."""
SLOW = frozenset(
    (
        "constitution test",
        "constitution diff",
        "privacy show",
        "policy test",
        "policy bundle",
        "policy eval",
        "models promote",
        "models rollback",
        "privacy plan",
    )
)
TELLS_FIRST = frozenset(("examples export",))
"""The audit log is told before text leaves: it may then not be written after all."""
TERMINAL = ("\x1b",)
MOST_TOLD = 20_000
FILES = ("events.jsonl", "facts.json", "constitution.yaml", "texts.jsonl", "heads.jsonl", "keys")


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", typer.main.get_command(cli))]
    while waiting:
        words, command = waiting.pop()
        inner = getattr(command, "commands", None)
        if inner is None:
            found[words] = command
        else:
            waiting += [(f"{words} {name}".strip(), one) for name, one in inner.items()]
    return dict(sorted(found.items()))


COMMANDS = commands()


class CliTarget(Target):
    """A command does what it says and ends with 0, or says on standard error why not, and changes nothing."""

    name = "cli"
    short_cases = 350
    hang_s = 40.0
    memory_mb = 800

    def start(self) -> None:
        """A store with something in it, and files to name."""
        self.secrets = (PLANTED,)
        self.rig = Rig(self.folder, closed=False)
        hostile = f"m {HOSTILE[:20]} \x1b[2J"
        self.cycles = [
            self.rig.cycle(f"{hostile}{number}", "medical", state).cycle_id
            for number, state in enumerate(
                (CycleState.PROMOTED, CycleState.AWAITING_APPROVAL, CycleState.AWAITING_PROMOTION)
            )
        ]
        self.rig.example("e-1", "medical", prompt=f"{MARK} \x1b[2J", response=HOSTILE, model_id=hostile)
        self.rig.audited()
        secret = {f"FLYWHEEL_{name}": PLANTED for name in ("WEB__TOKEN", "AUDIT_ENGINE__TOKEN", "PII__SUBJECT_KEY",
                  "CURATION__FEEDBACK_KEY", "WEB__SESSION_KEY", "AUDIT_ENGINE__DIGEST_KEY")}  # fmt: skip
        self.environment = to_environment(self.rig.settings) | secret
        self.environment["FLYWHEEL_AUDIT_ENGINE__DATABASE_URL"] = f"sqlite:///{self.folder / 'audit.db'}"
        database = self.rig.settings.database.url.removeprefix("sqlite:///")
        self.connection = self.stack.enter_context(closing(sqlite3.connect(database, isolation_level=None)))
        self.here = self.folder / "here"
        self.sampled = 0
        self.stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")

    def first(self) -> list[Case]:
        """Every command without arguments; the slow ones with a call for help."""
        return [{"argv": [*words.split(), *(["--help"] if words in SLOW else [])], "command": words, "files": {},
                 "stdin": ""} for words in COMMANDS]  # fmt: skip

    def case(self, draw: random.Random) -> Case:
        """A command with arguments of the kinds that it takes, or of others."""
        changer = Changer(draw)
        words = draw.choice(list(COMMANDS))
        if words in SLOW and draw.random() < 0.9:
            words = draw.choice(list(COMMANDS))
        argv: list[str] = words.split()
        if draw.random() < 0.03:
            argv = [*argv[:-1], changer.word()]
        for parameter in COMMANDS[words].params:
            argv += self._parameter(draw, changer, parameter, words)
        while draw.random() < 0.08:
            argv.insert(
                draw.randrange(1, len(argv) + 1), draw.choice(("--", "-", "--nope", "-x", changer.word(), "--json"))
            )
        files = {}
        for name in FILES:
            if name in argv:
                files[name] = self._file(draw, changer, name)
        stdin = changer.text_of(changer.change({"user": {"id": "ada"}}, 2)) if "-" in argv else ""
        return {"argv": [_harmless(word) for word in argv], "command": words, "files": files, "stdin": stdin}

    def _parameter(self, draw: random.Random, changer: Changer, parameter: Any, words: str) -> list[str]:
        names = [name for name in parameter.opts if name.startswith("--")]
        if names and not parameter.required and draw.random() < 0.55:
            return []
        if draw.random() < 0.03:
            return []
        if names and parameter.is_flag:
            return names[:1]
        value = self._value(draw, changer, parameter, words)
        return [names[0], value] if names else [value]

    def _value(self, draw: random.Random, changer: Changer, parameter: Any, words: str) -> str:
        if draw.random() < 0.3:
            return changer.word()
        kind, name = parameter.type_descriptor.annotation, str(parameter.name)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return str(draw.choice(list(kind)).value)
        if "cycle" in name or "version" in name:
            return "{cycle:0}" if words == "cycles watch" else draw.choice(("{cycle:0}", "{cycle:1}", "{cycle:2}"))
        if kind in (int, float):
            return draw.choice(("1", "5", "0", "-1", "0.5", "nan", "inf", "1e999", "9" * 30, "0x10", "1_0", "٣"))
        if kind is Path or name in {"facts", "start", "public_keys"}:
            return draw.choice(
                (*FILES, "nowhere", "out.tar.gz", "out", "here/there", "x" * 300, "-", ".", "earliest", "0:1")
            )
        return draw.choice(("ada", "bob", "medical", "default", "e-1", "ex-e-1", "trigger.threshold", "0.7", "why", "*",
                            "2026-01-01T00:00:00Z", "0:1", "model_inference", "viewer", "medium"))  # fmt: skip

    def _file(self, draw: random.Random, changer: Changer, name: str) -> str:
        tree: Any = {"event_id": "e-1", "event_type": "model_call", "prompt": MARK, "expected": "compliant"}
        if name == "constitution.yaml":
            text = yaml.safe_dump(constitution()) if draw.random() < 0.6 else "a: [*x"
            return changer.broken(text) if draw.random() < 0.3 else text
        if name == "keys":
            return draw.choice(("00" * 32, "ff" * 32, "x", "", "\xff", "00" * 32 + "\n" + "11" * 32))
        lines = [
            changer.text_of(changer.change(tree, draw.choice((0, 0, 1, 3)))) for _ in range(draw.choice((0, 1, 3)))
        ]
        return "\n".join(lines)

    def run(self, case: Case) -> str:
        """Run it in a folder of its own."""
        self._files(case)
        argv = [self._filled(word) for word in case["argv"]]
        before = self._commits()
        status, out, err = self._in_process(case, argv)
        changed = self._commits() != before
        told = f"{case['command']}: status {status}: {err[-600:]}"
        check(status in STATUSES, told)
        check("Traceback" not in err, told)
        self.unsaid(out + err, "the output")
        check(len(err) < MOST_TOLD, f"standard error has {len(err)} characters")
        for sequence in TERMINAL:
            given = any(sequence in word for word in argv) or any(sequence in text for text in case["files"].values())
            check(given or sequence not in out + err, f"{case['command']}: a terminal would obey what events say")
        if status != 0:
            check(bool(out.strip() or err.strip()), f"{told}: and says nothing")
            if case["command"] not in TELLS_FIRST:
                check(not changed, f"{told}: and changed the store all the same")
        return f"{case['command']} {status}"

    def _in_process(self, case: Case, argv: list[str]) -> tuple[int, str, str]:
        out, err = _Stream(), _Stream()
        stdin = io.TextIOWrapper(io.BytesIO(case["stdin"].encode("latin-1")), encoding="utf-8")
        status: Any = 0
        # As a terminal's locale has it; standard error escapes what it cannot write.
        streams = {"stdin": stdin, "stdout": out.text, "stderr": err.escaping}
        with (
            contextlib.chdir(self.here),
            mock.patch.dict(os.environ, self._environment(case), clear=True),
            mock.patch.multiple(sys, argv=["flywheel", *argv], **streams),
        ):
            try:
                main()
            except SystemExit as end:
                status = 0 if end.code is None else end.code
        return status, out.said(), err.said()

    def _environment(self, case: Case) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLYWHEEL_")}
        broken = {"FLYWHEEL_LOG__LEVEL": "LOUD"} if case["command"] in RUNNERS else {}
        return kept | self.environment | broken | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}

    def _files(self, case: Case) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir()
        for name, text in case["files"].items():
            (self.here / name).write_bytes(text.encode("latin-1", "replace"))

    def _filled(self, word: str) -> str:
        for number, cycle in enumerate(self.cycles):
            word = word.replace(f"{{cycle:{number}}}", cycle)
        return word

    def _commits(self) -> int:
        (version,) = self.connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def settle(self) -> None:
        """What is set is listed; and a process of its own says the same as this one."""
        opened = {"command": "cycles trigger", "files": {}, "stdin": ""}
        model = f"new-{self.sampled}"
        self.sampled += 1
        self._files(opened)
        status, out, err = self._in_process(opened, ["cycles", "trigger", model, "--by", "ada", "--json"])
        if "stand still" in err:  # a case has turned the stop switch
            return
        check(status == 0, f"a cycle is not opened: {err}")
        cycle_id = json.loads(out)["cycle"]
        shown = json.loads(self._in_process(opened, ["cycles", "show", cycle_id, "--json"])[1])
        check((shown["model_id"], shown["requested_by"]) == (model, "ada"), f"it was opened as {shown}")
        argv = random.Random(self.sampled).choice(
            (["config", "check"], ["access", "ls"], ["cycles", "show", "none"], ["x"])
        )
        ran = subprocess.run(
            [sys.executable, "-m", "app", *argv], env=self._environment(opened), cwd=self.here, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        here = self._in_process({**opened, "command": argv[0]}, argv)
        check(ran.returncode == here[0], f"{argv}: {ran.returncode} by itself, {here[0]} here: {ran.stderr[-500:]}")
        check("Traceback" not in ran.stderr, f"{argv}: {ran.stderr[-500:]}")
        self.unsaid(ran.stdout + ran.stderr, "the output")

    def unreached(self, outcomes: Counter[str]) -> set[str]:
        """Every command was run, and those that need nothing but the store did what they should."""
        never = {
            f"{words}: never run" for words in COMMANDS if not any(name.startswith(f"{words} ") for name in outcomes)
        }
        return never | ({"cycles ls 0", "config check 0", "access ls 0"} - set(outcomes))


class _Stream:
    """A standard stream as a process has it."""

    def __init__(self) -> None:
        self.raw = io.BytesIO()
        self.text = io.TextIOWrapper(self.raw, encoding="utf-8", errors="strict", write_through=True)
        self.escaping = io.TextIOWrapper(self.raw, encoding="utf-8", errors="backslashreplace", write_through=True)

    def said(self) -> str:
        """All that was written."""
        return self.raw.getvalue().decode("utf-8", "replace")


def _harmless(word: str) -> str:
    """A word that no process can be given otherwise, and that names nothing outside the folder."""
    text = word.replace("\x00", "").encode("utf-8", "surrogateescape" if _escaped(word) else "replace")
    return text.decode("utf-8", "surrogateescape").replace("..", "dots").lstrip("/~")


def _escaped(word: str) -> bool:
    return all(not 0xD800 <= ord(letter) <= 0xDFFF or 0xDC80 <= ord(letter) <= 0xDCFF for letter in word)
