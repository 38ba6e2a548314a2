"""`flywheel constitution`: a document checked, tried on labelled texts, and compared with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import AsJson, emit
from app.cli.values import a_number, fail, shown
from app.settings import load_settings
from policies.constitution import DEFAULT_PATH, ConstitutionError, load_constitution
from policies.constitution.lint import lint

if TYPE_CHECKING:
    from policies.engine.trial import Decided

DEFAULT = "default"

File = Annotated[
    Path | None, typer.Argument(dir_okay=False, help="The document; the one in force (constitution.path) when absent.")
]
Texts = Annotated[
    Path, typer.Option("--texts", exists=True, dir_okay=False, help="JSON lines: prompt, and response where there is.")
]


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="The constitution: check it, try it, compare it with another.")
    group.command("lint")(check)
    group.command("test")(run_tests)
    group.command("diff")(compare)
    cli.add_typer(group, name="constitution")


def check(file: File = None, as_json: AsJson = False) -> None:
    """Check a document: its schema, and what makes a sound one worse. Exit status 1 where there is a finding."""
    path = file or load_settings().constitution.path or DEFAULT_PATH
    findings = lint(path)
    if as_json or findings:
        emit([asdict(finding) for finding in findings], as_json)
    else:
        constitution = load_constitution(path)
        typer.echo(f"{path}: nothing to mend; version {constitution.version}, digest {constitution.digest}")
    raise typer.Exit(1 if findings else 0)


def run_tests(
    texts: Texts,
    file: File = None,
    min_accuracy: Annotated[
        float, typer.Option(min=0.0, max=1.0, callback=a_number, help="Exit status 1 below this share.")
    ] = 0.9,
    as_json: AsJson = False,
) -> None:
    """Decide labelled texts (`expected`: compliant or violating) by the local evaluators, without a judge.

    A violating text is right when it is below the threshold, denied or not. Prints the confusion and which differ.
    """
    from policies.engine.trial import accuracy, confusion

    (decided,) = _decided([None if file is None else str(file)], texts, labelled=True)
    share = accuracy(decided)
    table = [{"expected": label, **row} for label, row in confusion(decided).items()]
    wrong = [_row(item) | {"expected": item.text.expected, "reason": item.verdict.reason} for item in decided
             if not item.right]  # fmt: skip
    if as_json:
        emit({"texts": len(decided), "accuracy": share, "confusion": table, "wrong": wrong}, as_json)
    else:
        emit(table, as_json)
        if wrong:
            emit(wrong, as_json)
        typer.echo(f"{len(decided) - len(wrong)} of {len(decided)} as expected ({share:.1%})")
    if share < min_accuracy:
        fail(f"accuracy {share:.3f} is below {min_accuracy:g}: add exemplars near the texts named, on their side")


def compare(
    old: Annotated[str, typer.Argument(help=f"A document; `{DEFAULT}` is the one that ships.")],
    new: Annotated[str, typer.Argument(help="The document to compare with it.")],
    texts: Texts,
    as_json: AsJson = False,
) -> None:
    """Show what one document would decide differently from another on a file of texts, by the local evaluators."""
    from policies.engine.trial import changes

    before, after = _decided([old, new], texts, labelled=False)
    differing = [
        _row(was) | {"now": now.outcome, "confidence_now": round(now.verdict.confidence_score, 3)}
        | {"violations_now": ", ".join(now.verdict.violations)}
        for was, now in zip(before, after, strict=True)
        if was.outcome != now.outcome
    ]  # fmt: skip
    moves = [{"was": was, "now": now, "texts": count} for (was, now), count in sorted(changes(before, after).items())]
    if as_json:
        emit({"texts": len(before), "moves": moves, "differing": differing}, as_json)
        return
    if differing:
        emit(differing, as_json)
    emit(moves, as_json)
    typer.echo(f"{len(differing)} of {len(before)} would be decided differently")


def _decided(documents: Sequence[str | None], file: Path, *, labelled: bool) -> list[list[Decided]]:
    """What each document decides, one encoder serving them all. None is the document in force."""
    from app.wiring import engine_config
    from policies.engine.embedding import SentenceEncoder
    from policies.engine.errors import EngineError
    from policies.engine.evaluator import PolicyEvaluator
    from policies.engine.trial import TextsError, decide, read_texts

    settings = load_settings()
    config = engine_config(settings)
    try:
        texts = read_texts(file, labelled=labelled)
        in_force = settings.constitution.path
        constitutions = [load_constitution(in_force if name is None else _path(name)) for name in documents]
        encoder = SentenceEncoder.load(config.encoder)
        decided = []
        for name, constitution in zip(documents, constitutions, strict=True):
            # The cache is the engine's: documents that are only tried leave nothing in it.
            own = config if name is None else replace(config, cache_dir=None)
            evaluator = PolicyEvaluator.fit(constitution, own, encoder)
            decided.append(decide(evaluator, texts, own.combine.threshold))
    except (ConstitutionError, EngineError, TextsError) as error:
        fail(str(error))
    return decided


def _path(name: str) -> Path | None:
    return None if name == DEFAULT else Path(name)


def _row(item: Decided) -> dict[str, Any]:
    return {
        "line": item.text.line,
        "prompt": shown(item.text.prompt, 120),
        "response": None if item.text.response is None else shown(item.text.response, 120),
        "decided": item.outcome,
        "confidence": round(item.verdict.confidence_score, 3),
        "violations": ", ".join(item.verdict.violations),
    }
