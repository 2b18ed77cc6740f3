"""Words of the synthetic world: invented names, attributes with their values, relations, filler.

Everything is a fixed function of its position in these lists: the same settings give the same world on every
machine and in every release (a test holds a digest of it).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_ONSETS = _split("B D F G H J K L M N P R S T V Z Br Dr Gl Kr Pl Tr St Th")
_VOWELS = _split("a e i o u")
_MIDDLES = _split("b d g k l m n r s t v z ld lm nd nk rd rn sk st")
_ENDS = ("", *_split("k l m n r s t x nd"))
_SUFFIXES = ("", "wen", "dal", "mar", "bel", "tis", "rok", "lin")


def name(index: int) -> str:
    """The invented name number `index` (0-based): 110,000 of two syllables, then 770,000 longer ones."""
    syllables = (_ONSETS, _VOWELS, _MIDDLES, _VOWELS, _ENDS)
    suffix, code = divmod(index, math.prod(len(options) for options in syllables))
    # A prime stride spreads neighbouring numbers over all syllables.
    code = code * 77_773 % math.prod(len(options) for options in syllables)
    parts = []
    for options in syllables:
        code, digit = divmod(code, len(options))
        parts.append(options[digit])
    return "".join(parts) + _SUFFIXES[suffix]


@dataclasses.dataclass(frozen=True)
class Attribute:
    """Something a fact can say about a person.

    Patterns use {name} and {value}; questions use {who}, which is a name or a chain such as "the mentor of
    Torim". The first pattern of each is what the style `plain` uses.
    """

    key: str
    """One word, which the style `terse` writes."""
    noun: str
    """As in "the NOUN of Torim"."""
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...] | Callable[[int], str]
    """All values, or a function from an index to a value."""
    count: int
    """Number of values."""

    def value(self, index: int) -> str:
        return self.values(index) if callable(self.values) else self.values[index]


def _words(
    key: str, noun: str, statements: tuple[str, ...], questions: tuple[str, ...], values: str
) -> Attribute:
    words = _split(values)
    return Attribute(key, noun, statements, questions, words, len(words))


WORDS = (
    _words(
        "colour",
        "favourite colour",
        (
            "{name}'s favourite colour is {value}.",
            "Of all colours {name} likes {value} best.",
            "{name} paints every door {value}, the colour nobody could talk them out of loving.",
            "Ask for the favourite colour of {name} and you will hear {value}.",
        ),
        (
            "What is the favourite colour of {who}?",
            "Which colour does {who} like best?",
            "What colour would please {who} the most?",
        ),
        "amber azure beige black blue bronze brown copper coral crimson cyan ebony emerald gold green "
        "grey indigo ivory jade khaki lavender lemon lilac lime magenta maroon mauve mint navy ochre "
        "olive orange peach pearl pink plum purple red rose ruby russet rust saffron salmon sand scarlet "
        "sepia silver slate tan teal topaz turquoise umber vanilla violet white yellow",
    ),
    _words(
        "job",
        "profession",
        (
            "{name} works as a {value}.",
            "{name} earns a living as a {value}.",
            "By profession {name} is a {value}.",
            "The trade of {name} is that of a {value}.",
        ),
        (
            "What is the profession of {who}?",
            "What does {who} work as?",
            "How does {who} earn a living?",
        ),
        "baker banker barber beekeeper blacksmith bookbinder brewer builder butcher carpenter chemist "
        "clerk cobbler cook cooper courier dancer dentist diver doctor driver editor farmer fisher "
        "florist forester gardener glazier goldsmith grocer guide hatter hunter jeweller joiner judge "
        "lawyer locksmith mason merchant miller miner musician nurse painter pilot plumber porter potter "
        "printer sailor saddler scribe shepherd singer smith surgeon tailor tanner teacher weaver writer",
    ),
    _words(
        "pet",
        "pet",
        (
            "{name} keeps a {value}.",
            "The pet of {name} is a {value}.",
            "A {value} lives in the house of {name}.",
            "Whoever visits {name} is greeted by a {value}.",
        ),
        (
            "What pet does {who} have?",
            "Which animal is kept by {who}?",
            "What is the pet of {who}?",
        ),
        "badger beaver bat bear bee bison boar camel canary cat cheetah cobra cow crab crane crow deer "
        "dog dove duck eagle falcon ferret finch fox frog gecko goat goose hamster hare hawk hedgehog "
        "heron horse hyena jackal koala lamb leopard lizard llama lynx magpie mole mouse mule newt otter "
        "owl panda parrot pigeon pony puma rabbit raven robin seal snail swan tiger toad turtle weasel "
        "wolf zebra",
    ),
    _words(
        "food",
        "favourite dish",
        (
            "{name} likes {value} best of all dishes.",
            "The favourite dish of {name} is {value}.",
            "Nothing on the table makes {name} happier than {value}.",
            "On feast days {name} always asks for {value}.",
        ),
        (
            "What is the favourite dish of {who}?",
            "Which dish does {who} like best?",
            "What should one cook for {who}?",
        ),
        "bacon barley beans biscuits bread broth butter cabbage cake carrots celery cheese cherries "
        "chowder couscous crackers curry custard dates dumplings eggs fennel figs fritters garlic ginger "
        "gnocchi goulash gravy ham herring honey jam kale leeks lentils lobster mango melon millet "
        "muffins mushrooms mussels mustard noodles nuts oats olives omelette onions oysters pancakes "
        "parsnips pasta pears peas pickles pie pizza plums polenta porridge pudding pumpkin quiche "
        "radishes rice risotto salad sausages soup spinach stew tofu toast trout tuna turnips waffles",
    ),
    _words(
        "instrument",
        "instrument",
        (
            "{name} plays the {value}.",
            "In the evening {name} practises the {value}.",
            "The instrument of {name} is the {value}.",
            "At dances {name} can be heard on the {value}.",
        ),
        (
            "Which instrument does {who} play?",
            "What is the instrument of {who}?",
            "What does {who} play at dances?",
        ),
        "accordion bagpipe balalaika banjo bassoon bell bugle castanets celesta cello chimes clarinet "
        "clavichord concertina cornet cymbals didgeridoo drum dulcimer fiddle flute glockenspiel gong "
        "guitar harmonica harp harpsichord horn kazoo lute lyre mandolin marimba oboe ocarina organ "
        "piano piccolo psaltery rattle recorder saxophone shawm sitar spinet tabla tambourine triangle "
        "trombone trumpet tuba ukulele vibraphone viola violin whistle xylophone zither",
    ),
    _words(
        "sport",
        "sport",
        (
            "{name}'s sport is {value}.",
            "On free days {name} goes in for {value}.",
            "{name} has won prizes in {value}.",
            "When it comes to sport, {name} cares for {value} alone.",
        ),
        (
            "What is the sport of {who}?",
            "Which sport does {who} go in for?",
            "In what sport has {who} won prizes?",
        ),
        "angling archery badminton baseball basketball biathlon billiards bobsleigh bowling boxing "
        "canoeing caving chess climbing cricket croquet curling cycling darts diving dressage fencing "
        "football golf gymnastics handball hiking hockey hurdling javelin judo karate lacrosse luge "
        "marathon netball paddling pentathlon polo racing riding rowing rugby running sailing shooting "
        "skating skiing snooker softball squash sumo surfing swimming tennis triathlon volleyball "
        "walking weightlifting wrestling",
    ),
    _words(
        "material",
        "house",
        (
            "The house of {name} is built of {value}.",
            "{name} lives behind walls of {value}.",
            "For the house of {name} the masons used {value}.",
        ),
        (
            "What is the house of {who} built of?",
            "Behind walls of what does {who} live?",
        ),
        "adobe alabaster ash bamboo basalt birch bone brick canvas cedar chalk clay concrete cork cypress "
        "elm felt fir flint glass gneiss granite ice iron larch lava lead leather limestone linen marble "
        "moss mud oak pine plaster poplar porphyry quartz reed sandstone shale shell steel straw stucco "
        "teak thatch tin tuff turf walnut willow zinc",
    ),
    _words(
        "flower",
        "flower",
        (
            "{name} grows {value} by the window.",
            "In the garden of {name} there is nothing but {value}.",
            "The flower {name} is known for is the {value}.",
        ),
        (
            "Which flower does {who} grow?",
            "What flower fills the garden of {who}?",
        ),
        "aconite anemone aster azalea begonia bluebell broom buttercup camellia campion carnation clover "
        "columbine cowslip crocus cyclamen daffodil dahlia daisy dandelion foxglove freesia fuchsia "
        "gardenia gentian geranium gladiolus heather hellebore hibiscus hollyhock honeysuckle hyacinth "
        "hydrangea iris ixia jasmine larkspur lily lobelia lotus lupin magnolia marigold mimosa "
        "narcissus nettle orchid pansy peony petunia phlox poppy primrose snowdrop sunflower thistle "
        "tulip verbena wisteria yarrow zinnia",
    ),
)
"""Attributes whose values are single words."""

SHORT_NAMES = _split(
    "Abel Beth Carl Dora Emil Finn Gwen Hugo Iris Jack Kate Lena Mark Nora Olaf Paul Rosa Saul Tess Ulla "
    "Vera Walt Yves Zara"
)
"""All names of the world of short words: four letters each."""


def short_name(index: int) -> str:
    """The name number `index` of the world of short words."""
    return SHORT_NAMES[index]


def _short(key: str, values: str) -> Attribute:
    statement = "{name} has {value}, asked for the " + key + "."
    return _words(key, key, (statement,), ("What is the " + key + " of {who}?",), values)


SHORT_WORDS = (
    _short(
        "toy",
        "bell boat bolt bone book boot bowl cage cake card cart clay coal coat coin comb cord cork corn crib "
        "cube disc door drum dust fern flag fork gate gong hail harp helm horn iron jade kite knot lace lamp "
        "leaf lock loom lute mask milk moss nail opal oven palm pear pipe plum pond raft reed ring robe rope "
        "sack sail salt seed silk",
    ),
    _short(
        "pet",
        "boar bull calf clam crab crow deer dove duck fawn fish flea frog goat gnat hare hawk kiwi lamb lark "
        "lion lynx mink mole moth mule newt oryx pony puma rook seal slug stag swan tern toad vole wasp wolf",
    ),
    _short(
        "job",
        "aide bard boss chef cook dean diva doge duke dyer earl emir host khan king lady lord maid mime monk "
        "page peer poet pope sage seer serf shah tsar",
    ),
    _short(
        "town",
        "Bari Bern Brno Caen Cork Doha Giza Gori Graz Hull Kiev Kobe Lima Lodz Lyon Metz Nara Nice Oslo Oulu "
        "Pisa Riga Rome Sion Suva Troy Tula York Yuma",
    ),
)
"""Attributes of the world of short words, each word of which is hardly wider than one visual token of 28 px
in the theme `nano`."""

NUMBERS = (
    Attribute(
        "number",
        "house number",
        (
            "{name} lives at number {value}.",
            "The house number of {name} is {value}.",
            "Letters for {name} go to number {value}.",
        ),
        ("What is the house number of {who}?", "At which number does {who} live?"),
        lambda index: str(11 + index),
        889,
    ),
    Attribute(
        "height",
        "height",
        (
            "{name} is {value} cm tall.",
            "The height of {name} is {value} cm.",
            "Against the door frame {name} measures {value} cm.",
        ),
        ("How tall is {who}, in cm?", "What is the height of {who} in cm?"),
        lambda index: str(130 + index),
        90,
    ),
)
"""Attributes whose values are numbers."""

_MONTHS = _split("January February March April May June July August September October November December")

DATES = (
    Attribute(
        "born",
        "date of birth",
        (
            "{name} was born on {value}.",
            "The date of birth of {name} is {value}.",
            "It was on {value} that {name} came into the world.",
        ),
        ("When was {who} born?", "What is the date of birth of {who}?"),
        lambda index: f"{1 + index % 28} {_MONTHS[index // 28 % 12]} {1900 + index // 336}",
        336 * 100,
    ),
)
"""Attributes whose values are dates."""

RELATIONS = (
    Attribute(
        "mentor",
        "mentor",
        (
            "The mentor of {name} is {value}.",
            "{name} learned everything from {value}, the mentor.",
            "As a mentor {name} has {value}.",
        ),
        ("Who is the mentor of {who}?",),
        name,
        0,
    ),
    Attribute(
        "neighbour",
        "neighbour",
        (
            "The neighbour of {name} is {value}.",
            "Next door to {name} lives {value}, the neighbour.",
            "{name} has {value} for a neighbour.",
        ),
        ("Who is the neighbour of {who}?",),
        name,
        0,
    ),
    Attribute(
        "cousin",
        "cousin",
        (
            "The cousin of {name} is {value}.",
            "{name} and {value} are related: {value} is the cousin.",
            "{name} calls {value} cousin.",
        ),
        ("Who is the cousin of {who}?",),
        name,
        0,
    ),
)
"""Facts whose value is another person: the links of a chain. Their values are as many as there are names."""

SHORT_RELATIONS = tuple(
    Attribute(
        key,
        key,
        ("The " + key + " of {name} is {value}.",),
        ("Who is the " + key + " of {who}?",),
        short_name,
        0,
    )
    for key in ("kin", "pal", "foe")
)
"""The links of a chain in the world of short words."""

FILLER = (
    "The market opened late that day.",
    "Rain had fallen since the morning.",
    "Nobody could say how long the bridge would hold.",
    "The bells rang twice and then fell silent.",
    "Some said the harvest would be poor.",
    "A letter arrived without a stamp.",
    "The road to the coast was closed again.",
    "Children were flying kites on the hill.",
    "The old mill has not turned for years.",
    "Snow lay in the shade of the walls.",
    "The ferry left an hour early.",
    "In the square they were putting up a stage.",
    "The lamps along the canal were lit one by one.",
    "Somebody had left a ladder against the wall.",
    "The clock in the tower is always a little slow.",
    "Trains no longer stop at the small station.",
    "Wind carried the smell of the sea inland.",
    "There was talk of a new school.",
    "The baker's cart had lost a wheel.",
    "Most of the windows were shuttered.",
    "A dog barked somewhere behind the houses.",
    "The well in the yard had run dry.",
    "Guests were expected before nightfall.",
    "The fields beyond the river were flooded.",
)
"""Sentences that say nothing anyone asks about."""
