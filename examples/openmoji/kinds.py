"""The objects of the small world: which drawing each one is, and the words that describe it.

The list is curated by eye: silhouettes and colours that stay apart at 20 pixels, names of one word, no kind whose name is
also a colour or a category. Its order is part of the world: the first 8 or 16 make an easier world for trying things out.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of object."""

    name: str
    """Singular noun, as written in captions."""
    plural: str
    """Plural noun, as written in captions."""
    codepoint: str
    """Unicode code point of the emoji, which is the file stem of its drawing."""
    color: str
    """The colour that the drawing shows most, as written in captions."""
    category: str
    """Category of the thing, a noun."""


KINDS = (
    Kind("owl", "owls", "1F989", "gray", "bird"),
    Kind("apple", "apples", "1F34E", "red", "fruit"),
    Kind("key", "keys", "1F511", "orange", "tool"),
    Kind("tree", "trees", "1F332", "green", "plant"),
    Kind("umbrella", "umbrellas", "2602", "purple", "accessory"),
    Kind("diamond", "diamonds", "1F48E", "blue", "jewel"),
    Kind("pig", "pigs", "1F437", "pink", "animal"),
    Kind("star", "stars", "2B50", "yellow", "shape"),
    Kind("rocket", "rockets", "1F680", "red", "spacecraft"),
    Kind("penguin", "penguins", "1F427", "black", "bird"),
    Kind("carrot", "carrots", "1F955", "orange", "vegetable"),
    Kind("mushroom", "mushrooms", "1F344", "red", "fungus"),
    Kind("fish", "fish", "1F41F", "blue", "animal"),
    Kind("frog", "frogs", "1F438", "green", "amphibian"),
    Kind("house", "houses", "1F3E0", "white", "building"),
    Kind("robot", "robots", "1F916", "gray", "machine"),
    Kind("flamingo", "flamingos", "1F9A9", "pink", "bird"),
    Kind("turtle", "turtles", "1F422", "green", "reptile"),
    Kind("elephant", "elephants", "1F418", "gray", "mammal"),
    Kind("fox", "foxes", "1F98A", "orange", "mammal"),
    Kind("panda", "pandas", "1F43C", "white", "mammal"),
    Kind("ladybug", "ladybugs", "1F41E", "red", "insect"),
    Kind("octopus", "octopuses", "1F419", "red", "animal"),
    Kind("banana", "bananas", "1F34C", "yellow", "fruit"),
    Kind("eggplant", "eggplants", "1F346", "purple", "vegetable"),
    Kind("cactus", "cactuses", "1F335", "green", "plant"),
    Kind("hamburger", "hamburgers", "1F354", "orange", "snack"),
    Kind("donut", "donuts", "1F369", "orange", "dessert"),
    Kind("airplane", "airplanes", "2708", "gray", "vehicle"),
    Kind("tent", "tents", "26FA", "yellow", "shelter"),
    Kind("crown", "crowns", "1F451", "yellow", "ornament"),
    Kind("bell", "bells", "1F514", "yellow", "instrument"),
    Kind("telephone", "telephones", "260E", "red", "device"),
    Kind("ghost", "ghosts", "1F47B", "white", "creature"),
    Kind("gift", "gifts", "1F381", "yellow", "parcel"),
    Kind("bucket", "buckets", "1FAA3", "blue", "container"),
)

NEW_KIND = Kind("strawberry", "strawberries", "1F353", "red", "fruit")
"""A kind that no training of the shipped models saw, neither drawn nor named: examples/openmoji/new_object.py teaches it.
vae-mini can show it, which is not so of every drawing."""

KIND_NAMES = tuple(kind.name for kind in KINDS)
KIND_BY_NAME = {kind.name: kind for kind in (*KINDS, NEW_KIND)}
