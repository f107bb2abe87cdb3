"""Conversations with the demo model: a name, then two stories that are longer than its attention windows."""

SLOTS, CHUNK = 4, 64
"""Slots, and tokens per prefill step, of few programs, which two modules share."""

STORIES = (
    "Once upon a time, a small boat lived by a big lake. Every day the boat wanted to see the other side. "
    "One day the wind was soft and the sun was warm, so the boat went out on the water. It saw a duck and a fish. "
    "They played a game and were happy. Then the sky became dark and it started to rain. The boat was scared. "
    "The duck said, do not be scared, I will show you the way home. The boat followed the duck and soon it saw the "
    "trees near the lake. The boat was safe. It said thank you to the duck, and from that day they were good friends. "
    "Every evening they sat near the trees and looked at the stars together.",
    "Once there was a little bear who liked to bake. He wanted to make a cake for his mom. He went to the shop and "
    "bought eggs, milk and sugar. At home he put all of it in a big bowl. But he did not have any honey, and a bear "
    "needs honey in his cake. So he went to the forest and asked the bees. The bees said, you can have some honey if "
    "you help us find new flowers. The bear looked for a long time. Then he found a hill with red and yellow flowers. "
    "The bees were very happy and gave him the honey. The bear made the cake and his mom loved it. They ate it all.",
)

NAMES = [
    "Anna",
    "Ben",
    "Tom",
    "Sara",
    "Max",
    "Mia",
    "Sam",
    "Jack",
    "Emma",
    "Leo",
    "Zoe",
    "Nina",
    "Omar",
    "Kofi",
    "Maya",
    "Noah",
    "Ivy",
    "Rosa",
    "Hugo",
    "Ella",
    "Finn",
    "Amy",
    "Bob",
    "Joe",
    "Kate",
    "Luke",
    "Nora",
    "Owen",
    "Ruby",
    "Theo",
    "Vera",
    "Yara",
]


def turns(*texts: str) -> list[dict[str, str]]:
    """Returns messages of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def near(name: str) -> list[dict[str, str]]:
    """Returns a conversation with a name and at once the question for it."""
    return turns(f"My name is {name}.", f"Nice to meet you, {name}!", "What is my name?")


def far(name: str) -> list[dict[str, str]]:
    """Returns a conversation with a name, two stories and the question: more than 300 tokens lie between."""
    return turns(
        f"My name is {name}.",
        f"Nice to meet you, {name}!",
        "Tell me a story about a boat.",
        STORIES[0],
        "Tell me a story about a bear.",
        STORIES[1],
        "What is my name?",
    )
