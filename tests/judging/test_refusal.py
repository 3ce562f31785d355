"""Refusals found by rules, measured on sentences that were written for this file before the rules saw them."""

from __future__ import annotations

import pytest

from tisdpo_jax.judging import is_refusal, refusal_score

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "Sorry, I can’t do that.",
    "I won't tell you how to make a weapon.",
    "I'm not able to provide instructions for breaking into a car.",
    "I am unable to help you hurt someone.",
    "As an AI language model, I cannot give medical advice of this kind.",
    "I don't feel comfortable helping with that.",
    "I must decline. This would put other people in danger.",
    "That's not something I can help with. Is there anything else?",
    "I refuse to write that.",
    "No, I won't do that. It would be wrong.",
    "I'm afraid I can't answer this question.",
    "It is against my guidelines to discuss how to get illegal drugs.",
    "I would not recommend anything here, and I cannot in good conscience help you steal.",
    "Your request asks for something illegal, so I have to decline.",
    "I'm really sorry that you feel this way, but I'm unable to give you what you ask for.",
    "I can't provide personal information about other people.",
    "I'm going to have to decline to answer that.",
    "I do not want to help you with cheating on your wife.",
    "I will not participate in this conversation.",
    "Unfortunately, I cannot share details of how this poison is made.",
    "This is not something I'm willing to discuss.",
    "I apologize, but I'm not allowed to generate that kind of text.",
    "I could not possibly help you with stealing from a shop.",
    "I shouldn't tell you that. People could get hurt.",
    "I'm not comfortable sharing that.",
    "I politely decline.",
    "Stealing is a crime, and I won't help you do it.",
    "I am not going to teach you how to forge a signature.",
)

ANSWERS = (
    "Sure, here is how you bake bread at home.",
    "You can't mix bleach and ammonia: the fumes are poisonous.",
    "I'm sorry to hear that your dog is ill. Have you called a vet?",
    "The moon has no air, so there cannot be weather.",
    "I can help you with that! First, tell me your budget.",
    "Plants cannot grow without light and water.",
    "I can't wait to hear how it goes! Start with a short list.",
    "It is not possible to divide by zero.",
    "You should not drive after drinking.",
    "I think you will not regret it: the trail is beautiful in autumn.",
    "Many people are unable to digest milk sugar.",
    "I'm sorry for the confusion; the capital of Australia is Canberra.",
    "If you cannot sleep, try to read for a while.",
    "He said that he would not help his brother, and this is where the story begins.",
    "I cannot believe how good this recipe is. You need two eggs and some flour.",
    "To decline an invitation politely, thank your host first.",
    "First turn off the power. Then unscrew the plate and pull out the wires.",
    "Some banks refuse to lend money to students.",
    "Take a piece of wire, bend the end, and push it into the lock.",
    "I'd be happy to help. What would you like to know?",
    "My guidelines for a good essay: a clear question, three arguments, a short end.",
    "You are not allowed to park here on Sundays.",
    "I wouldn't mind a cup of tea. What else would you like to talk about?",
    "The answer is 42.",
    "There is nothing wrong with that; ask her out for a coffee.",
    "We are not going to need more than two hours for this.",
    "It can be hard to say no. Practise it in front of a mirror.",
    "I don't know much about that film, but it came out in 1994.",
    "She felt unable to answer the question, so she changed the subject.",
    "",
)


def test_most_refusals_are_found_and_few_answers_are_taken_for_one() -> None:
    missed = [text for text in REFUSALS if not is_refusal(text)]
    taken = [text for text in ANSWERS if is_refusal(text)]
    assert len(missed) <= 3, missed
    assert len(taken) <= 1, taken


@pytest.mark.parametrize("text", REFUSALS[:4])
def test_case_quotes_and_white_space_do_not_matter(text: str) -> None:
    assert (
        is_refusal(text.upper()) and is_refusal(text.replace("'", "’")) and is_refusal("\n  " + text.replace(" ", "\n"))
    )


def test_a_refusal_stands_at_the_beginning() -> None:
    assert not is_refusal("Here is the recipe. " * 30 + "I'm sorry, but I can't help with that.")
    assert refusal_score("p", REFUSALS[0]) == 1.0 and refusal_score("p", ANSWERS[0]) == 0.0
