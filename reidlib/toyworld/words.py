"""The vocabulary of the toy world's witnesses: synonyms, sentence plans, questions and ways of answering."""

# Nouns for each value of an attribute. A text that shows none of an attribute's nouns does not name it.
NOUNS: dict[str, dict[str, tuple[str, ...]]] = {
    "upper": {
        "t-shirt": ("t-shirt", "tee", "short-sleeved top"),
        "shirt": ("shirt", "button-up shirt", "collared shirt"),
        "jumper": ("jumper", "sweater", "pullover"),
        "hoodie": ("hoodie", "hooded top", "hooded sweatshirt"),
        "jacket": ("jacket", "short jacket", "zip-up jacket"),
        "coat": ("coat", "long coat", "overcoat"),
    },
    "lower": {
        "trousers": ("trousers", "pants", "slacks"),
        "jeans": ("jeans", "denim jeans", "denims"),
        "shorts": ("shorts", "knee-length shorts"),
        "skirt": ("skirt", "knee-length skirt"),
        "leggings": ("leggings", "tight leggings"),
    },
    "shoes": {
        "trainers": ("trainers", "sneakers", "running shoes"),
        "boots": ("boots", "ankle boots"),
        "sandals": ("sandals", "open sandals"),
        "shoes": ("shoes", "flat shoes"),
    },
    "bag": {
        "backpack": ("backpack", "rucksack", "school bag"),
        "shoulder bag": ("shoulder bag", "cross-body bag", "satchel"),
        "handbag": ("handbag", "purse"),
        "straps": ("straps",),
    },
    "hat": {
        "cap": ("cap", "baseball cap"),
        "beanie": ("beanie", "knitted hat", "woolly hat"),
        "sun hat": ("sun hat", "wide-brimmed hat"),
    },
    "carried": {
        "phone": ("phone", "mobile phone", "cell phone"),
        "umbrella": ("umbrella", "parasol"),
        "cup": ("cup", "takeaway cup", "paper cup"),
        "folder": ("folder", "file"),
        "parcel": ("parcel", "cardboard box", "package"),
    },
}
VAGUE_NOUNS = {"upper": ("top",), "shoes": ("footwear",), "bag": ("bag",), "hat": ("hat",)}
PLURAL = ("trousers", "pants", "slacks", "jeans", "denims", "shorts", "leggings", "straps")
PLURAL += ("trainers", "sneakers", "boots", "sandals", "shoes")
# Adjectives that come before the colour.
LEADING = ("long", "short", "tight", "flat", "open", "knee-length", "short-sleeved")

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("black", "black", "jet black"),
    "white": ("white", "white", "off-white"),
    "grey": ("grey", "gray"),
    "navy": ("navy", "navy blue", "dark blue"),
    "blue": ("blue", "blue", "bright blue"),
    "red": ("red", "red", "bright red"),
    "green": ("green",),
    "yellow": ("yellow",),
    "brown": ("brown",),
    "beige": ("beige", "tan", "cream"),
    "pink": ("pink",),
    "purple": ("purple", "violet"),
}
VAGUE_COLOURS: dict[str, tuple[str, ...]] = {
    "dark": ("black", "navy", "brown"),
    "light": ("white", "beige"),
    "light-coloured": ("white", "beige", "yellow"),
    "bright": ("red", "yellow", "pink"),
    "blueish": ("navy", "blue"),
}
PATTERN_WORDS = {
    "striped": ("striped", "stripy"),
    "checked": ("checked", "plaid", "checkered"),
    "spotted": ("spotted", "polka-dot", "dotted"),
    "plain": ("plain", "plain-coloured"),
}
LOGOS = ("with a print on the chest", "with a round logo on the front", "with a picture on the front")

HAIR = {
    "short": ("short {c} hair", "{c} hair cut short", "short, {c} hair"),
    "long": ("long {c} hair", "{c} hair down past the shoulders", "long, {c} hair"),
    "ponytail": ("{c} hair in a ponytail", "a {c} ponytail"),
    "bun": ("{c} hair in a bun", "{c} hair tied up in a bun"),
    "curly": ("curly {c} hair", "thick {c} curls", "big, curly {c} hair"),
    "tied back": ("{c} hair tied back", "pulled-back {c} hair"),
    "bald": ("a bald head", "no hair", "a shaved head"),
}
HAIR_COLOUR_WORDS = {
    "black": ("black", "dark"),
    "brown": ("brown", "dark brown", "chestnut"),
    "blonde": ("blonde", "fair", "light"),
    "grey": ("grey", "gray", "silver"),
    "red": ("red", "ginger", "auburn"),
}

WHO = {
    "man": ("man", "man", "man", "male", "guy", "gentleman", "male pedestrian"),
    "woman": ("woman", "woman", "woman", "lady", "girl", "female", "female pedestrian"),
}
PRONOUNS = {"man": {"he": "he", "his": "his", "him": "him"}, "woman": {"he": "she", "his": "her", "him": "her"}}
WALKS = {
    "front": ("walking towards the camera", "coming towards us", "facing the camera"),
    "back": ("walking away", "seen from behind", "facing away from the camera"),
    "left": ("walking to the left", "passing from right to left", "seen from the side"),
    "right": ("walking to the right", "passing from left to right", "seen from the side"),
}

# A caption is one opening and as many continuations as its facts need. Slots: the facts {hair} {upper} {lower} {shoes}
# {bag} {hat} {carried}; {who} {walks}; {he} {his}; a capital initial starts a sentence.
OPENINGS = (
    "A {who} wearing {upper} and {lower}.",
    "The {who} is wearing {upper} and {lower}.",
    "A {who} with {hair} is wearing {upper} with {lower}.",
    "A {who} in {upper}, {lower} and {shoes}.",
    "A {who} dressed in {upper} and {lower}, {walks}.",
    "Dressed in {upper} and {lower}, the {who} is {walks}.",
    "This {who} has {hair} and wears {upper}.",
    "This {who} is {walks} and has on {upper} over {lower}.",
    "The {who} wears {upper}, {lower}, and {shoes}.",
    "In the picture is a {who} who wears {upper} and {lower}.",
    "There is a {who} {walks}, dressed in {upper}.",
    "There is a {who} with {hair} who has {lower} on.",
    "A {who} is {walks} in {lower} and {shoes}.",
    "The {who} is wearing {lower}.",
    "A {who}, {walks}, wears {lower}.",
    "A {who} with {bag}, wearing {upper} and {lower}.",
    "The {who} with {bag} is wearing {upper}.",
    "A {who} with {hair} and {bag} is {walks}.",
    "A {who} in {hat} is {walks}, wearing {upper}.",
    "Wearing {hat} and {upper}, the {who} is {walks}.",
    "The {who} has {hat} on and is dressed in {upper} and {lower}.",
    "A {who} with {carried} is wearing {upper} and {lower}.",
    "A {who} is {walks} with {carried}.",
    "{Upper} and {lower} are worn by the {who}.",
    "The {who} has {hair}, {upper} and {lower}.",
    "A {who} has {upper} on, together with {lower} and {shoes}.",
    "The {who} is {walks}; {he} has {hair} and {upper}.",
    "Pictured is a {who} in {lower}, {shoes} and {upper}.",
    "{Walks}, a {who} in {upper}.",
    "The {who}, who has {hair}, is {walks}.",
)
CONTINUATIONS = (
    "{He} has {hair}.",
    "{He} has {hair} and is {walks}.",
    "{His} outfit is {upper} and {lower}.",
    "{He} is wearing {upper}.",
    "{He} has on {upper} and {shoes}.",
    "{His} clothes are {upper} with {lower}.",
    "On top {he} wears {upper}.",
    "{He} is also wearing {lower}.",
    "On {his} legs {he} has {lower}.",
    "{He} wears {lower} and {shoes}.",
    "{He} pairs this with {lower} and {shoes}.",
    "On {his} feet {he} has {shoes}.",
    "{He} is wearing {shoes}.",
    "{He} has {shoes} on and {hair}.",
    "{He} is carrying {carried}.",
    "In {his} hand there is {carried}.",
    "{He} has {bag}.",
    "{He} has {bag} with {him}, and {shoes} on {his} feet.",
    "{He} also has {bag} and {carried}.",
    "{He} has {bag} and {hair}.",
    "On {his} head is {hat}.",
    "{He} is wearing {hat}.",
    "{He} has {hat} on, and {shoes}.",
    "{He} wears {hat} over {hair}.",
    "The {who} also has {bag}.",
    "The {who} also wears {shoes}.",
    "{He} was {walks} with {carried}.",
    "{He} finishes the outfit with {shoes}.",
    "{He} is {walks}.",
)

QUESTIONS: dict[str, tuple[str, ...]] = {
    "sex": ("Was it a man or a woman?", "Are we looking for a man or a woman?", "Is the person male or female?"),
    "hair": ("What was {his} hair like?", "How did {he} wear {his} hair?", "Was {his} hair long or short?"),
    "hair_colour": ("What colour was {his} hair?", "Do you remember the colour of {his} hair?"),
    "upper": (
        "What was {he} wearing on top?",
        "What kind of top did {he} have on?",
        "Could you describe the upper garment?",
    ),
    "upper_colour": (
        "What colour was {his} top?",
        "And the colour of the upper garment?",
        "Do you recall the colour of what {he} wore on top?",
    ),
    "upper_pattern": ("Was there any pattern on {his} top?", "Was {his} top plain, or did it have a pattern?"),
    "lower": (
        "What was {he} wearing below the waist?",
        "Did {he} wear trousers, a skirt or something else?",
        "What about the lower half?",
    ),
    "lower_colour": ("What colour were the clothes on {his} legs?", "And the colour of the lower garment?"),
    "shoes": (
        "What kind of shoes did {he} wear?",
        "What did {he} have on {his} feet?",
        "Did you notice {his} footwear?",
    ),
    "shoes_colour": ("What colour were {his} shoes?", "Do you remember the colour of {his} footwear?"),
    "bag": ("Did {he} have a bag?", "Was {he} carrying any kind of bag?", "Any backpack or bag?"),
    "bag_colour": ("What colour was the bag?", "And the bag's colour?"),
    "hat": ("Was {he} wearing a hat?", "Did {he} have anything on {his} head?"),
    "hat_colour": ("What colour was the hat?", "And the colour of the hat?"),
    "carried": (
        "Was {he} holding anything?",
        "Did {he} have anything in {his} hands?",
        "Was {he} carrying something else?",
    ),
}
FIRST_QUESTIONS = (
    "Can you describe the person you saw?",
    "What do you remember about the person?",
    "Who are we looking for?",
    "Please tell me about the person.",
)
HIDDEN = (
    "I couldn't see that.",
    "I can't say, it was hidden from me.",
    "No idea, I couldn't see it from where I was.",
    "I only saw {him} {walks}, so I can't tell.",
)
UNSURE = ("I'm not sure.", "I don't remember, sorry.", "I'm not sure about that.", "Hard to say.")
NOTHING = {
    "hair_colour": ("{He} had no hair.", "{He} was bald."),
    "bag": ("No, no bag.", "No, {he} had none.", "I don't think so."),
    "bag_colour": ("There was no bag.", "{He} had no bag."),
    "hat": ("No hat.", "No, nothing on {his} head.", "No, {he} was bareheaded."),
    "hat_colour": ("There was no hat.",),
    "carried": ("No, {his} hands were empty.", "Nothing that I noticed.", "No."),
}
REPLIES = ("{Value}.", "{Value}.", "{Value}, I think.", "I think {value}.", "It looked {value}.", "Definitely {value}.")
THING_REPLIES = (
    "{Value}.",
    "{He} had {value}.",
    "I saw {value}.",
    "{Value}, I think.",
    "{Value}, if I remember rightly.",
)
EXTRAS = ("And {he} had {fact}.", "I also remember {fact}.", "Oh, and there was {fact}.")
