"""Constitution files and policy folders, through the loaders that workers and the command line use."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fuzz.document_seeds import BOMB, CANARY, CASES, CODES, DATA, REGO, REGO_WORDS, YAML_RAW, constitution
from fuzz.frame import Case, Target, check
from fuzz.values import Changer
from policies.constitution import ConstitutionError, load_constitution
from policies.constitution.lint import lint
from policies.gate import BundleError
from policies.gate.bundle import bundle_archive, bundle_of, read_files
from policies.gate.check import check_files

MOST_TOLD = 20_000


class DocumentsTarget(Target):
    """What loads means what it says and says it again; what does not is refused by file and place. Nothing is run."""

    name = "documents"
    short_cases = 2500
    hang_s = 5.0

    def case(self, draw: random.Random) -> Case:
        """A constitution or a policy folder, changed in its tree and in its text."""
        changer = Changer(draw)
        if draw.random() < 0.6:
            return {"kind": "constitution", "files": self._constitution(draw, changer)}
        return {"kind": "policies", "files": self._policies(draw, changer), "whole": draw.random() < 0.5}

    def _constitution(self, draw: random.Random, changer: Changer) -> dict[str, str]:
        document = constitution()
        files: dict[str, str] = {}
        if draw.random() < 0.4:
            part = draw.choice(("benign", "answers"))
            files["part.yaml"] = self._yaml(draw, changer, document[part])
            document[part] = draw.choice(
                ("part.yaml",) * 3
                + (
                    "../x.yaml",
                    "/etc/hostname.yaml",
                    "nowhere.yaml",
                    "c.yaml",
                    ".yaml",
                    "a\x00b.yaml",
                    "x" * 300 + ".yaml",
                    "part.yaml/x.yml",
                )
            )
        if draw.random() < 0.2:
            files["p.yaml"] = self._yaml(draw, changer, document["principles"][0])
            document["principles"][0] = "p.yaml"
        files["c.yaml"] = self._yaml(draw, changer, document)
        return files

    def _yaml(self, draw: random.Random, changer: Changer, tree: Any) -> str:
        tree = changer.change(tree, draw.choice((0, 0, 1, 1, 2, 4)))
        try:
            text = yaml.safe_dump(tree, allow_unicode=draw.random() < 0.5, sort_keys=False, width=10_000)
            text = text.encode("utf-8", "surrogatepass").decode("latin-1")
        except (RecursionError, yaml.YAMLError):
            text = "{}"
        kind = draw.random()
        if kind < 0.25:
            # In a value's place, where there are some: a line's end after a colon or a dash.
            ends = [at for at in range(len(text)) if text[at - 1 : at + 1] in (": ", "- ")]
            at = draw.choice(ends) + 1 if ends else 0
            put = draw.choice((*CODES, *YAML_RAW)).encode("utf-8", "surrogatepass").decode("latin-1")
            text = f"{text[:at]}{put}\n{text[at:]}"
        elif kind < 0.3:
            text = BOMB + draw.choice(("", text, "principles: *i\n", "title: *i\n"))
        elif kind < 0.4:
            text = changer.broken(text)
        return text

    def _policies(self, draw: random.Random, changer: Changer) -> dict[str, str]:
        files = {"main.rego": REGO, "data/bounds.json": json.dumps(DATA), "cases.yaml": yaml.safe_dump(CASES)}
        for _ in range(draw.choice((0, 1, 1, 2))):
            kind = draw.randrange(5)
            if kind == 0:
                files["data/bounds.json"] = changer.text_of(changer.change(DATA, draw.choice((1, 2, 3))))
            elif kind == 1:
                files["cases.yaml"] = self._yaml(draw, changer, CASES)
            elif kind == 2:
                files["data/more.json"] = changer.text_of(changer.change(DATA, 1)) if draw.random() < 0.5 else "{}"
            elif kind == 3:
                files["main.rego"] = self._rego(draw, changer)
            elif draw.random() < 0.3:
                del files[draw.choice(list(files))]
            else:
                files[draw.choice(("b.rego", "deep/c.rego", ".hidden/d.rego", "data/x.txt"))] = self._rego(
                    draw, changer
                )
        return files

    def _rego(self, draw: random.Random, changer: Changer) -> str:
        text = REGO
        for _ in range(draw.choice((1, 1, 2, 5))):
            parts = text.split(" ")
            at = draw.randrange(len(parts))
            kind = draw.randrange(4)
            if kind == 0:
                del parts[at]
            elif kind == 1:
                parts.insert(at, draw.choice(REGO_WORDS))
            elif kind == 2:
                other = draw.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            else:
                parts[at] = draw.choice(REGO_WORDS)
            text = " ".join(parts)
        text = text.encode().decode("latin-1")
        return changer.broken(text) if draw.random() < 0.1 else text

    def run(self, case: Case) -> str:
        """Write the files, and load them."""
        root = self.folder / "root"
        shutil.rmtree(root, ignore_errors=True)
        for name, text in case["files"].items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("latin-1", "replace"))
        root.mkdir(exist_ok=True)
        outcome = (
            self._constitution_of(root) if case["kind"] == "constitution" else self._bundle_of(root, case["whole"])
        )
        check(not Path(CANARY).exists() and not (root / CANARY).exists(), "a document was run")
        return f"{case['kind']} {outcome}"

    def _constitution_of(self, root: Path) -> str:
        path = root / "c.yaml"
        findings = lint(path)
        check(sum(len(f"{one}") for one in findings) < 4 * MOST_TOLD, "the findings are too long to read")
        try:
            found = load_constitution(path)
        except ConstitutionError as error:
            self._refusal(str(error), root)
            check(bool(findings), "refused, and the linter has nothing to say")
            return "refused"
        other = root / "again.yaml"
        other.write_text(yaml.safe_dump(found.model_dump(mode="json"), allow_unicode=True))
        check(load_constitution(other).digest == found.digest, "the same document has another digest")
        return "taken"

    def _bundle_of(self, root: Path, whole: bool) -> str:
        try:
            files = read_files(root)
            with _quiet():
                bundle = check_files(files, root) if whole else bundle_of(files, root)
        except BundleError as error:
            self._refusal(str(error), root)
            return "refused"
        again = bundle_of(read_files(root), root)
        check(again.revision == bundle.revision, "the same files have another revision")
        check(bundle_archive(again) == bundle_archive(bundle), "the same files have another archive")
        json.loads(json.dumps(bundle.document), parse_constant=_no_number)
        return "tested" if whole else "read"

    def _refusal(self, told: str, root: Path) -> None:
        check(len(told) > 20, f"a refusal says too little: {told!r}")
        check(len(told) < MOST_TOLD, f"a refusal has {len(told)} characters")
        named = any(name in told for name in (str(root), ".rego", "polic", "cases", "bundle"))
        check(named, f"a refusal names no file: {told[:300]}")

    def settle(self) -> None:
        """The valid documents are taken."""
        good = {"c.yaml": yaml.safe_dump(constitution())}
        check(self.run({"kind": "constitution", "files": good}) == "constitution taken", "a valid constitution")
        good = {"main.rego": REGO, "data/bounds.json": json.dumps(DATA), "cases.yaml": yaml.safe_dump(CASES)}
        check(self.run({"kind": "policies", "files": good, "whole": True}) == "policies tested", "valid policies")

    def unreached(self, outcomes: Counter[str]) -> set[str]:
        """Both kinds taken and refused."""
        wanted = {"constitution taken", "constitution refused", "policies read", "policies tested", "policies refused"}
        return wanted - set(outcomes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the Rego compiler writes of itself off standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} among the data")
