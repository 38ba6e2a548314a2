"""The snapshot of a cycle's data: what becomes of a record depends on that record and its subject alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
import pytest
from example_parts import example
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.curation.manifest import (
    CLASS_SHARE,
    NEAR_DUPLICATE,
    RESIDUAL_PII,
    SECOND_OF_SUBJECT,
    ManifestRules,
    build,
    fraction,
    is_held_out,
    keyed,
    manifest_digest,
    normalise,
)
from agents.curation.near import jaccard, near_duplicates, shingles
from models.cycle import Manifest
from models.example import Example, ExampleStatus

pytest.importorskip("datasketch", reason="datasketch is missing. Provide it with: make test")

RULES = ManifestRules(digest_key=b"k" * 32, held_out_share=0.4, public_benign=7)
LONG = "how would somebody open the lock of a very old wooden door in the house number"
SECRET = "4111 1111 1111 1111"


def has_pii(text: str) -> bool:
    return SECRET in text


def snapshot(examples: list[Example], rules: ManifestRules = RULES) -> Manifest:
    return build("c1", "default", examples, rules, has_pii, "constitution")


def fates(manifest: Manifest) -> dict[str, tuple[Any, str]]:
    """By example: the member as it stands, and in which split."""
    return {member.example_id: (member, "train") for member in manifest.members} | {
        member.example_id: (member, "held out") for member in manifest.held_out
    }


def unit(one: Example) -> str:
    return one.subject_token or one.example_id


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    """A few subjects, few prompts (so that they repeat), some personal data, some examples that are out."""
    count = draw(st.integers(1, 14))
    return [
        example(
            number,
            subject_token=draw(st.sampled_from([None, None, "s1", "s2", "s3"])),
            prompt=draw(st.sampled_from(["a", "b", "c", f"mine is {SECRET}", f"own {number}", f"{LONG} {number}"])),
            response=draw(st.sampled_from(["x", "y", f"is {SECRET}"])),
            corrected_response=draw(st.sampled_from([None, "z", SECRET])),
            status=draw(st.sampled_from([ExampleStatus.NEW] * 4 + list(ExampleStatus))),
        )
        for number in draw(st.permutations(range(count)))
    ]


@settings(deadline=None)
@given(example_lists(), st.data())
def test_a_record_changes_nothing_for_other_units(examples: list[Example], data: st.DataObject) -> None:
    """Removing one record (or adding it, read the other way) moves no record of another subject.

    An evaluation prompt may come back when the training prompt that it nearly equals goes; none moves to training.
    """
    gone = data.draw(st.sampled_from(examples))
    own = {one.example_id for one in examples if unit(one) == unit(gone)}
    before, after = snapshot(examples), snapshot([one for one in examples if one is not gone])
    old = {key: fate for key, fate in fates(before).items() if key not in own}
    new = {key: fate for key, fate in fates(after).items() if key not in own}
    near = set(before.excluded_examples.get(NEAR_DUPLICATE, ())) ^ set(after.excluded_examples.get(NEAR_DUPLICATE, ()))
    assert {key: fate for key, fate in old.items() if key not in near} == {
        key: fate for key, fate in new.items() if key not in near
    }
    assert all(fate[1] == "held out" for key, fate in {**old, **new}.items() if key in near)


@settings(deadline=None)
@given(example_lists())
def test_a_subject_has_one_example_at_most_and_everyone_is_counted(examples: list[Example]) -> None:
    manifest = snapshot(examples)
    chosen = [*manifest.members, *manifest.held_out]
    assert max(Counter(member.unit for member in chosen).values(), default=0) <= 1
    assert len({member.example_id for member in chosen}) == len(chosen)
    assert len(chosen) + sum(manifest.excluded.values()) == len(examples)
    # A unit that has anything usable is in.
    usable = {
        unit(one)
        for one in examples
        if one.status is ExampleStatus.NEW and SECRET not in one.prompt + one.response + (one.corrected_response or "")
    }
    near = {unit(one) for one in examples if one.example_id in manifest.excluded_examples.get(NEAR_DUPLICATE, ())}
    assert {member.unit for member in chosen} == usable - near


@settings(deadline=None)
@given(example_lists(), st.randoms())
def test_the_order_of_the_records_does_not_matter(examples: list[Example], random: Any) -> None:
    shuffled = list(examples)
    random.shuffle(shuffled)
    assert snapshot(shuffled) == snapshot(examples)
    assert manifest_digest(snapshot(shuffled)) == manifest_digest(snapshot(examples))


@settings(deadline=None)
@given(example_lists())
def test_a_prompt_is_in_one_split_whoever_asks_it(examples: list[Example]) -> None:
    prompts = {one.example_id: normalise(one.prompt) for one in examples}
    manifest = snapshot(examples)
    assert not {prompts[member.example_id] for member in manifest.members} & {
        prompts[member.example_id] for member in manifest.held_out
    }


def test_residual_personal_data_is_left_out_and_counted() -> None:
    manifest = snapshot(
        [
            example(1),
            example(2, prompt=f"my card is {SECRET}"),
            example(3, response=f"your card is {SECRET}"),
            example(4, corrected_response=SECRET),
            example(5, status=ExampleStatus.USED),
            example(6, status=ExampleStatus.FORGOTTEN, prompt="", response=""),
            example(7, subject_token="s"),
            example(8, subject_token="s"),
        ]
    )
    assert manifest.excluded == {"forgotten": 1, RESIDUAL_PII: 3, SECOND_OF_SUBJECT: 1, "used": 1}
    assert manifest.excluded_examples[RESIDUAL_PII] == tuple(f"{number:032x}" for number in (2, 3, 4))
    assert len(manifest.members) + len(manifest.held_out) == 2
    assert (manifest.cycle_id, manifest.domain, manifest.public_benign) == ("c1", "default", 7)


def test_a_subjects_unit_is_its_token_and_a_record_without_one_is_its_own() -> None:
    with_subject, without = example(1, subject_token="sub_x"), example(2)
    manifest = snapshot([with_subject, without], ManifestRules(b"k" * 32, 0.0, 0))
    assert [member.unit for member in manifest.members] == ["sub_x", without.example_id]


@pytest.mark.parametrize(
    "variant",
    ["How do I pick a lock?", "how do i  pick a lock", '  "How do I\npick a lock" ', "HOW DO I PICK A LOCK!!"],
)
def test_the_split_sees_the_normalised_prompt(variant: str) -> None:
    for number in range(50):  # the answer must be the same by rule, not by chance
        rules = ManifestRules(number.to_bytes(32, "big"), 0.5, 0)
        assert is_held_out(rules, variant) == is_held_out(rules, "how do i pick a lock")


def test_the_split_is_stable_over_cycles_and_has_its_share() -> None:
    prompts = [f"prompt number {number}" for number in range(4000)]
    held_out = [prompt for prompt in prompts if is_held_out(RULES, prompt)]
    assert held_out == [prompt for prompt in prompts if is_held_out(RULES, prompt)]
    assert abs(len(held_out) / len(prompts) - RULES.held_out_share) < 0.03
    # A larger share only adds: nobody moves from held out to training.
    larger = ManifestRules(RULES.digest_key, 0.6, 0)
    assert all(is_held_out(larger, prompt) for prompt in held_out)
    other_key = ManifestRules(b"x" * 32, RULES.held_out_share, 0)
    assert held_out != [prompt for prompt in prompts if is_held_out(other_key, prompt)]


def test_no_share_and_the_whole_share() -> None:
    prompts = [f"p{number}" for number in range(200)]
    assert not any(is_held_out(ManifestRules(b"k", 0.0, 0), prompt) for prompt in prompts)
    assert all(is_held_out(ManifestRules(b"k", 1.0, 0), prompt) for prompt in prompts)


def test_purposes_share_no_value_and_keys_matter() -> None:
    values = {keyed(key, purpose, "text") for key in (b"a", b"b") for purpose in ("split", "subject", "text")}
    assert len(values) == 6
    assert all(0.0 <= fraction(value) < 1.0 for value in values)
    assert fraction(b"\xff" * 32) < 1.0


def test_a_manifest_holds_no_text_and_its_digest_tells_of_any_change() -> None:
    examples = [example(n, prompt=f"private {keyed(b'', 'p', str(n)).hex()}", response="private") for n in range(20)]
    manifest = snapshot(examples)
    assert b"private" not in orjson.dumps(manifest.model_dump(mode="json"))
    corrected = [examples[0].model_copy(update={"corrected_response": "better"}), *examples[1:]]
    digests = {
        manifest_digest(manifest),
        manifest_digest(snapshot(corrected)),
        manifest_digest(snapshot(examples[1:])),
        manifest_digest(snapshot(examples, ManifestRules(b"x" * 32, 0.4, 7))),
        manifest_digest(manifest.model_copy(update={"public_benign": 8})),
    }
    assert len(digests) == 5
    # A round trip through the store changes nothing.
    stored = Manifest.model_validate_json(manifest.model_dump_json())
    assert stored == manifest
    assert manifest_digest(stored) == manifest_digest(manifest)


def test_a_class_is_thinned_by_each_examples_own_hash() -> None:
    examples = [example(n, violation_type="frequent" if n % 2 else "rare") for n in range(400)]
    thinned = ManifestRules(RULES.digest_key, 0.0, 0, {"frequent": 0.25})
    manifest = snapshot(examples, thinned)
    kept = Counter(member.violation_type for member in manifest.members)
    assert kept["rare"] == 200
    assert abs(kept["frequent"] - 50) < 20
    assert manifest.excluded == {CLASS_SHARE: 200 - kept["frequent"]}
    # Whether one is taken does not depend on how many others there are.
    some = snapshot(examples[::3], thinned)
    assert {m.example_id for m in some.members} == {m.example_id for m in manifest.members} & {
        one.example_id for one in examples[::3]
    }


def test_an_evaluation_prompt_that_is_nearly_trained_on_is_left_out() -> None:
    prompts = [f"{LONG} {number}" for number in range(60)]
    examples = [example(n, prompt=prompt) for n, prompt in enumerate(prompts)]
    examples.append(example(99, prompt="an altogether other question about the weather"))
    held = [one for one in examples if is_held_out(RULES, one.prompt)]
    manifest = snapshot(examples)
    nearly = {one.example_id for one in held if one.prompt.startswith(LONG)}
    assert nearly
    assert set(manifest.excluded_examples[NEAR_DUPLICATE]) == nearly
    assert len(manifest.members) == len(examples) - len(held)
    # Also where the training prompt is of an earlier cycle.
    alone = build("c", "default", held, RULES, has_pii, "d", trained_prompts=[f"{LONG} 1000"])
    assert set(alone.excluded_examples[NEAR_DUPLICATE]) == nearly


def test_near_is_by_the_exact_likeness() -> None:
    one = "please explain how to bake a good loaf of bread at home in the morning"
    texts = {"same": one.upper() + "!", "near": one.replace("good", "nice"), "far": "why is the sky blue today"}
    likeness = jaccard(shingles(one), shingles(texts["near"]))
    assert jaccard(shingles(one), shingles(texts["same"])) == 1.0
    assert near_duplicates(texts, [one], likeness) == {"same", "near"}
    assert near_duplicates(texts, [one], likeness + 0.01) == {"same"}
    assert near_duplicates(texts, [], 0.5) == near_duplicates({}, [one], 0.5) == set()


def test_few_near_duplicates_are_missed() -> None:
    """Pairs of random texts, above the bound by construction: the hashes may miss one in a hundred at the bound."""
    missed = 0
    for number in range(300):
        words = [keyed(b"w", str(number), str(word)).hex()[:6] for word in range(30)]
        one, other = " ".join(words), " ".join([*words[:28], "zzzzz", "yyyyyy"])
        assert jaccard(shingles(one), shingles(other)) >= 0.8
        missed += near_duplicates({"x": other}, [one], 0.8) != {"x"}
    assert missed <= 6
