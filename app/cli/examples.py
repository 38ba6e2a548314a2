"""Commands about training examples: what curation made, and how to have it forgotten."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from app.cli.output import AsJson, emit
from app.cli.values import MOST_ROWS, fail, name_of_person, shown
from app.keys import key
from app.settings import load_settings
from app.store import Database, examples, forgetting, outbox, revisions
from app.store.examples import Filter
from app.wiring import open_database
from models.example import Example, ExampleStatus
from otel.subject import SubjectTokenizer, is_no_subject

ExampleId = Annotated[str, typer.Argument(help="The example's id, as `flywheel examples ls` shows it.")]
Person = Annotated[str, typer.Option("--by", help="Who asks for it; kept in the audit log.", callback=name_of_person)]
Model = Annotated[str | None, typer.Option("--model", help="Only of this model.")]
Domain = Annotated[str | None, typer.Option("--domain", help="Only of this data domain.")]
Status = Annotated[ExampleStatus | None, typer.Option("--status", help="Only those that stand so.")]


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Training examples.")
    group.command("ls")(list_examples)
    group.command()(show)
    group.command()(export)
    group.command()(forget)
    cli.add_typer(group, name="examples")


def list_examples(
    model: Model = None,
    domain: Domain = None,
    status: Status = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS)] = 50,
    as_json: AsJson = False,
) -> None:
    """The latest examples, without their text."""
    with _database().read() as connection:
        found = examples.search(connection, Filter(model, domain, status), limit)
    emit([_row(example) for example in found], as_json)


def show(example_id: ExampleId, as_json: AsJson = False) -> None:
    """One example with its text, its lineage, and what each cycle made of it."""
    with _database().read() as connection:
        example = examples.get(connection, [example_id]).get(example_id)
        revised = revisions.of_example(connection, example_id)
    if example is None:
        fail(f"there is no example {example_id!r}: see `flywheel examples ls`")
    document = example.model_dump(mode="json")
    if not as_json:
        for name in ("prompt", "response", "corrected_response"):
            document[name] = None if document[name] is None else shown(document[name], 2000)
    document["revisions"] = [
        {
            "cycle": row.cycle_id,
            "rounds": row.rounds,
            "origin": row.origin,
            "compliant": row.compliant,
            "score": row.score,
            "target": row.target if as_json else shown(row.target, 2000),
            "history": row.history,
        }
        for row in revised
    ]
    emit(document, as_json)


def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="Where to write JSON lines, one an example.")],
    model: Model = None,
    domain: Domain = None,
    status: Status = None,
    text: Annotated[bool, typer.Option("--text", help="With prompts and answers; the audit log is told.")] = False,
    by: Annotated[str | None, typer.Option("--by", help="Who exports; needed with --text.")] = None,
) -> None:
    """Write examples to a file, which must not be there yet."""
    person = None if by is None else name_of_person(by)
    if text and person is None:
        fail("an export with text is kept in the audit log: say who exports, with --by NAME")
    wanted = Filter(model, domain, status)
    with _database().write() as connection:
        found = examples.search(connection, wanted)
        if text:
            context: dict[str, Any] = {"exported_by": person, "examples": len(found), "domain": domain, "model": model}
            outbox.audit(connection, "examples_exported", {"context": context})
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            for example in found:
                out.write(orjson.dumps(_row(example) | (_texts(example) if text else {})) + b"\n")
    except FileExistsError:
        fail(f"{file} is there already: choose another name")
    except OSError as error:
        fail(f"{file} cannot be written ({error.strerror}): choose another place")
    typer.echo(f"{len(found)} examples are in {file}")


def forget(
    by: Person,
    subject: Annotated[str | None, typer.Option("--subject", help="A person's id, or its token (sub_...).")] = None,
    example: Annotated[str | None, typer.Option("--example", help="One example's id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take the text of a person's examples, or of one, away for good.

    Shows the open cycles, which go on without them, and the cycles and model versions that used them before: privacy
    budget spent is not refunded. Kafka keeps its copies until the topics' retention ends.
    """
    if (subject is None) == (example is None):
        fail("say what is to be forgotten: --subject ID, or --example ID")
    with _database().write() as connection:
        if subject is not None:
            wanted = forgetting.of_subject(connection, _token(subject))
        else:
            wanted = list(examples.get(connection, [example or ""]))
        if not wanted:
            fail("no example of that name holds text: nothing was changed")
        done = forgetting.forget(connection, wanted, requested_by=by, reason="subject" if subject else "example")
    emit(
        {
            "forgotten": done.examples,
            "revisions": done.revisions,
            "feedback": done.feedback,
            "open_cycles": list(done.open_cycles),
            "cycles_that_trained_on_them": list(done.trained_cycles),
            "model_versions": list(done.versions),
            "cycles_that_sent_them_to_a_teacher": list(done.sent_out),
        },
        as_json,
    )


def _token(subject: str) -> str:
    if is_no_subject(subject):
        fail(f"{subject!r} names nobody: give the person's id as applications send it, or its token")
    settings = load_settings()
    return SubjectTokenizer(key(settings.pii.subject_key, settings.data_dir, "subject").encode()).token(subject)


def _row(example: Example) -> dict[str, Any]:
    return {
        "example": example.example_id,
        "event": example.event_id,
        "model": example.model_id,
        "domain": example.domain,
        "type": example.violation_type,
        "workload": example.workload_id,
        "subject": example.subject_token,
        "status": example.status.value,
        "priority": example.priority,
        "created": example.created_at,
    }


def _texts(example: Example) -> dict[str, Any]:
    return {
        "prompt": example.prompt,
        "response": example.response,
        "corrected_response": example.corrected_response,
        "correction_signed": example.correction_signed,
        "lineage": example.lineage.model_dump(mode="json"),
    }


def _database() -> Database:
    return open_database(load_settings(), timeout_s=10.0)
