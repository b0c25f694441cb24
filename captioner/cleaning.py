"""Cleaning of the text that a model wrote, before it becomes a caption; RULES, at the end, lists every rule.

The rules run in order, and again until nothing changes, so that a clean caption is left as it is. Most leave a flag of their
own name on the captions that they changed. `caption_raw` keeps what the model wrote.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import eq

CLEANING_VERSION = 2
"""Changes whenever a rule does: it is part of what a run is."""

STATUSES = {
    "ok": "a caption to train on",
    "refusal": "the model declined, or the content filter of a server; the caption is empty",
    "empty": "nothing was written, or nothing that is a word; the caption is empty",
    "invalid_json": "the answer to a prompt with a schema does not follow it; the caption is empty",
}

LENGTH = "length"
"""The finish reason of a text that stopped because it reached the token limit."""


@dataclass(frozen=True, kw_only=True)
class CleanedCaption:
    """`caption` is one line, empty unless `status` is ok. `flags` are names of rules, in the order of RULES."""

    caption: str
    status: str
    flags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One step. `apply` takes the text and returns the new one, or None if the rule has nothing to say."""

    name: str
    what: str
    apply: Callable[[str], str | None]
    flagged: bool = True
    """Whether a caption that the rule changed says so."""
    only_at: str | None = None
    """The finish reason to which the rule is limited."""
    status: str | None = None
    """The status of a caption that the rule applies to; it ends the cleaning with an empty caption."""


def clean(raw: str, *, finish_reason: str) -> CleanedCaption:
    """The caption in what a model wrote. Never raises; the result is at most one full stop longer than `raw`.

    `finish_reason` is "length" where generation stopped at the token limit. Cleaning a result again changes nothing.
    """
    text = raw
    found: set[str] = set()
    while True:
        before = text
        for rule in RULES:
            after = rule.apply(text) if rule.only_at in (None, finish_reason) else None
            if after is None:
                continue
            if rule.status is not None:
                return CleanedCaption(caption="", status=rule.status, flags=_in_order(found))
            text = after
            found |= {rule.name} if rule.flagged else set()
        if text == before:
            return CleanedCaption(caption=text, status="ok", flags=_in_order(found))


def _in_order(names: set[str]) -> tuple[str, ...]:
    return tuple(rule.name for rule in RULES if rule.name in names)


# ---- characters

# What tokenizers and chat templates use as marks: <s>, </s>, <unk>, <image>, <|im_end|>, [INST].
_CONTROL_TOKEN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?(?:s|unk|pad|image|bos|eos)>|\[/?INST\]|<0x[0-9A-F]{2}>")
_UNUSUAL = re.compile(r"[^\x20-\x7e\s]")
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn"}


def _characters(text: str) -> str:
    if not _UNUSUAL.search(text):
        return text
    composed = unicodedata.normalize("NFC", text)
    composed = composed if len(composed) <= len(text) else text  # a few characters decompose under NFC
    kept = (character if _is_visible(character) else "" for character in composed)
    return "".join(kept).replace("�", "")


def _is_visible(character: str) -> bool:
    # The joiner holds emoji together, and white space becomes a space later.
    return character in "\u200d" or character.isspace() or unicodedata.category(character) not in _INVISIBLE


def _control_tokens(text: str) -> str | None:
    return _CONTROL_TOKEN.sub(" ", text) if _CONTROL_TOKEN.search(text) else None


# ---- chat

_ROLE = (
    r"(?:USER|ASSISTANT|SYSTEM|HUMAN|GPT)\s?:|\#{2,4}\s?(?:[Uu]ser|[Hh]uman|[Aa]ssistant|[Ss]ystem|USER|HUMAN|ASSISTANT)\b\s?:?"
)
_LINE_ROLE = r"(?:User|Human|Assistant|System)\s?:"
_LEADING_ROLE = re.compile(rf"\s*(?:(?:{_ROLE}|{_LINE_ROLE})\s*)+")
_LATER_ROLE = re.compile(rf"(?:(?<=\s)|(?<=[.!?]))(?:{_ROLE})|\n[ \t]*{_LINE_ROLE}")


def _roles(text: str) -> str | None:
    leading = _LEADING_ROLE.match(text)
    rest = text[leading.end() :] if leading else text
    later = _LATER_ROLE.search(rest)
    if not leading and not later:
        return None
    return rest[: later.start()] if later else rest


# Not every "I cannot" declines ("I can't help noticing the red door"), nor every "no image" ("no image of a person").
_FILE = r"(?:image|picture|photo(?:graph)?|file|attachment)s?\b"
_REFUSAL = re.compile(
    rf"""\W*(?:unfortunately,?\s|as\sthere\sis\sno\simage,?\s)?(?:
        (?:I['\u2019]m|I\sam|we\sare)\s(?:very\s|really\s|so\s|truly\s)?(?:sorry|unable\b|not\sable\b|afraid\sI\b)
      | (?:my\sapologies|I\sapologi[sz]e|sorry,\s(?:but\s)?I)\b
      | I\s(?:cannot|can\snot|could\snot|do\snot|(?:can|couldn|don)['\u2019]t)\s(?:actually\s|directly\s|really\s)?(?:
            (?:see|view|find|access|open|load|display|look\sat)\s(?:[a-z]+\s){{0,2}}(?:{_FILE}(?!\s(?:of|on|that)\b)|it[.,;!])
          | (?:assist|process|analy[sz]e|describe|interpret|identify|recogni[sz]e|provide|fulfil|comply|answer|comment|discuss)
          | help\b(?!\s(?:but|\w+ing)\b)
          | do\s(?:that|this|so|it)\b
          | have\s(?:the\s|any\s|direct\s|visual\s)*(?:ability|access|capabilit|eyes|{_FILE})
          | (?:know|tell|say|determine)\sw(?:hat|ho)\b
        )
      | as\san?\s(?:AI|artificial\sintelligence|(?:large\s)?language\smodel|text-based)\b
      | (?:there\sis|I\ssee)\sno\s{_FILE}
        (?=\W*$|\s?[.,;:!?]|\s(?:here|to|for|with|provided|attached|given|available|shown|in\syour)\b)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_AI_MODEL = re.compile(
    r"\bas an (?:AI|artificial intelligence)(?: (?:large )?language)?(?: model| assistant)?,? I\b", re.IGNORECASE
)


def _refusal(text: str) -> str | None:
    return "" if _REFUSAL.match(text) or _AI_MODEL.search(text) else None


# ---- layout

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*$", re.MULTILINE)
_RULER = re.compile(r"^[ \t]*(?:[-*_=][ \t]*){3,}$", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+([^\n]*)$", re.MULTILINE)
_ITEM = re.compile(r"^[ \t]*(?:(?:[-*+•‣▪>]|\d{1,2}[.)])[ \t]+)+([^\n]*)$", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]\n]{0,300})\]\([^()\s]{0,500}\)")
_EMPHASIS = re.compile(
    r"(?<![\w*])(\*{1,3})(?=\S)([^*\n]{1,1000}?)(?<=\S)\1(?![\w*])|(?<!\w)(_{1,3})(?=[^\s_])([^_\n]{1,1000}?)(?<=\S)\3(?!\w)"
)
_CODE = re.compile(r"`([^`\n]{1,300})`")
_ENDS = (".", "!", "?", ":", ";", ",", "…", '."', ".”", ".'", ".)", "!”", '!"')


def _markdown(text: str) -> str | None:
    plain = _RULER.sub("", _FENCE.sub("", text))
    plain = _LINK.sub(r"\1", plain)
    plain = _EMPHASIS.sub(lambda match: match.group(2) or match.group(4), plain)
    plain = _CODE.sub(r"\1", plain)
    plain = _HEADING.sub(lambda match: _closed(match.group(1).rstrip(" \t#"), ":"), plain)
    plain = _ITEM.sub(lambda match: _closed(match.group(1).rstrip(), "."), plain)
    return plain if plain != text else None


def _closed(line: str, mark: str) -> str:
    """A line as part of a running text: with a mark at its end where it has none."""
    return line if not line or line.endswith(_ENDS) else line + mark


def _white_space(text: str) -> str:
    return re.sub(r" ([,.;!?])(?=\s|$)", r"\1", " ".join(text.split()))


# ---- repetition

_CHARACTER_LOOP = re.compile(r"(\S{1,4}?)\1{9,}")
_LONGEST_LOOP_WORDS = 24
_PUNCTUATION = re.compile(r"[^\w\s]")


def _loops(text: str) -> str | None:
    once = _CHARACTER_LOOP.sub(r"\1", text)
    once = _without_repeated_sentences(once)
    once = _without_repeated_words(once)
    return once if once != text else None


def _without_repeated_sentences(text: str) -> str:
    """Keeps the first of equal sentences (case and punctuation aside), and drops an unfinished start of an earlier one."""
    kept: list[str] = []
    seen: set[str] = set()
    for sentence in _sentences(text):
        words = _bare(sentence)
        if words and words in seen:
            continue
        seen.add(words)
        kept.append(sentence)
    if len(kept) > 1 and len(kept) < len(list(_sentences(text))) and not _is_finished(kept[-1]):
        beginning = _bare(kept[-1])
        if any(words != beginning and words.startswith(beginning) for words in seen):
            kept.pop()
    return " ".join(kept)


def _without_repeated_words(text: str) -> str:
    """Cuts runs of the same words to the first: three times in a row, or twice for five words and more."""
    words = text.split(" ")
    bare = _bare_words(words)
    for length in range(1, _LONGEST_LOOP_WORDS + 1):
        times = 2 if length >= 5 else 3
        num_equal = sum(map(eq, bare, islice(bare, length, None)))
        if num_equal >= length * (times - 1):
            words = _cut_runs(words, bare, length=length, times=times)
            bare = _bare_words(words)
    return " ".join(words)


def _cut_runs(words: list[str], bare: list[str], *, length: int, times: int) -> list[str]:
    """The words without the repeats of `length` of them that occur at least `times` times in a row."""
    kept: list[str] = []
    start = 0
    while start < len(words):
        run = 0
        while start + length + run < len(words) and bare[start + run] == bare[start + length + run]:
            run += 1
        if run < length * (times - 1):
            kept.append(words[start])
            start += 1
            continue
        at_end = start + length + run == len(words)
        end = start + length + (run if at_end else run - run % length)
        # The last of whole repeats has the punctuation that fits what follows; an unfinished one is dropped with its own.
        last = words[end - 1] if run % length == 0 or not at_end else words[start + length - 1]
        kept += [*words[start : start + length - 1], last]
        start = end
    return kept


def _bare_words(words: list[str]) -> list[str]:
    """The words in lower case without punctuation; one of punctuation alone stays as it is."""
    bare = _PUNCTUATION.sub("", " ".join(words).lower()).split(" ")
    return [short or word for short, word in zip(bare, words, strict=True)]


def _bare(text: str) -> str:
    return " ".join(_PUNCTUATION.sub("", text.lower()).split())


# ---- sentences

# A rule and not spaCy's splitters: its `sentencizer` ends a sentence after "No." and "approx." and takes 25 times as long, its
# parser depends on the version of a model; and with another rule a run could not resume, since its captions would change.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”\u2019)\]]*(?=\s|$)")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|St|Mt|Jr|Sr|No|vs|e\.g|i\.e|approx|ca|[A-Z])\.$")


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a text of one line, the last one perhaps unfinished. Joined by spaces they give the text."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if end.group() == "." and _ABBREVIATION.search(text[max(start, end.start() - 8) : end.end()]):
            continue
        yield text[start : end.end()]
        start = end.end() + 1
    if start < len(text):
        yield text[start:]


def _is_finished(sentence: str) -> bool:
    end = _SENTENCE_END.search(sentence, max(0, len(sentence) - 8))
    return end is not None and end.end() == len(sentence)


def _unfinished(text: str) -> str | None:
    sentences = list(_sentences(text))
    if not sentences or _is_finished(sentences[-1]):
        return None
    return " ".join(sentences[:-1]) if len(sentences) > 1 else text


# ---- openers

# "photo" and "painting" name the style and stay: only words that say nothing but "image" go.
_IMAGE = r"(?:image|picture|scene)"
_SHOWS = (
    r"(?:features|shows|depicts|displays|presents|portrays|captures|showcases|illustrates|contains|represents|"
    r"consists\sof|is\scomposed\sof|is\sof)"
)
_OPENER = re.compile(
    rf"""(?:
        (?:sure|certainly|of\scourse)\b[,!.]*\s(?=here\b|the\b|this\b|in\b)
      | here\s(?:is|are)\s(?:a|an|the|your)\s(?:very\s)?(?:detailed\s)?(?:description|caption)
        (?:\sof\s(?:the|this)\s{_IMAGE})?\s?:\s
      | (?:(?:image|detailed)\s)?(?:description|caption)\s?:\s
      | in\s(?:the|this)\s(?:provided\s|given\s)?{_IMAGE}\s?,?\s(?:(?:we|you|one|I)\s(?:can\s)?(?:also\s)?see\s)?
      | (?:the|this)\s(?:provided\s|given\s)?{_IMAGE}\s(?:prominently\s|vividly\s|primarily\s)?{_SHOWS}\s(?:that\s)?
      | (?:the|this)\s(?:provided\s|given\s)?{_IMAGE}\sis\s(?=an?\s)(?!a\s(?:bit|little|lot|touch|tad)\s)
      | this\sis\san?\s{_IMAGE}\s(?:of|showing|featuring|depicting|that\s{_SHOWS})\s
      | an?\s{_IMAGE}\s(?:of|showing|featuring|depicting|that\s{_SHOWS})\s
    )(?=\S)""",
    re.VERBOSE | re.IGNORECASE,
)


def _opener(text: str) -> str | None:
    opener = _OPENER.match(text)
    if opener is None:
        return None
    rest = text[opener.end() :]
    first = rest[0].upper()
    return (first if len(first) == 1 else rest[0]) + rest[1:]


# ---- the end


def _ending(text: str) -> str:
    """A comma, a colon or a dash at the end, where something was cut, becomes a full stop."""
    cut = text.rstrip(" ,;:-\u2013\u2014")
    return cut if cut == text or not cut or cut.endswith(_ENDS) else cut + "."


def _empty(text: str) -> str | None:
    return None if any(character.isalnum() for character in text) else ""


RULES = (
    Rule(name="characters", what="NFC; control and invisible characters go", apply=_characters, flagged=False),
    Rule(name="control_tokens", what="</s>, <image>, <|im_end|> and the like become spaces", apply=_control_tokens),
    Rule(name="role_leak", what="USER:, ASSISTANT:, ### Human: go at the start, and cut all that follows later", apply=_roles),
    Rule(name="markdown", what="headings, lists, bold, code, links become running text", apply=_markdown),
    Rule(name="white_space", what="one line, single spaces", apply=_white_space, flagged=False),
    Rule(name="refusal", what='"I\'m sorry", "As an AI", "I cannot see the image"', apply=_refusal, status="refusal"),
    Rule(name="loop", what="a repeated sentence or run of words is cut to the first", apply=_loops),
    Rule(
        name="unfinished",
        what="at the token limit, an unfinished last sentence is removed where a finished one precedes it",
        apply=_unfinished,
        only_at=LENGTH,
    ),
    Rule(name="opener", what='"The image features" and its like go; what is left starts with a capital', apply=_opener),
    Rule(name="ending", what="a comma, colon or dash at the end becomes a full stop", apply=_ending, flagged=False),
    Rule(name="empty", what="no letter and no digit", apply=_empty, status="empty"),
)
