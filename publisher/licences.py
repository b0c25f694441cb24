"""Licence of what is pushed again: the one that the repository's card names is not dropped in silence."""

from collections.abc import Sequence

from dataset_builder.reports.card import licence_fields, named_licence
from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.hub import Repository, card_facts


def licence_to_keep(repository: Repository, recorded: Sequence[str], *, path: str) -> str:
    """The licence that the repository's card names, where `recorded` states none; "" where recorded holds.

    Raises UserError where the card and the record name different licences, and for what the hub refuses.
    """
    there, here = named_licence(card_facts(repository)), named_licence(licence_fields(recorded))
    if not there or there == here:
        return ""
    if here:
        raise UserError(
            f"{repository.name} has the licence {there}, {path} has {here}: name the one that holds", setting="licence"
        )
    say(f"{repository.name} keeps the licence that its card names: {there}")
    return there
