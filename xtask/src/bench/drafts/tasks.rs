//! What is asked: text that stands in the prompt, or is about it, or is new.

/// Prompts of one kind.
pub struct Task {
    /// What the kind is called.
    pub name: &'static str,
    /// Whether the answer is mostly in the prompt, and as long as that.
    pub repeats_prompt: bool,
    /// The prompts.
    pub prompts: [&'static str; 4],
}

/// Those whose answer is in the prompt first.
pub const TASKS: [Task; 5] = [
    Task {
        name: "edit text",
        repeats_prompt: true,
        prompts: [HARBOUR, MARKET, LETTER, MINUTES],
    },
    Task {
        name: "repeat code",
        repeats_prompt: true,
        prompts: [PRICE, QUEUE, PARSER, TABLE],
    },
    Task {
        name: "summarise",
        repeats_prompt: false,
        prompts: [BEES, BRIDGE, LIBRARY, SALT],
    },
    Task {
        name: "explain",
        repeats_prompt: false,
        prompts: [
            "Explain in simple words why the sky is blue.",
            "How does a refrigerator keep food cold? Explain it to a child.",
            "Why do ships made of steel float?",
            "What happens in a computer when a program is started?",
        ],
    },
    Task {
        name: "tell",
        repeats_prompt: false,
        prompts: [
            "Tell me a story about a lighthouse keeper and a whale.",
            "Write a short story about a baker who wakes up in another century.",
            "Invent a fairy tale about a river that forgot its way to the sea.",
            "Write a letter from a traveller who has found an unknown island.",
        ],
    },
];

const HARBOUR: &str = "Write this text again without changing anything but the numbers, which you write as words:\n\n\
    The old harbour has 3 piers and 12 boats. Every morning at 6 the boats leave the harbour, and every evening at 7 the \
    boats come back to the harbour. The harbour master counts the boats, writes the number of boats into the big green \
    book, and goes home to his house on the hill. In winter only 4 of the boats leave the harbour, because the sea is too \
    rough for the small ones. The other 8 boats lie on the beach under grey covers, and the fishermen repair their nets in \
    the long shed behind the church. On the 1 day of March all boats are painted, blue above and white below, and on the \
    next day the priest walks along the 3 piers and blesses every boat. After that the children of the village get fried \
    fish and lemonade, and the season begins. Last year 1 boat did not come back before dark. The harbour master lit 2 \
    lamps at the end of the northern pier and waited. At 11 the boat came in with a broken engine and with more fish than \
    it had ever caught before.";

const MARKET: &str = "Correct the spelling of this text and write all of it again:\n\n\
    The market opens evry morning at seven. The farmers come from the vilages around the town and put their boxes on the \
    long wooden tables. There are aples, pears and plums in autumn, and in spring there are strawberys and young onions. \
    The baker sells bread that is still warm, and beside him an old woman sells honey from her own beas. At nine the \
    square is full of peple. They talk about the wether and about the price of potatos, and they taste the cheese before \
    they buy it. A man with an acordion plays the same four songs every day, and nobody minds. At noon the farmers pack \
    their boxes again. What is left is given to the kichen of the school, where soup is made of it. Then the square is \
    swept, and in the afternon children play football where the tables stood. The market has been there for four hundred \
    years. Once the council wanted to move it to a hall outside the town, but so many letters were writen that the plan \
    was given up after a week.";

const LETTER: &str = "Rewrite this letter for a customer named Anna Berg instead of Peter Holm. Leave everything else as it \
    is:\n\nDear Peter Holm,\n\nThank you for your order of the 14th of May. We are sorry that the oak table which you have \
    ordered will arrive later than we had promised. The wood was delivered to our workshop with cracks, and we do not want \
    to build a table for Peter Holm that will not last for a lifetime. We have ordered new wood from another forest, and \
    our carpenters will begin with the work as soon as it is dry. We expect that your table will be ready in the last week \
    of July.\n\nIf you do not want to wait so long, we can offer you a table of ash, which looks very much the same and \
    could be with you in ten days. The price would be the same, and the delivery would be free. Of course you can also \
    cancel the order, and we will send your money back at once.\n\nPlease tell us, Peter Holm, which of these you would \
    like best. You can call us every day between eight and five, or write to this address.\n\nWith kind regards,\nThe \
    workshop";

const MINUTES: &str = "Put this text into the past tense and write all of it:\n\n\
    The meeting begins at ten. The chairwoman welcomes the members and reads the list of topics. First the treasurer \
    presents the accounts of the year. The club has more members than before, but it spends more money than it earns, \
    because the roof of the boathouse needs new tiles. Two members propose to raise the fee, and three members propose to \
    hold a summer party and to sell cake. The members discuss the proposals for an hour. Then they vote. Eleven members \
    vote for the party, six members vote for the fee, and four members do not vote. After that the trainer reports about \
    the young rowers. They train three times a week, and two of them travel to the championship in June. They need a new \
    boat, because the old boat is too heavy. The chairwoman promises to ask the town for help. At the end the oldest \
    member shows pictures of the first boathouse, which stands on the other side of the river and has no roof at all. The \
    meeting ends at one.";

const PRICE: &str = "Rename the variable `total` to `amount` in this Python code and print all of the code:\n\n```python\n\
    def total_price(items, discount):\n    total = 0\n    for item in items:\n        total = total + item.price * \
    item.count\n    if discount > 0:\n        total = total - total * discount\n    return total\n\n\n\
    def print_bill(customer, items, discount):\n    total = total_price(items, discount)\n    print(\"Bill for\", \
    customer.name)\n    for item in items:\n        print(item.name, item.count, item.price)\n    print(\"Total:\", total)\n\
    \x20   if total > 100:\n        print(\"Delivery is free.\")\n    else:\n        print(\"Delivery:\", 5)\n        total \
    = total + 5\n    return total\n```";

const QUEUE: &str = "Add a method `is_empty` to this Python class and print the whole class:\n\n```python\nclass Queue:\n    \
    def __init__(self, limit):\n        self.limit = limit\n        self.items = []\n\n    def push(self, item):\n        \
    if len(self.items) >= self.limit:\n            raise ValueError(\"the queue is full\")\n        \
    self.items.append(item)\n\n    def pop(self):\n        if len(self.items) == 0:\n            raise ValueError(\"the \
    queue is empty\")\n        item = self.items[0]\n        self.items = self.items[1:]\n        return item\n\n    def \
    peek(self):\n        if len(self.items) == 0:\n            raise ValueError(\"the queue is empty\")\n        return \
    self.items[0]\n\n    def size(self):\n        return len(self.items)\n```";

const PARSER: &str = "Print this JavaScript code again with a comment above every function:\n\n```javascript\nfunction \
    splitLines(text) {\n  return text.split(\"\\n\");\n}\n\nfunction splitFields(line) {\n  return line.split(\",\");\n}\n\n\
    function parseNumber(text) {\n  const number = Number(text.trim());\n  if (Number.isNaN(number)) {\n    throw new \
    Error(\"not a number: \" + text);\n  }\n  return number;\n}\n\nfunction parseTable(text) {\n  const rows = [];\n  for \
    (const line of splitLines(text)) {\n    if (line.length === 0) {\n      continue;\n    }\n    const fields = \
    splitFields(line);\n    rows.push(fields.map(parseNumber));\n  }\n  return rows;\n}\n```";

const TABLE: &str = "Change the price of the tea to 4.20 in this JSON and print all of it:\n\n```json\n{\n  \"shop\": \
    \"The Green Door\",\n  \"city\": \"Lund\",\n  \"items\": [\n    { \"name\": \"tea\", \"price\": 3.50, \"unit\": \"box\", \
    \"stock\": 40 },\n    { \"name\": \"coffee\", \"price\": 6.90, \"unit\": \"bag\", \"stock\": 25 },\n    { \"name\": \
    \"sugar\", \"price\": 1.10, \"unit\": \"bag\", \"stock\": 60 },\n    { \"name\": \"milk\", \"price\": 0.95, \"unit\": \
    \"litre\", \"stock\": 80 },\n    { \"name\": \"honey\", \"price\": 5.40, \"unit\": \"glass\", \"stock\": 12 },\n    { \
    \"name\": \"bread\", \"price\": 2.80, \"unit\": \"loaf\", \"stock\": 30 }\n  ],\n  \"open\": { \"from\": \"08:00\", \
    \"to\": \"18:00\" }\n}\n```";

const BEES: &str = "Summarise this text in two sentences:\n\nA honey bee lives for about six weeks in summer. In the first \
    three weeks it works inside the hive: it cleans cells, feeds the larvae, builds combs of wax and guards the entrance. \
    In the other three weeks it flies out and collects nectar, pollen and water. When it has found a good place, it comes \
    back and dances on the comb. The direction of the dance tells the other bees in which direction they must fly, and the \
    speed of the dance tells them how far it is. Bees that are born in autumn live much longer, until spring, because they \
    have no larvae to feed. They sit close together around the queen and keep her warm.";

const BRIDGE: &str = "What are the main points of this text? Answer in three short sentences.\n\nThe bridge over the river was \
    built in 1897 by engineers from the capital. It is 320 metres long and made of iron. For sixty years it carried the \
    only railway to the coast, and every train had to slow down to twenty kilometres an hour while it crossed. In 1957 a \
    new bridge of concrete was built beside it, and the old bridge was closed. The railway company wanted to sell the iron, \
    but the people of the town collected money and bought the bridge for one crown. Today it is a path for walkers and \
    cyclists, and in the middle there is a small cafe with a view of the mountains.";

const LIBRARY: &str = "Summarise this text in two sentences:\n\nThe public library in our street was almost closed two years \
    ago. Fewer people borrowed books, and the town needed money for the schools. Then a new librarian came. She put tables \
    and lamps between the shelves, opened the library on Sundays, and let people borrow tools, games and musical \
    instruments. Pupils now do their homework there, old people learn how to use a telephone, and on Friday evenings there \
    is a concert. Twice as many people visit the library as before, and they borrow more books, too. The town has decided \
    to keep it open and to hire a second librarian.";

const SALT: &str = "Tell me in a few words of your own what this text says:\n\nSalt was once so valuable that soldiers were \
    paid with it, and cities became rich because a road on which salt was carried ended at their gates. It was needed to \
    keep meat and fish through the winter, because there was no other way to keep food cold. It came from the sea, where \
    water was left to dry in flat basins, or from mines deep under the mountains. When railways could carry salt cheaply, \
    and when ice and later machines kept food fresh, the price of salt fell, and the cities on the salt roads became quiet \
    places. Today most salt is not eaten at all, but strewn on roads in winter.";
