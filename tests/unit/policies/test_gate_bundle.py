"""A bundle is what its digests say, and nothing that does not fit gets into it."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from policies.gate.bundle import (
    REGO_ROOT,
    BundleError,
    PolicyBundle,
    bundle_archive,
    load_bundle,
    write_archive,
    write_bundle,
)
from policies.gate.regopy_engine import RegopyEngine


@pytest.fixture(scope="module")
def bundle() -> PolicyBundle:
    return load_bundle()


@pytest.fixture
def copied_root(tmp_path: Path) -> Path:
    """A copy of the policies, to be changed."""
    root = tmp_path / "rego"
    shutil.copytree(REGO_ROOT, root)
    return root


def changed(bundle: PolicyBundle, module: str, old: str, new: str) -> PolicyBundle:
    """The bundle with a text replaced in one of its modules."""
    name = next(name for name in bundle.modules if name.endswith(f"/{module}"))
    assert old in bundle.modules[name]
    return dataclasses.replace(bundle, modules={**bundle.modules, name: bundle.modules[name].replace(old, new)})


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_tests_are_no_part_of_the_bundle(bundle: PolicyBundle) -> None:
    assert not [name for name in bundle.modules if "_test" in name]
    assert "acgs/nemo/constitutional/decision.rego" in bundle.modules


def test_same_files_same_revisions(bundle: PolicyBundle, copied_root: Path) -> None:
    again = load_bundle(copied_root)
    assert (again.bundle_revision, again.data_revision) == (bundle.bundle_revision, bundle.data_revision)


def test_bundle_revision_follows_the_policies(bundle: PolicyBundle, copied_root: Path) -> None:
    module = copied_root / "acgs/nemo/constitutional/common.rego"
    module.write_text(module.read_text() + "\n# a remark\n")
    again = load_bundle(copied_root)
    assert again.bundle_revision != bundle.bundle_revision
    assert again.data_revision == bundle.data_revision


def test_data_revision_follows_the_data(bundle: PolicyBundle) -> None:
    stricter = bundle.with_data({"bounds": {"epsilon": 4.0}})
    assert stricter.bundle_revision == bundle.bundle_revision
    assert stricter.data_revision != bundle.data_revision
    assert stricter.data["bounds"]["epsilon"] == 4.0
    assert stricter.data["bounds"]["delta"] == 1e-5
    assert bundle.data["bounds"]["epsilon"] == 8.0


def test_later_changes_of_the_overrides_do_not_reach_the_bundle(bundle: PolicyBundle) -> None:
    endpoints = ["https://teacher.example/v1"]
    overridden = bundle.with_data({"teacher_endpoints": endpoints})
    endpoints.clear()
    assert overridden.data["teacher_endpoints"] == ["https://teacher.example/v1"]


def test_another_constitution_leaves_no_code_of_the_old_one(bundle: PolicyBundle) -> None:
    codes = {"tone": {"principles": ["manners"], "severity": "high"}}
    assert bundle.with_data({"constitutional_principles": codes}).data["constitutional_principles"] == codes


def test_users_can_be_added(bundle: PolicyBundle) -> None:
    permissions = {"user_permissions": {"new": {"gpu_hours_monthly": 1, "max_risk_level": "low"}}}
    data = bundle.with_data(permissions | {"gpu_hours_used": {"new": 0.5}}).data
    assert data["user_permissions"].keys() >= {"new", "flywheel-operator"}
    assert data["gpu_hours_used"] == {"new": 0.5}


def test_tables_are_put_whole_in_the_old_ones_place(bundle: PolicyBundle) -> None:
    tables = {
        "user_permissions": {"new": {"gpu_hours_monthly": 1, "max_risk_level": "low"}},
        "gpu_hours_used": {"new": 0.5},
        "resources": {"available_gpus": None, "available_memory_gb": None},
    }
    replaced = bundle.with_tables(tables)
    assert {name: replaced.data[name] for name in tables} == tables
    assert {**replaced.data, **bundle.data} == bundle.data
    assert replaced.bundle_revision == bundle.bundle_revision
    assert replaced.data_revision != bundle.data_revision
    assert replaced.with_tables({name: bundle.data[name] for name in tables}) == bundle


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"bounds": {}}, "no table bounds to be replaced; there are gpu_hours_used, resources, user_permissions"),
        ({"resources": None}, "resources is a mapping, not a NoneType"),
    ],
)
def test_tables_that_do_not_fit_are_refused(bundle: PolicyBundle, tables: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        bundle.with_tables(tables)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bounds": {"epsilom": 3}}, r"no bounds\.epsilom; did you mean epsilon"),
        ({"constitution_hash": "x"}, "did you mean constitutional_hash"),
        ({"bounds": {"epsilon": "8"}}, r"bounds\.epsilon is a number, not a text"),
        ({"bounds": {"epsilon": True}}, "not a boolean"),
        ({"bounds": 8}, "bounds is a mapping, not a number"),
        ({"model_registry": "any"}, "is a list, not a text"),
        ({"revision": {"bundle": "x"}}, "no revision"),
        ({"model_registry": [object()]}, "cannot be written as JSON"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(bundle: PolicyBundle, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        bundle.with_data(overrides)


def test_a_folder_without_policies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no Rego policy"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "holds a list"),
        ('{"bounds": {}}', "again"),
        ('{"revision": {}}', "again"),
    ],
)
def test_data_files_that_do_not_fit_are_refused(copied_root: Path, text: str, message: str) -> None:
    (copied_root / "data" / "more.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        load_bundle(copied_root)


def test_a_written_bundle_holds_policies_data_and_revisions(bundle: PolicyBundle, tmp_path: Path) -> None:
    write_bundle(bundle, tmp_path / "out")
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {*bundle.modules, "data.json", ".manifest"}
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    assert data.pop("revision") == {"bundle": bundle.bundle_revision, "data": bundle.data_revision}
    assert data == bundle.data


def test_a_bundle_may_be_written_to_an_empty_folder(bundle: PolicyBundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_bundle(bundle, tmp_path / "out")
    assert (tmp_path / "out" / "data.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_archive_holds_what_a_folder_holds(bundle: PolicyBundle, tmp_path: Path) -> None:
    write_bundle(bundle, tmp_path / "out")
    written = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")
               if p.is_file()}  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(bundle_archive(bundle)), mode="r:gz") as archive:
        packed = {entry.name: archive.extractfile(entry) for entry in archive}
        assert {name: file.read() for name, file in packed.items() if file is not None} == written
    manifest = json.loads(written[".manifest"])
    assert manifest == {
        "revision": f"{bundle.bundle_revision}:{bundle.data_revision}",
        "rego_version": 1,
        "roots": [""],
    }


def test_the_same_bundle_gives_the_same_archive(bundle: PolicyBundle, copied_root: Path) -> None:
    later = load_bundle(copied_root)
    assert bundle_archive(later) == bundle_archive(bundle)
    assert bundle_archive(bundle.with_data({"bounds": {"epsilon": 4.0}})) != bundle_archive(bundle)


def test_an_archive_is_replaced_at_once(bundle: PolicyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "bundle.tar.gz"
    write_archive(bundle, path)
    before = path.read_bytes()
    monkeypatch.setattr("policies.gate.bundle.os.fsync", full_disk)
    with pytest.raises(BundleError, match=r"cannot be written to .*No space left.*; name another file"):
        write_archive(bundle.with_data({"bounds": {"epsilon": 4.0}}), path)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_named(bundle: PolicyBundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", tmp_path / "file"):
        with pytest.raises(BundleError, match="name an"):
            write_bundle(bundle, place)


def test_no_bundle_is_written_over_another(bundle: PolicyBundle, tmp_path: Path) -> None:
    (tmp_path / "old.rego").write_text("package old\n")
    with pytest.raises(BundleError, match="is not empty"):
        write_bundle(bundle, tmp_path)


@pytest.mark.parametrize(
    ("module", "old", "new", "message"),
    [
        ("common.rego", "input.audit.enabled == true", "input.audit.enabled ==", "do not compile"),
        ("common.rego", "input.audit.enabled == true", 'net.cidr_contains("a", "b")', "regopy has not"),
        ("facts.rego", "at_least(value, bound) if", "at_lest(value, bound) if", "calls at_least"),
        ("decision.rego", "default allow := false", "default allow := true", "does not refuse an empty input"),
        ("decision.rego", "decision := {", "decided := {", "does not refuse an empty input"),
    ],
)
def test_policies_that_decide_nothing_sound_are_not_loaded(
    bundle: PolicyBundle, module: str, old: str, new: str, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        RegopyEngine(changed(bundle, module, old, new))


def test_a_bundle_that_does_not_load_leaves_the_old_one_in_force(bundle: PolicyBundle) -> None:
    engine = RegopyEngine(bundle)
    with pytest.raises(BundleError):
        engine.swap(changed(bundle, "decision.rego", "default allow := false", "default allow := true"))
    assert engine.bundle is bundle
    assert engine.decide_now("model_inference", {}).bundle_revision == bundle.bundle_revision
