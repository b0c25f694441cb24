"""A schema that is none is refused before work begins; an answer counts only where it follows its schema."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.prompt_sets import load_prompts
from captioner.prompts import Prompt, PromptSet
from captioner.structured.answers import read_answer, schema_problem
from captioner.structured.scene_schema import SCENE_SCHEMA
from examples.openmoji.composition import draw_scene
from examples.openmoji.structured import structured_caption
from foundry.errors import UserError

OBJECTS = json.dumps(
    {
        "type": "object",
        "properties": {"what": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}}},
        "required": ["what"],
        "$defs": {"part": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}},
    }
)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ("{", "the schema is not valid JSON"),
        ("[]", 'it needs "type": "object"'),
        ('{"type": "string"}', 'it needs "type": "object"'),
        ('{"type": "object", "properties": {"a": {"type": "strin"}}}', r"not a JSON schema: \$.properties.a.type: 'strin'"),
        ('{"type": "object", "properties": {"a": {"pattern": "("}}}', "is not a 'regex'; patterns are regular"),
        (r'{"type": "object", "properties": {"a": {"pattern": "\\p{L}"}}}', "patterns are regular expressions of Python"),
        ('{"type": "object", "properties": {"a": {"$ref": "http://there/a"}}}', "refers to http://there/a, which is not in it"),
        ('{"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}', "refers to #/.defs/a, which is not in it"),
    ],
)
def test_a_schema_that_is_none_is_one_line(schema: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"prompt a: .*{problem}") as raised:
        Prompt(name="a", text="What?", schema=schema)
    assert "\n" not in str(raised.value)


def test_a_schema_cannot_bring_in_an_image() -> None:
    with pytest.raises(UserError, match="<image> is not allowed in the schema"):
        Prompt(name="a", text="What?", schema='{"type": "object", "description": "<image>"}')


def test_prose_has_a_name_of_its_own() -> None:
    asked, other = Prompt(name="a", text="What?", schema=OBJECTS), Prompt(name="a_prose", text="What?")
    assert asked.caption_names == ("a", "a_prose")
    with pytest.raises(UserError, match="twice: a_prose"):
        PromptSet(name="s", version="1", prompts=(asked, other))


@pytest.mark.parametrize("index", range(20))
def test_the_shipped_schema_takes_the_ground_truth_of_scenes(index: int) -> None:
    truth = structured_caption(draw_scene(seed=3, index=index), seed=3)
    answer = read_answer(json.dumps(truth, indent=2), SCENE_SCHEMA)
    assert (answer.fault, answer.value, json.loads(answer.caption)) == ("", truth, truth)
    assert not schema_problem(SCENE_SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        '{"what": "an owl", "parts": [{"a": 1}]}',
        ' \n{"what": "an owl",\n "parts": [{"a": 1}]} ',
        '```json\n{"what": "an owl", "parts": [{"a": 1}]}\n```',
        'Here it is:\n```\n{"what": "an owl", "parts": [{"a": 1}]}\n```\nIs that right?',
    ],
)
def test_layout_and_code_fences_do_not_matter(text: str) -> None:
    assert read_answer(text, OBJECTS).caption == '{"what":"an owl","parts":[{"a":1}]}'


def test_keys_stand_in_the_order_of_the_schema() -> None:
    answer = read_answer('{"more": 0, "parts": [{"c": 2, "b": "x", "a": 1}], "what": "é"}', OBJECTS)
    assert answer.caption == '{"what":"é","parts":[{"a":1,"b":"x","c":2}],"more":0}'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it is not JSON"),
        ("An owl.", "it is not JSON"),
        ('{"what": "an o', "it is not JSON"),
        ('{"parts": []}', "'what' is a required property"),
        ('{"what": "owl", "parts": [{"a": "one"}]}', r"$.parts[0].a: 'one' is not of type 'integer'"),
        ('["an owl"]', "is not of type 'object'"),
        ('{"what": "a", "n": NaN}', "NaN is not valid in JSON"),
        ('{"what": "a", "n": 1e999}', "it is not JSON"),
        ('{"what": "a", "what": "b"}', "the key what is there twice"),
        (r'{"what": "\ud800"}', "not valid Unicode"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_does_not_follow_the_schema_is_named(text: str, fault: str) -> None:
    answer = read_answer(text, OBJECTS)
    assert fault in answer.fault and "\n" not in answer.fault and len(answer.fault) < 300
    assert (answer.caption, answer.value) == ("", None)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    answer = read_answer(text, OBJECTS)
    assert bool(answer.caption) is not bool(answer.fault)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_values_come_back_as_they_were(value: object) -> None:
    answer = read_answer(json.dumps({"what": "x", "more": value}), OBJECTS)
    assert not answer.fault and json.loads(answer.caption) == {"what": "x", "more": value} == answer.value


def test_a_schema_comes_from_a_file_next_to_the_prompts_or_stands_in_them(tmp_path: Path) -> None:
    (tmp_path / "objects.json").write_text(OBJECTS)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nversion: 1\nprompts:\n- {name: a, text: What, schema: objects.json}\n"
        "- {name: b, text: What, schema: {type: object, properties: {zebra: {type: string}, ant: {type: string}}}}\n"
    )
    of_file, inline = load_prompts(str(path)).prompts
    assert of_file.schema == OBJECTS
    assert inline.schema is not None and list(json.loads(inline.schema)["properties"]) == ["zebra", "ant"]


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ("absent.json", "absent.json cannot be read"),
        ("broken.json", "broken.json is not valid JSON"),
        ("{type: object, default: 2024-01-01}", "the schema holds what JSON does not have"),
        ("{type: array}", 'it needs "type": "object"'),
    ],
)
def test_a_schema_that_is_unavailable_is_one_line(tmp_path: Path, schema: str, complaint: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nversion: 1\nprompts:\n- {{name: a, text: What, schema: {schema}}}\n")
    with pytest.raises(UserError, match=complaint):
        load_prompts(str(path))
