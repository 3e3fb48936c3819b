# ruff: noqa: E501  (a template or a word list is read as one line)
"""Word lists of the lexicon, by part of speech and semantic class."""

# part of speech.semantic class[.number] -> words; these win over nouns and verbs of the same spelling
OTHERS = {
    "det.function": "a the its this that these those each every any another either no both all some",
    "det.person": "my your his her their our whose",
    "pron.person": "i me you he him she we us they them who whoever myself yourself himself herself everyone everybody anyone "
    "anybody someone somebody nobody none",
    "pron.function": "it something nothing anything everything what which itself themselves others other",
    "aux.function": "is are was were be been am do does did done have has had will would can could should may might must shall",
    "conj.function": "and but or because if when while until till so than although though as since before after",
    "adp.function": "of to in on at by for with from under behind beside inside into onto over near across through around between "
    "along past up down off out about like without above below below toward against among upon",
    "part.function": "not",
    "intj.speech": "oh yes hello hi goodbye please hush boom crash bang tap scratch bump creak splat thud clunk smash hurray wow "
    "thanks",
    "num.number": "twenty thirty hundred",
    "adj.number": "first second third fourth fifth last half many few much more most enough",
    "adj.feeling": "happy sad glad cheerful joyful delighted pleased merry unhappy gloomy upset miserable scared afraid "
    "frightened worried nervous alarmed proud angry cross mad grumpy annoyed lonely bored tired hungry thirsty "
    "sorry ashamed surprised fond calm busy sleepy brave shy",
    "adj.colour": "gold dark bright pale rusty",
    "adj.quality": "good nice lovely wonderful fine great best better bad worse young dear real true close strange silly funny "
    "cold hot cool warm windy sunny cloudy foggy stormy muddy dusty wild free ready safe perfect whole deep dull "
    "sick weak tight tighter bigger biggest largest larger tallest finest sweetest funniest bravest highest "
    "harder faster longer nearer prettier closest important polite mean unfair fair wrong right left loose "
    "crooked curly messy cozy hollow folded torn broken lost empty full alone awake asleep easy steady flat gone "
    "favorite rude next own poor such spare indoor paper straight strange wrapped ruined spoiled stuck loud quick "
    "heavy covered fallen bent stolen same closer clear missing rainy warmest older special else different fresh "
    "dead long short wet",
    "adv.time": "then soon again always never now often once twice suddenly finally today tomorrow ago later still yet ever "
    "already forever early late bedtime",
    "adv.quality": "very so really quite rather too just almost even together slowly carefully gently softly quietly quickly "
    "well hard happily proudly badly dearly kindly lightly safely aloud somehow maybe only also why how instead "
    "fast",
    "adv.place": "here there away back home everywhere somewhere anywhere outside indoors upstairs downstairs where far",
    "noun.time.sing": "monday tuesday wednesday thursday friday saturday sunday august noon spring summer autumn winter morning "
    "afternoon evening night day week month year hour minute second moment time while season midnight end",
    "noun.time.plur": "days weeks months years hours minutes seconds moments times nights",
    "pron.function.plur": "ones",
    "pron.person.sing": "mine",
    "det.function.sing": "an",
}
VERBS = {
    "speech": "said say says asked ask told tell telling answered answer replied cried cry crying shouted shout called call "
    "calling yelled whispered sang sing singing talked talk laughed laugh thanked thank promised speak spoke murmured joked "
    "counted count counting agreed added read reading boasted named hummed whistled growled gasped sighed giggled yelled "
    "sung listed",
    "motion": "went go goes going came come comes coming ran run running runs walked walk hurried dashed raced race rushed "
    "strolled skipped wandered jumped jump hopped climbed climb fell fall fallen falls turned turn followed follow flew fly "
    "swim swam crept crawled left leave sailed drifted floated danced dance rolled roll rode ride passed stepped step "
    "moved move moving slipped slip swayed returned chased chase sail flows nodded shook shake shaking stood stand sat sit "
    "stopped stop lay blew pushed push drew near running ran reached swept visit stay stayed staying join met begin",
    "mind": "saw see seen looked look looking looks heard hear thought think thinking knew know knows wanted want wished "
    "remember remembered forgot forgotten forget believe noticed found find watched watch listened listen wondered wonder "
    "cared "
    "dream felt feel feels feeling learned learn wants need needs needed mind matter hope mean means smelled tasted searched "
    "hunted hunt search waited wait dared dare spotted seemed",
    "feeling": "loved love liked like enjoyed smiled smile grinned missed miss hated worry clapped frowned beamed hurt hugged kissed",
    "action": "had gave give given gives gets got get getting took take taken put made make makes making kept keep held hold "
    "brought bring carried carry picked pick played play shared share sharing opened open closed shut helped help "
    "broke break ate eat eaten eating bit bite bitten drank washed wiped dried dry cut baked bake built build dug dig "
    "planted plant grew grow grown poured pour pouring rained raining snowed mixed stirred covered filled fill tied tie "
    "pulled pull threw throw kicked kick hit knocked caught catch caught dropped drop lost lose hid hide hidden hiding "
    "shown showed show handed passed offered bought buy sold saved save won win wins beat tried try taught teach worked work "
    "works wrote write painted fixed fix mended mend glued swallow set laid live lived began used use let lets sniffed "
    "licked scratched yawned slept sleep fall wake woke blinked shone lit hung stacked piled untied packed waved pointed "
    "moved patted lifted sew cook scooped puffed blinked stole hatched rested rest became become happened ended stay bound rang "
    "practiced collect juggle draw paint color turned wrapped finished started start touch belonged belongs lied lend trick kept "
    "touched checked watered die bend feed grin knock nod shows tore led",
}
NOUNS = {
    "person": "aunt uncle knight friend girl boy child man woman baby mother father parent neighbor king queen prince princess pirate giant "
    "hero winner guest robber witch ghost monster people family crowd name company",
    "animal": "dog cat bear lion wolf whale bat moth cricket ant wasp bug fly worm animal swan bird cub monster",
    "food": "drink bread cheese honey jam milk soup cocoa flour sugar butter cream chocolate corn oats food lunch supper dinner snack "
    "rice crumb bean pumpkin carrot breakfast seed",
    "toy": "toy game tag joke story castle balloon seek present gift prize medal puppet catch picture drawing party",
    "thing": "bath cup bowl vase plate jar jug pot mirror spoon knife letter note map book bag bottle coat sock shoe shirt sweater "
    "hat cap boot dress paper string ribbon rope ladder broom umbrella candle lantern torch net stick board pole spade towel "
    "sheet glue tin wire wool clay arrow cross sign flag dish can lace knot loop frame thing oven glass line piece cloth "
    "scissors part side half pocket sleeve trap circle clue bunch umbrella wood carpet whistle window telescope row square crust nail pencil penny ship treasure inch speed sight "
    "heart present fire smoke light word song secret lie truth sound noise voice color music idea plan help fault mess work "
    "trick turn matter map opposite bit way lot life place's",
    "place": "well house home cottage room kitchen attic hall street road lane town village city sea hole cave tower roof chimney "
    "floor ceiling wall mill shop hut corner tunnel ditch pit step stair bridge church path door gate yard middle edge nest "
    "north south east west side crack heaven upstairs end place front top school",
    "nature": "tree flower leaf grass bush rock stone log stump sun moon star sky cloud rain snow wind breeze storm thunder "
    "flash rainbow water stream mud puddle sand shell feather acorn root branch wood shade shadow air earth soil ground "
    "sunflower rose weed stem plant shoot oak tide dust drop world chance moonlight gust moss mile fire ice wave valley",
    "body": "hand head face eye ear nose mouth hair arm leg foot knee heart back shoulder neck cheek chin finger elbow stomach "
    "tummy belly tear tooth breath smile laugh hug",
    "feeling": "joy love fear fun care patience kindness dream wish",
    "time": "birthday lesson week minute hour bell age",
    "number": "pair number dozen",
    "motion": "race trip walk journey ride",
}
SINGULAR_WORDS = (
    "is was has does he him she her it i me my his this that everyone nobody someone himself herself am itself"
)
PLURAL_WORDS = "are were they them their we us our these those both many people scissors others themselves"
