"""Rows of preferences: one prompt with a better and a worse answer, as text, as turns, or as two dialogues in one text each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune_trainer.data.conversation import Example, answered
from finetune_trainer.data.detection import DIALOGUE
from finetune_trainer.data.ledger import Cause
from finetune_trainer.data.turns import Turn, invalid, is_empty, refuse_unread, text_of, turns_of, unfolded

HUMAN, ASSISTANT = "\n\nHuman:", DIALOGUE  # what parts the turns of dialogues that are one text


def read(place: str, values: Mapping[str, Any]) -> Example | Cause:
    """The example of one row; the better answer is the conversation's last turn."""
    prompt, chosen, rejected = (unfolded(values.get(name)) for name in ("prompt", "chosen", "rejected"))
    prompt, chosen, rejected = _asked(place, prompt), _listed(chosen), _listed(rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _of_turns(place, prompt, turns_of(place, chosen, "chosen"), turns_of(place, rejected, "rejected"))
    good, bad = text_of(place, "chosen", chosen), text_of(place, "rejected", rejected)
    if not good.strip() or not bad.strip():
        return Cause.NO_ANSWER
    if good == bad:
        return Cause.SAME_ANSWERS
    if isinstance(prompt, list):
        return _of_turns(place, prompt, [Turn("assistant", good)], [Turn("assistant", bad)])
    if prompt is None:
        before, good, bad = _dialogue(place, good, bad)
        return _of_turns(place, None, [*before, Turn("assistant", good)], [*before, Turn("assistant", bad)])
    example = answered(place, text_of(place, "prompt", prompt), good, keep=True)
    return example if isinstance(example, Cause) else replace(example, rejected=bad)


def _asked(place: str, prompt: Any) -> Any:
    """The prompt; of OpenAI's {messages: [...], tools: []} the turns."""
    if not isinstance(prompt, dict) or "messages" not in prompt:
        return prompt
    refuse_unread(place, "prompt", {k: v for k, v in prompt.items() if not is_empty(v)}, {"messages", "parallel_tool_calls"})
    return prompt["messages"]


def _listed(answer: Any) -> Any:
    """One turn by itself, as LLaMA-Factory has it, is a list of one."""
    return [answer] if isinstance(answer, dict) else answer


def _of_turns(place: str, prompt: Any, chosen: list[Turn], rejected: list[Turn]) -> Example | Cause:
    """Two conversations, equal up to one last answer each; those without a question of their own come after the prompt."""
    if not any(turn.role == "user" for turn in chosen):
        asked = (
            turns_of(place, prompt, "prompt") if isinstance(prompt, list) else [Turn("user", text_of(place, "prompt", prompt))]
        )
        chosen, rejected = [*asked, *chosen], [*asked, *rejected]
    are_answered = all(turns and turns[-1].role == "assistant" for turns in (chosen, rejected))
    if not are_answered or chosen[:-1] != rejected[:-1]:
        raise invalid(place, "chosen and rejected must be the same conversation but for one last answer of the assistant")
    good, bad = chosen[-1], rejected[-1]
    if good.reasoning or bad.reasoning:
        raise invalid(place, "the reasoning of chosen and rejected answers is not learned: write it into content, or remove it")
    if any(turn.role == "user" and not turn.content.strip() for turn in chosen) or not any(t.role == "user" for t in chosen):
        return Cause.NO_QUESTION
    if not bad.content.strip() or not good.content.strip():
        return Cause.NO_ANSWER
    if not good.learned or not bad.learned:
        return Cause.NOT_LEARNED
    return Cause.SAME_ANSWERS if good == bad else Example(place, tuple(chosen), rejected=bad.content)


def _dialogue(place: str, chosen: str, rejected: str) -> tuple[list[Turn], str, str]:
    """Turns that two dialogues share, and the last answer of each: text in which Human: and Assistant: take turns."""
    before, mark, good = chosen.rpartition(ASSISTANT)
    same, _, bad = rejected.rpartition(ASSISTANT)
    if not mark or before != same or HUMAN not in before:
        raise invalid(
            place, "chosen and rejected do not begin with the same prompt; name its column: spec.dataset.columns: {prompt: …}"
        )
    turns = []
    for asked in before.split(HUMAN)[1:]:
        question, *answers = asked.split(ASSISTANT)
        turns += [Turn("user", question.strip()), *(Turn("assistant", answer.strip()) for answer in answers)]
    return turns, good.strip(), bad.strip()
