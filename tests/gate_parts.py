"""What tests of the gate share: the case table, the bundle over its data, and OPA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services import unavailable

from app.embedded.errors import ProgramMissing
from app.embedded.opa import OpaServer, find_opa
from app.embedded.run_directory import RunDirectory
from policies.gate.bundle import CASES, load_bundle
from policies.gate.cases import load_cases

TABLE = load_cases()
BUNDLES = TABLE.bundles(load_bundle())
"""The project's policies over each of the table's data."""


def opa_program() -> Path:
    """The OPA program; the test is skipped where there is none."""
    try:
        return find_opa()
    except ProgramMissing as missing:
        unavailable(missing.what, missing.command)


def write_small_policies(root: Path) -> Path:
    """Write policies about one fact, with data, cases and a Rego test: they are tested in milliseconds."""
    files = {
        "small.rego": """package acgs.nemo.constitutional

decision := {
	"allow": allow,
	"reasons": [reason | some reason in reasons],
	"lane": "fast",
	"human_review_required": false,
	"revision": data.revision,
}

default allow := false

allow if count(reasons) == 0

reasons contains {"code": "enough", "message": "There must be enough."} if not enough

enough if {
	is_number(input.stock.amount)
	input.stock.amount >= data.bounds.amount
}
""",
        "small_test.rego": """package acgs.nemo.constitutional_test

test_enough if {
	data.acgs.nemo.constitutional.enough with input as {"stock": {"amount": 1}}
	not data.acgs.nemo.constitutional.enough with input as {"stock": {"amount": 0.5}}
}
""",
        "data/small.json": '{"bounds": {"amount": 1}, "constitutional_hash": "", "constitutional_principles": {}}',
        CASES: """data: {usual: {}}
actions:
  sell:
    lane: fast
    human_review_required: false
    base: {stock: {amount: 2}}
    facts:
      stock.amount: {codes: [enough], wrong: ["2"], beyond: [0.5], at: [1]}
cases: []
""",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text in a file that holds it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@contextmanager
def opa_server(run: RunDirectory, bundle: Path, program: Path) -> Iterator[OpaServer]:
    """An OPA server that watches a bundle's file or folder."""
    server = OpaServer(run, bundle, program)
    server.start()
    try:
        yield server
    finally:
        server.stop()
