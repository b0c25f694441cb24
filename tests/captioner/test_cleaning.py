"""Cleaning: each rule on text as models write it, and properties that hold for any text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.cleaning import RULES, STATUSES, CleanedCaption, clean


def cleaned(raw: str, *, finish_reason: str = "stop") -> CleanedCaption:
    return clean(raw, finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ("The image features a small owl on a fence.", "A small owl on a fence."),
        ("The image shows that an owl sleeps.", "An owl sleeps."),
        ("This image depicts owls, two of them.", "Owls, two of them."),
        ("In the image, there is an owl.", "There is an owl."),
        ("In this image we can see an owl.", "An owl."),
        ("The scene captures the warmth of dusk.", "The warmth of dusk."),
        ("The image is a painting of an owl.", "A painting of an owl."),
        ("This is an image of Ångström's house.", "Ångström's house."),
        ("An image of an owl", "An owl"),
        ("Sure! Here is a detailed description of the image: The image shows an owl.", "An owl."),
        ("THE IMAGE FEATURES a sign.", "A sign."),
        ("Description: an owl.", "An owl."),
    ],
)
def test_openers_go_and_english_stays(raw: str, caption: str) -> None:
    assert cleaned(raw) == CleanedCaption(caption=caption, status="ok", flags=("opener",))


@pytest.mark.parametrize(
    "caption",
    [
        "The photo shows an owl.",  # names the medium, which is style
        "The painting depicts an owl.",
        "The image's mood is calm.",
        "The imaged features are sharp.",
        "In the imagery, an owl.",
        'A sign that reads "I\'m sorry" hangs over a door.',
        "The poster says USER friendly: a robot as an AI assistant.",
        "She said she cannot see the sea.",
        "There is no image of a person on the wall, only a clock.",
        "I see no picture on the wall, only a nail.",
        "I can't help noticing the bright red door, which stands open.",
        "I cannot help but smile at the owl.",
        "I do not think this is a dog: it is a fox on a snowy field.",
        "I can't see a single cloud above the sea.",
        "I don't know the place, a church by a lake.",
        "The image is a bit blurry, but shows a cat.",
        "This picture is a little dark, with a lamp in the middle.",
        "Two owls, two cats and two dogs sit at 3.5 m.",
        "It is very, very dark.",
        "The house of Dr. J. Smith on St. Paul street is 3 * 4 * 5 m.",
        "A file named my_first_file lies there.",
        "A family 👨‍👩‍👧 by the sea.",
    ],
)
def test_good_captions_stay_as_they_are(caption: str) -> None:
    for finish_reason in ("stop", "length"):
        assert cleaned(caption, finish_reason=finish_reason) == CleanedCaption(caption=caption, status="ok", flags=())


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ("An owl.\nUSER: and now?\nASSISTANT: a cat", "An owl."),
        ("ASSISTANT: An owl.", "An owl."),
        ("An owl. USER: What else?", "An owl."),
        ("An owl.### Human: more", "An owl."),
        ("### Assistant: An owl.", "An owl."),
        ("An owl.\nHuman: thanks", "An owl."),
    ],
)
def test_chat_roles_are_cut(raw: str, caption: str) -> None:
    assert cleaned(raw) == CleanedCaption(caption=caption, status="ok", flags=("role_leak",))


@pytest.mark.parametrize(
    "raw",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot describe people.",
        "As an AI language model, I have no eyes.",
        "I cannot see any image.",
        "Unfortunately, I am unable to view it.",
        "I am not able to see the picture.",
        "Sorry, but I can not do this.",
        "ASSISTANT: I'm sorry.",
        "An owl, perhaps. As an AI, I do not know.",
        "**I'm sorry**, no.",
        "I can't help with that.",
        "I cannot assist with identifying people.",
        "I don't have the ability to see images.",
        "I can't actually view the attached picture.",
        "I could not open it.",
        "I don't see any image here.",
        "I cannot tell what this shows.",
        "There is no image.",
        "There is no image provided, so I have nothing to describe.",
        "I see no image in your message.",
        "Unfortunately, I'm not able to do so.",
    ],
)
def test_refusals_give_no_caption(raw: str) -> None:
    result = cleaned(raw)
    assert (result.caption, result.status) == ("", "refusal")


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ("# An owl\nIt **sits** on a *fence*.", "An owl: It sits on a fence."),
        ("There are:\n- an owl\n- a cat.\n* two dogs", "There are: an owl. a cat. two dogs."),
        ("1. **Owl**: brown\n2) __Cat__: black", "Owl: brown. Cat: black."),
        ("- - An owl", "An owl."),
        ("An [owl](http://a.b/c) and `code`.", "An owl and code."),
        ("```\nAn owl.\n```", "An owl."),
        ("An owl.\n\n---\n\nA cat.", "An owl. A cat."),
    ],
)
def test_markdown_becomes_running_text(raw: str, caption: str) -> None:
    assert cleaned(raw) == CleanedCaption(caption=caption, status="ok", flags=("markdown",))


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ("An owl sits. A cat runs. An owl sits. A cat runs. An ow", "An owl sits. A cat runs."),
        ("An owl sits. an owl sits! A new thing.", "An owl sits. A new thing."),
        ("A dog, a cat, a dog, a cat, a dog, a cat, a dog, a", "A dog, a cat."),
        ("There is a tree, a tree, a tree, a tree.", "There is a tree."),
        ("A very very very dark night.", "A very dark night."),
        ("An owl on a fence by the sea and an owl on a fence by the sea and a cat.", "An owl on a fence by the sea and a cat."),
        ("No" + "!" * 200, "No!"),
        ("ha" * 100, "ha"),
    ],
)
def test_loops_are_cut_to_the_first(raw: str, caption: str) -> None:
    assert cleaned(raw) == CleanedCaption(caption=caption, status="ok", flags=("loop",))


def test_unfinished_sentence_goes_only_at_the_token_limit() -> None:
    raw = "An owl sits on a fence. Behind it, the Dr. J. S"
    assert cleaned(raw, finish_reason="length") == CleanedCaption(
        caption="An owl sits on a fence.", status="ok", flags=("unfinished",)
    )
    assert cleaned(raw).caption == raw
    only = "An owl that sits on a"
    assert cleaned(only, finish_reason="length") == CleanedCaption(caption=only, status="ok", flags=("unfinished",))
    quoted = 'A sign says "Stop!"'
    assert cleaned(quoted, finish_reason="length").flags == ()


@pytest.mark.parametrize("raw", ["", " \n\t", "...", "**", "</s>", "USER:", "\u200b\ufeff", "�", "- \n- ", "🦉"])
def test_nothing_is_empty(raw: str) -> None:
    assert (cleaned(raw).caption, cleaned(raw).status) == ("", "empty")


def test_characters_and_white_space() -> None:
    assert cleaned("  An\u00a0owl \u200bsits ,\r\n\tcafe\u0301 .</s>").caption == "An owl sits, café."
    assert cleaned("An owl<|im_end|>").flags == ("control_tokens",)


def test_flags_are_in_the_order_of_the_table() -> None:
    raw = "ASSISTANT: The image shows **an owl**. The image shows an owl. It is"
    result = cleaned(raw, finish_reason="length")
    assert result == CleanedCaption(
        caption="An owl.", status="ok", flags=("role_leak", "markdown", "loop", "unfinished", "opener")
    )


PIECES = [
    "The image features ", "the image shows that ", "In this image, ", "USER: ", "### Human: ", "\nAssistant:", "I'm sorry",
    "As an AI", "**", "*", "_", "`", "# ", "- ", "1. ", "> ", "\n", " ", ". ", ", ", "an owl", "an owl sits. ", "\u00e9",
    "e\u0301", "</s>", "<|", "|>", "[", "](", ")", "St. ", "\u00df", "\u0149", "\u0958", "\u200d", "a", "b", "!", ":", "\u2014",
    "\u201d", '"', "3", "\u2026", "```", "---",
]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=300), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


@given(raw=TEXTS, finish_reason=st.sampled_from(["stop", "length"]))
@settings(max_examples=600, deadline=None)
def test_any_text_gives_a_stable_caption(raw: str, finish_reason: str) -> None:
    result = clean(raw, finish_reason=finish_reason)
    assert result.status in STATUSES
    assert set(result.flags) <= {rule.name for rule in RULES}
    assert (result.status == "ok") == bool(result.caption)
    assert len(result.caption) <= len(raw) + 1
    assert result.caption == " ".join(result.caption.split())
    assert clean(result.caption, finish_reason=finish_reason).caption == result.caption


@pytest.mark.parametrize(
    "piece", [*PIECES, "a ", "ab", "- - ", "((", "*a", "_a ", "[a", "The image ", "a b c d e f g ", "St. A. ", "a. "]
)
def test_long_and_nasty_text_is_cleaned_in_time(piece: str) -> None:
    text = (piece * 20_000)[:20_000]
    start = time.process_time()
    for raw in (text, text + "x", "x" + text, "x " + text + "."):
        clean(raw, finish_reason="length")
    assert time.process_time() - start < 2
