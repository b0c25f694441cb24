"""WISE's parts: answers are read as they are meant, prompts of a copy that is not whole are refused, instructions are found."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.openmoji import stand_in_judge
from foundry.errors import UserError
from trainer.evaluation.benchmark import OVERALL, Prompt, Score
from trainer.evaluation.benchmarks.wise import LEGACY, WISCORE, read_grades
from trainer.evaluation.benchmarks.wise_edition import CATEGORIES, Edition, overall, own_prompts, read_prompts
from trainer.evaluation.benchmarks.wise_judge import GRADES, RIGHT_OR_WRONG, Instructions, read_instructions
from trainer.evaluation.benchmarks.wise_verified import RIGHT, VERIFIED, read_score

LIKE_THE_ORIGINAL = '''
raise SystemExit("this is read, not run")

def messages(prompt_data, image_base64):
    return [
        {"role": "system", "content": [{"type": "text", "text": "Be strict."}]},
        {"role": "user", "content": [
            {"type": "text", "text": f"""Grade {{0}} to {{2}}.
PROMPT: "{prompt_data['Prompt']}"
EXPLANATION: "{prompt_data['Explanation']}" """},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image_base64}"}},
        ]},
    ]
'''
PROMPT = Prompt(text="the {explanation} of it", category="time", data={"prompt_id": 1, "explanation": "a clock"})


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", (0.7 * 2 + 0.2 * 1) / 2),
        ("**Consistency:** 1\n**Realism**: 2\n**Aesthetic Quality**：1", (0.7 * 1 + 0.2 * 2 + 0.1 * 1) / 2),
        ("consistency 0, realism 0, aesthetic quality 0", 0.0),
        ("Consistency: 2/2. Realism: 2/2. Aesthetic Quality: 2/2.", 1.0),
        ("2\n1\n0\n", (0.7 * 2 + 0.2 * 1) / 2),
        (" **1**, 2, 1", (0.7 * 1 + 0.2 * 2 + 0.1 * 1) / 2),
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0\nOn second thoughts, Consistency: 0", 0.2 * 1 / 2),
        ("Realism: 3\nConsistency: 2\nRealism: 1\nAesthetic Quality: 0", (0.7 * 2 + 0.2 * 1) / 2),
    ],
)
def test_grades_make_the_wiscore(answer: str, score: float) -> None:
    found = read_grades(answer)
    assert found is not None
    assert found[WISCORE] == pytest.approx(score)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot see an image.",
        "Consistency: 2\nRealism: 1",
        "Consistency: 3\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 2\nRealism: 1\nAesthetic Quality: 0\nOn second thoughts, Consistency: 3",
        "2\n1",
        "2 1 3",
        "2 1 0 1",
        "1.2 0",
        "210",
        "I give it 2, 1, 0",
    ],
)
def test_what_is_not_a_verdict_has_no_grades(answer: str) -> None:
    assert read_grades(answer) is None


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 1", 1.0),
        ("**Score:** 0", 0.0),
        ("1\n", 1.0),
        ("The score: 0.\nScore: 0", 0.0),
        ("", None),
        ("Score: 2", None),
        ("Score: 1.5", None),
        ("Score: 0 or Score: 1", None),
        ("0\n1", None),
        ("10", None),
    ],
)
def test_scores_are_right_or_wrong(answer: str, score: float | None) -> None:
    assert read_score(answer) == (None if score is None else {RIGHT: score})


@given(st.text())
def test_no_answer_breaks_the_reading(answer: str) -> None:
    for values in (read_grades(answer), read_score(answer)):
        assert values is None or all(0 <= value <= 2 for value in values.values())


def _scores(edition: Edition, values: dict[str, float]) -> list[Score]:
    return [
        Score(category=category, judge=edition.name, metric=edition.metric, num_images=10, value=value)
        for category, value in values.items()
    ]


def test_the_overall_score_weighs_the_categories() -> None:
    values = dict(zip(CATEGORIES, (0.5, 0.2, 0.4, 0.6, 0.8, 1.0), strict=True))
    (legacy,) = overall(LEGACY, _scores(LEGACY, values))
    assert legacy.category == OVERALL
    assert legacy.num_images == 60
    # .4 x .5 + .167 x .2 + .133 x .4 + .1 x (.6 + .8 + 1)
    assert legacy.value == pytest.approx(0.2 + 0.0334 + 0.0532 + 0.24)
    (verified,) = overall(VERIFIED, _scores(VERIFIED, values))
    # .4 x .5 + .12 x (.2 + .4 + .6 + .8 + 1)
    assert verified.value == pytest.approx(0.2 + 0.36)
    assert overall(LEGACY, _scores(LEGACY, values)[:5]) == []


def test_the_published_overall_score_is_that_of_its_categories() -> None:
    published = {one.category: one.value for one in LEGACY.published}
    (found,) = overall(LEGACY, _scores(LEGACY, {name: published[name] for name in CATEGORIES}))
    assert found.value == pytest.approx(published[OVERALL], abs=0.005)


def _copy(root: Path, edition: Edition) -> Path:
    folder = root / edition.files.folders[0]
    folder.mkdir(parents=True)
    for name in edition.files.names:
        rows = [
            {"prompt_id": number, "Prompt": f"prompt {number}", "Explanation": f"why {number}", "Subcategory": "some"}
            for number in edition.files.ids(name)
        ]
        (folder / name).write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize(
    ("edition", "ends"),
    [(LEGACY, (400, 567, 700, 800, 900, 1000)), (VERIFIED, (400, 520, 640, 760, 880, 1000))],
    ids=["wise", "wise_verified"],
)
def test_the_number_of_a_prompt_says_its_category(tmp_path: Path, edition: Edition, ends: tuple[int, ...]) -> None:
    _copy(tmp_path, edition)
    prompts = read_prompts(str(tmp_path), edition.files)
    assert [prompt.data["prompt_id"] for prompt in prompts] == list(range(1, 1001))
    assert [prompts[end - 1].category for end in ends] == list(CATEGORIES)
    assert [prompts[end].category for end in ends[:-1]] == list(CATEGORIES[1:])
    assert prompts[6] == Prompt(
        text="prompt 7", category="culture", data={"prompt_id": 7, "explanation": "why 7", "subcategory": "some"}
    )
    assert [sum(prompt.category == name for prompt in prompts) / 1000 for name in CATEGORIES] == list(edition.weights.values())


def test_the_data_folder_itself_may_be_given(tmp_path: Path) -> None:
    assert len(read_prompts(str(_copy(tmp_path, VERIFIED)), VERIFIED.files)) == 1000


def test_a_copy_that_is_not_whole_is_refused_by_its_file(tmp_path: Path) -> None:
    path = _copy(tmp_path, LEGACY) / "natural_science.json"
    rows = json.loads(path.read_text())
    for wrong, complaint in [
        (rows[:9] + rows[11:], "natural_science.json lacks prompt 710 and 1 others of 701 to 1000"),
        ([*rows, rows[0]], "natural_science.json has prompts that are not its own"),
        ([{**rows[0], "Explanation": " "}, *rows[1:]], "natural_science.json, row 1: expected text in Explanation"),
        ([{**rows[0], "prompt_id": 2000}, *rows[1:]], "natural_science.json, row 1: expected an object with a prompt_id"),
        ({"rows": rows}, "natural_science.json: expected a list of prompts"),
    ]:
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=complaint):
            read_prompts(str(tmp_path), LEGACY.files)
    path.write_text("[{]")
    with pytest.raises(UserError, match=r"natural_science\.json is not JSON"):
        read_prompts(str(tmp_path), LEGACY.files)
    path.unlink()
    with pytest.raises(UserError, match=r"natural_science\.json cannot be read"):
        read_prompts(str(tmp_path), LEGACY.files)


def test_prompts_of_our_own_are_of_every_category() -> None:
    prompts = own_prompts()
    assert list(dict.fromkeys(prompt.category for prompt in prompts)) == list(CATEGORIES)
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 12


def test_the_original_instructions_are_read_out_of_their_source(tmp_path: Path) -> None:
    path = tmp_path / "gpt_eval.py"
    path.write_text(LIKE_THE_ORIGINAL)
    system, user = read_instructions(str(path)).filled(PROMPT, "data:image/png;base64,AAAA")
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be strict."}]}
    text, image = user["content"]
    assert text["text"] == 'Grade {0} to {2}.\nPROMPT: "the {explanation} of it"\nEXPLANATION: "a clock" '
    assert image == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_instructions_may_be_a_text(tmp_path: Path) -> None:
    path = tmp_path / "told.txt"
    path.write_text("Is {explanation} to be seen? It was to be {prompt}.\n")
    (message,) = read_instructions(str(path)).filled(PROMPT, "data:")
    assert message["content"][0]["text"] == "Is a clock to be seen? It was to be the {explanation} of it."


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("told.txt", "Is {prompt} to be seen?", "no place for the explanation: write {explanation}"),
        ("eval.py", "x = 1", "no place for the explanation"),
        ("eval.py", "def (", "cannot be read"),
        ("eval.py", LIKE_THE_ORIGINAL.replace("prompt_data['Prompt']", "told(prompt_data)"), "what a message says is not"),
        ("eval.py", LIKE_THE_ORIGINAL.replace('"user"', '"system"'), "end with a message of system"),
    ],
)
def test_instructions_that_cannot_be_used_are_one_line(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_instructions(str(tmp_path / name))


@pytest.mark.parametrize("edition", [LEGACY, VERIFIED], ids=lambda edition: edition.name)
def test_the_stand_in_judge_answers_as_each_edition_asks(edition: Edition) -> None:
    told = Instructions(messages=(("user", edition.instructions),)).filled(PROMPT, "data:image/png;base64,")
    assert edition.read_answer(stand_in_judge.answer(json.dumps({"messages": told}).encode()))


def test_our_own_instructions_have_both_places_and_show_the_form_of_an_answer() -> None:
    for text in (GRADES, RIGHT_OR_WRONG):
        filled = Instructions(messages=(("user", text),)).filled(PROMPT, "data:")[0]["content"][0]["text"]
        assert PROMPT.text in filled
        assert "a clock" in filled
    assert read_grades(GRADES.rpartition("a grade:")[2]) is not None
