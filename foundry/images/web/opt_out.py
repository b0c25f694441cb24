"""Objections of an image's owner: the header X-Robots-Tag, and robots.txt.

Source: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag (the header); RFC 9309 (robots.txt).
"""

import re
from collections.abc import Iterable
from urllib.robotparser import RobotFileParser

OPT_OUT = ("noai", "noimageai", "noindex", "noimageindex", "none")
"""Words of X-Robots-Tag that object; none means noindex and nofollow."""


def objection(headers: Iterable[str], *, user_agent: str) -> str | None:
    """The word that objects in the values of X-Robots-Tag; None if there is none, or it is for other user agents.

    A value may begin with the name that it is for: `otherbot: noai`.
    """
    for value in headers:
        agent, colon, rest = value.partition(":")
        if colon and "," not in agent and not _plain(agent).startswith(("max-", "unavailable_after")):
            if _plain(agent) not in ("*", _token(user_agent)):
                continue
            words = rest.split(",")
        else:
            words = value.split(",")
        found = next((word for word in map(_plain, words) if word in OPT_OUT), None)
        if found:
            return found
    return None


class Robots:
    """What a robots.txt allows; an empty one, or none, allows everything."""

    def __init__(self, text: str) -> None:
        self._rules = RobotFileParser()
        self._rules.parse(text.splitlines())

    def allows(self, url: str, *, user_agent: str) -> bool:
        """Whether this user agent may fetch the address."""
        return self._rules.can_fetch(_token(user_agent), url)


def _token(user_agent: str) -> str:
    """The name without version and comment: `t2i-foundry` of `t2i-foundry/1.0 (+https://example.org)`."""
    return re.split(r"[/ ]", user_agent.strip(), maxsplit=1)[0].lower()


def _plain(word: str) -> str:
    return word.strip().lower()
