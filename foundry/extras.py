"""Extras of the distribution: which one installs a library that is missing. What they hold is in pyproject.toml alone."""

import re

from foundry.errors import UserError

DISTRIBUTION = "t2i-foundry"
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "faiss": "faiss-cpu",
    "open_clip": "open-clip-torch",
    "yaml": "pyyaml",
}
"""Modules whose distribution has another name."""
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[^]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w.-]+)["']""")


def missing_library(error: ModuleNotFoundError, *, preferred: str = "") -> UserError | None:
    """The error for a user who lacks a library that an extra installs; None if no extra has it, which is a bug.

    `preferred` is the extra of the command: it is named where it has the library too.
    """
    module = (error.name or "").partition(".")[0]
    distribution = distribution_of(module)
    extras = extra_distributions()
    having = [extra for extra, names in extras.items() if distribution in names]
    if not having:
        return None
    extra = preferred if preferred in having else min(having, key=lambda name: len(extras[name]))
    return UserError(f'this needs {distribution}, which is not installed: pip install "{DISTRIBUTION}[{extra}]"')


def distribution_of(module: str) -> str:
    """The name of the distribution that a top-level module belongs to, in its normal form."""
    return re.sub(r"[-_.]+", "-", _DISTRIBUTIONS.get(module, module)).lower()


def extra_distributions() -> dict[str, set[str]]:
    """The distributions that each extra installs, with those of the extras that it names; none in a bare checkout."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    direct: dict[str, set[str]] = {}
    named: dict[str, set[str]] = {}
    for line in lines:
        extra, requirement = _EXTRA.search(line), _REQUIREMENT.match(line)
        if extra and requirement:
            name = distribution_of(requirement["name"])
            kinds = named if name == DISTRIBUTION else direct
            found = set(map(str.strip, (requirement["extras"] or "").split(","))) if name == DISTRIBUTION else {name}
            kinds.setdefault(extra[1], set()).update(found)
    return {extra: _with_named(extra, direct, named) for extra in {*direct, *named}}


def _with_named(extra: str, direct: dict[str, set[str]], named: dict[str, set[str]]) -> set[str]:
    inner = (_with_named(name, direct, named) for name in named.get(extra, set()))
    return direct.get(extra, set()).union(*inner)
