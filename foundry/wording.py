"""How commands put numbers into words."""


def counted(number: int, noun: str) -> str:
    """`1 unit`, `2 units`: for nouns whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
