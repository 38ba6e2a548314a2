"""`flywheel audit`: whether the log is what was written, and what leaves it."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Engine, make_url

from app.cli.output import AsJson, emit
from app.cli.values import MOST_NUMBER, fail, moment, name_of_person
from app.settings import Settings, load_settings
from app.wiring import audit_checkpoint, audit_digest_key, audit_signing_key, retired_audit_keys
from models.audit import ChainFault, ChainFaultKind, ChainReport
from policies.audit.checkpoint import CheckpointReader
from policies.audit.engine import make_engine
from policies.audit.errors import AuditError
from policies.audit.export import Selection, verify_export, write_export
from policies.audit.migrate import migrate_engine
from policies.audit.prune import plan_pruning, prune
from policies.audit.seal import KeyRing, SigningKey, key_id, public_key
from policies.audit.store import AuditStore
from policies.audit.verify import Witness, verify_log

PublicKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--public-key",
        help="What heads were signed with: 64 hex digits, or a file of such lines; may be repeated. "
        "By default the installation's own and the retired ones of the settings.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="File of signed heads, such as a copy kept elsewhere; by default the engine's."),
]

_SHOWN = {
    ChainFaultKind.CHANGED: "is changed",
    ChainFaultKind.MISSING: "is missing",
    ChainFaultKind.REORDERED: "is not in its place",
    ChainFaultKind.BEYOND_HEAD: "is beyond the head",
    ChainFaultKind.HEAD: "is not what the head says",
    ChainFaultKind.ANCHOR: "is where the log begins without proof",
}


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="The audit log.")
    group.command()(verify)
    group.command()(export)
    group.command("prune")(prune_log)
    group.command()(key)
    cli.add_typer(group, name="audit")


def verify(
    checkpoint: Checkpoint = None,
    public_keys: PublicKeys = None,
    export: Annotated[Path | None, typer.Option("--export", help="Check this export, not the database.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the chain and compare it with the signed heads; exit 1 where it does not fit.

    It reads the database itself, so it needs no audit engine. The first entry is named that is changed, missing, not
    in its place, or beyond the head; of a chain that was computed anew, the two signed heads between which it was.
    """
    settings = load_settings()
    keys = _keys(settings, public_keys)
    with _told():
        if export is not None:
            report = _check_export(export, keys, checkpoint)
        else:
            with _log(settings) as engine:
                report = verify_log(engine, Witness(keys, checkpoint or audit_checkpoint(settings)))
    emit(report.model_dump(mode="json") if as_json else _row(report), as_json)
    problems = [] if report.fault is None else [_sentence(report.fault)]
    if report.checkpoint_fault is not None:
        problems.append(f"the signed heads do not count in full: {report.checkpoint_fault}")
    if problems:
        fail("; ".join(problems))


def export(
    out: Annotated[Path | None, typer.Option("--out", help="A new file; by default standard output.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="From what was recorded at this time, RFC 3339.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Up to, and without, what was recorded then.")] = None,
    from_seq: Annotated[int, typer.Option("--from-seq", min=1, max=MOST_NUMBER, help="From this entry on.")] = 1,
    public_keys: PublicKeys = None,
) -> None:
    """Write entries as JSON lines that can be verified alone, with the public key (`flywheel audit verify --export`).

    The range is contiguous and goes on to the next signed head, so more may come out than was asked for.
    """
    settings = load_settings()
    selection = Selection(
        since=None if since is None else moment(since),
        until=None if until is None else moment(until),
        from_seq=from_seq,
    )
    keys = _keys(settings, public_keys)
    with _told(), _log(settings) as engine:
        heads = CheckpointReader(audit_checkpoint(settings), keys)
        now = datetime.now(UTC)
        if out is None:
            done = write_export(engine, heads, selection, now, sys.stdout)
        else:
            with out.open("x", encoding="ascii") as file, _whole(out):
                done = write_export(engine, heads, selection, now, file)
    note = f"entries {done.first} to {done.last}, {done.heads} signed heads"
    if done.sealed_through < done.last:
        note += f"; no head covers what comes after entry {max(done.sealed_through, done.first - 1)}"
    typer.echo(note, err=True)
    if heads.fault is not None:
        fail(f"the signed heads do not count in full: {heads.fault}")


def prune_log(
    before: Annotated[
        str | None, typer.Option("--before", help="Only what was recorded before, RFC 3339; by default all it may.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be taken.")] = False,
    by: Annotated[str | None, typer.Option("--by", help="Who asks for it; by default the account's name.")] = None,
    public_keys: PublicKeys = None,
    as_json: AsJson = False,
) -> None:
    """Delete what is older than `audit_engine.retention_days` and covered by signed heads as old; the log says so."""
    settings = load_settings()
    limit = None if before is None else moment(before)
    person = name_of_person(by if by is not None else getpass.getuser())
    witness = Witness(_keys(settings, public_keys), audit_checkpoint(settings))
    now = datetime.now(UTC)
    with _told(), _log(settings) as engine:
        migrate_engine(engine)
        days = settings.audit_engine.retention_days
        plan = plan_pruning(engine, witness, retention_days=days, now=now, before=limit)
        report: dict[str, Any] = {
            "older_than": plan.older_than,
            "through": plan.through,
            "entries": plan.entries,
            "pruned": bool(plan.steps) and not dry_run,
        }
        if report["pruned"]:
            store = AuditStore(engine, audit_digest_key(settings))
            hash_ = settings.constitution.hash
            report["audit_entry"] = prune(engine, store, plan, constitutional_hash=hash_, by=person, now=now)
    emit(report, as_json)


def key(
    out: Annotated[Path | None, typer.Option("--out", help="Write it to this new file.")] = None,
    as_json: AsJson = False,
) -> None:
    """The public key that the log's signed heads are checked with. It is no secret."""
    public = _own_key(load_settings())
    if out is not None:
        with _told(), out.open("x", encoding="ascii") as file:
            file.write(f"{public.hex()}\n")
    elif as_json:
        emit({"public_key": public.hex(), "key_id": key_id(public)}, as_json)
    else:
        typer.echo(public.hex())


def _check_export(file: Path, keys: KeyRing, checkpoint: Path | None) -> ChainReport:
    if checkpoint is None:
        return verify_export(file, keys)
    outside = CheckpointReader(checkpoint, keys)
    report = verify_export(file, keys, outside)
    fault = report.checkpoint_fault or outside.fault
    return report.model_copy(update={"ok": report.ok and fault is None, "checkpoint_fault": fault})


def _own_key(settings: Settings) -> bytes:
    # Without the settings' key this makes the installation's own where there is none yet.
    return SigningKey(audit_signing_key(settings)).public


def _keys(settings: Settings, given: list[str] | None) -> KeyRing:
    with _told():
        if given:
            return KeyRing([public_key(text) for item in given for text in _lines(item)])
        # A key made just now has signed nothing: whoever has only the database must bring the public key.
        if settings.audit_engine.signing_key is None and not (settings.data_dir / "keys" / "audit-signing").exists():
            fail(
                f"there is no signing key in {settings.data_dir / 'keys'}: give --public-key, as `flywheel audit key` "
                "prints it where the audit engine runs"
            )
        return KeyRing([_own_key(settings), *retired_audit_keys(settings)])


def _lines(item: str) -> list[str]:
    path = Path(item)
    # Bytes that are no text are no key either, and are refused as such.
    return path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else [item]


@contextmanager
def _log(settings: Settings) -> Iterator[Engine]:
    """The log's database, which must be there."""
    url = make_url(settings.audit_engine.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        fail(f"there is no audit log at {url.database}: see audit_engine.database_url")
    engine = make_engine(settings.audit_engine.database_url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Leave no half of a file."""
    try:
        yield
    except BaseException:
        path.unlink()
        raise


@contextmanager
def _told() -> Iterator[None]:
    """Say in one line what went wrong."""
    try:
        yield
    except AuditError as error:
        fail(str(error))
    except FileExistsError as error:
        fail(f"{error.filename} exists already: give a new name")
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or type(error).__name__}")


def _row(report: ChainReport) -> dict[str, Any]:
    end = report.entries + (report.anchor.seq if report.anchor is not None else 0)
    row: dict[str, Any] = {
        "result": "sound" if report.ok else "NOT SOUND",
        "entries": report.entries,
        "head": None if report.head is None else f"{report.head.seq} {report.head.digest}",
        "sealed_through": report.sealed_through,
    }
    if report.anchor is not None:
        row["begins_after"] = report.anchor.seq
    if report.unsealed:
        row["unsealed"] = (
            f"{report.unsealed}: entries {end - report.unsealed + 1} to {end}, which no signed head covers"
        )
    else:
        row["unsealed"] = 0
    return row


def _sentence(fault: ChainFault) -> str:
    if fault.kind is ChainFaultKind.RECOMPUTED:
        return f"entries {fault.seq} to {fault.through} are not those that were sealed: {fault.detail}"
    named = "" if fault.entry_id is None else f" ({fault.entry_id})"
    return f"entry {fault.seq}{named} {_SHOWN[fault.kind]}: {fault.detail}"
