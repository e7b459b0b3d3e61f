"""Rows as people have them: each is learned as it is meant, or left out and counted, or refused with its place. Never silence.

The rows of each test stand in a file of 40 good ones, so that one bad row is within maxDroppedFraction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import CHATML
from tests.trainer.data.written import Written, byte_tokenizer, write_rows

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data.examples import READ
from finetune_trainer.failures import StepFailed

Prepare = Callable[..., Written]
GOOD = 40
THINKING = (  # as Qwen3's: what was thought before earlier answers is left out, and the last answer always has its tags
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def good(number: int, **more: Any) -> dict[str, Any]:
    return {"messages": [user(f"Who is number {number}?"), assistant(f"Mira {number}.")], **more}


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Who is number {number}?", "completion": f"Mira {number}.", **more}


@pytest.fixture
def prepare(make_run: Callable[..., RunConfig], tmp_path: Path) -> Prepare:
    """Write rows as JSON lines, prepare them without test rows, and return what became of them."""

    def run(rows: list[Any], template: str | None = CHATML, training: dict[str, Any] | None = None, **dataset: Any) -> Written:
        mounts = tmp_path / "mounts"
        (mounts / "claims/data/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = {"uri": "pvc://data/rows.jsonl", "test": {"fraction": 0}} | dataset
        config = make_run(dataset=asked, training={"method": "LoRA", "maxLength": 2048} | (training or {}))
        return write_rows(config, mounts, tmp_path, byte_tokenizer(template))

    return run


def among(*rows: dict[str, Any], like: Callable[[int], dict[str, Any]] = good) -> list[dict[str, Any]]:
    """These rows, from line 1, before good ones."""
    return [*rows, *(like(number) for number in range(GOOD))]


# ── What a turn says beside role and content ──────────────────────────────────────────────────────────────────────────

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "tool calls are not learned as an empty answer",
        {"messages": [user("Weather?"), assistant(None, tool_calls=[{"function": {"name": "w"}}])]},
        "messages, turn 2: key tool_calls is not read; calls are not learned",
    ),
    (
        "a function call",
        {"messages": [user("Weather?"), assistant("", function_call={"name": "w"})]},
        "messages, turn 2: key function_call is not read",
    ),
    (
        "a turn that is a call",
        {"messages": [user("Weather?"), {"from": "function_call", "value": "w"}, {"from": "gpt", "value": "Rain."}]},
        "messages, turn 2: role function_call is a call of a tool; calls are not learned",
    ),
    (
        "a call as a content part",
        {"messages": [user("Weather?"), assistant([{"type": "tool_use", "name": "w", "input": {}}])]},
        "messages, turn 2, part 1 is of another type than text",
    ),
    (
        "a turn of another type than a message",
        {"messages": [user("Hi?", type="image"), assistant("Yes.")]},
        "messages, turn 1: key type is not read",
    ),
    (
        "turns that are texts",
        {"messages": ["Who?", "Mira."]},
        "messages must be a list of turns, each with a role and its content",
    ),
    (
        "turns as numpy prints them",
        {"messages": "[{'role': 'user', 'content': 'Who?'}\n {'role': 'assistant', 'content': 'Mira.'}]"},
        "messages is text but not a JSON list of turns; it is what numpy prints, without commas",
    ),
    (
        "an image in the content",
        {"messages": [user([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "x"}}])]},
        "messages, turn 1, part 2 is of another type than text, and only text is learned",
    ),
    (
        "a question that is an image alone",
        {"messages": [user([{"type": "image", "image": "a.png"}]), assistant("A cat.")]},
        "messages, turn 1, part 1 is of another type than text, and only text is learned",
    ),
    (
        "an image beside the content",
        {"messages": [user("What is it?", images=["a.png"]), assistant("A cat.")]},
        "messages, turn 1: key images is not read; only text is learned",
    ),
    ("images in a column", good(1) | {"images": ["a.png"]}, "the row: key images is not read; only text is learned"),
    ("tools in a column", good(1) | {"tools": [{"name": "w"}]}, "the row: key tools is not read; the model would not be told"),
    (
        "a key that nobody knows",
        {"messages": [user("Hi?"), assistant("Yes.", emotion="glad")]},
        "messages, turn 2: key emotion is not read; what it says would be lost",
    ),
    (
        "half a weight",
        {"messages": [user("Hi?"), assistant("Yes.", weight=0.5)]},
        "messages, turn 2: weight must be 1, learned, or 0, not learned",
    ),
    (
        "a question that is to be learned",
        {"messages": [user("Hi?", train=True), assistant("Yes.")]},
        "messages, turn 1: train asks to learn a turn of user",
    ),
    (
        "two contents that differ",
        {"messages": [user("Hi?", text="Ho?"), assistant("Yes.")]},
        "messages, turn 1: content and text say different things",
    ),
    (
        "a content part without text",
        {"messages": [user([{"type": "text"}]), assistant("Yes.")]},
        "messages, turn 1, part 1 has no text",
    ),
    (
        "a content part that is null",
        {"messages": [user([None]), assistant("Yes.")]},
        "messages, turn 1, part 1 must be text, not NoneType",
    ),
    (
        "a lone surrogate",
        {"messages": [user("Hi \ud800?"), assistant("Yes.")]},
        "messages, turn 1 holds one half of a surrogate pair",
    ),
    (
        "two system messages",
        good(1) | {"messages": [{"role": "system", "content": "A"}, *good(1)["messages"]], "system": "B"},
        "the column system and the conversation's own system turn differ",
    ),
    ("a history that is no list", good(1) | {"history": "["}, "can't be read as Messages (NotJson)"),
    ("turns that are null", {"messages": [None]}, "messages must be a list of turns"),
    ("a role that is a list", {"messages": [{"role": ["user"], "content": "a"}]}, "messages, turn 1: role must be one of"),
]


@pytest.mark.parametrize(("row", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_meant_is_refused_with_its_place(prepare: Prepare, row: dict[str, Any], said: str) -> None:
    with pytest.raises(StepFailed) as caught:
        prepare(among(row))
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetRowInvalid")
    assert caught.value.message.startswith(f"spec.dataset: rows.jsonl line 1: {said}")


@pytest.mark.parametrize("error", [ZeroDivisionError(), RecursionError("deep"), AssertionError("a row's text")])
def test_whatever_reading_a_row_raises_is_told_with_its_place(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def read(_place: str, _: Any) -> Any:
        raise error

    monkeypatch.setitem(READ, DatasetFormat.MESSAGES, read)
    with pytest.raises(StepFailed) as caught:
        prepare([good(1)])
    said = f"spec.dataset: rows.jsonl line 1: can't be read as Messages ({type(error).__name__}): mend or remove the row"
    assert (caught.value.reason, caught.value.message) == ("DatasetRowInvalid", said)


LEARNED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "weight 0 is not learned",
        {"messages": [user("One?"), assistant("A.", weight=0), user("Two?"), assistant("B.", weight=1)]},
        "B.<|im_end|>",
        "A.",
    ),
    (
        "train false is not learned",
        {"messages": [user("One?"), assistant("A."), user("Two?"), assistant("B.", train=False)]},
        "A.<|im_end|>",
        "One?",
    ),
    (
        "text in place of content",
        {"messages": [{"role": "user", "text": "One?"}, {"role": "assistant", "text": "A."}]},
        "A.<|im_end|>",
        "One?",
    ),
    (
        "developer is system",
        {"messages": [{"role": "developer", "content": "Be short."}, user("One?"), assistant("A.")]},
        "A.<|im_end|>",
        "<|im_start|>system\nBe short.",
    ),
    (
        "function is tool",
        {"messages": [user("One?"), {"role": "function", "name": "w", "content": "42"}, assistant("A.")]},
        "A.<|im_end|>",
        "<|im_start|>tool\n42",
    ),
    (
        "LangChain's turns",
        {"messages": [{"type": "human", "content": "One?"}, {"type": "ai", "content": "A."}]},
        "A.<|im_end|>",
        "<|im_start|>user\nOne?",
    ),
    (
        "turns that say that they are messages",
        {"messages": [user("One?", type="message"), assistant([{"type": "output_text", "text": "A."}], type="message")]},
        "A.<|im_end|>",
        "One?",
    ),
    (
        "Gemini's parts",
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be short."}]},
            "messages": [{"role": "user", "parts": [{"text": "One?"}]}, {"role": "model", "parts": [{"text": "A."}]}],
        },
        "A.<|im_end|>",
        "<|im_start|>system\nBe short.",
    ),
    (
        "Bedrock's parts",
        good(1) | {"system": [{"text": "Be short."}]},
        "Mira 1.<|im_end|>",
        "<|im_start|>system\nBe short.",
    ),
    (
        "one part in place of a list",
        {"messages": [user({"type": "text", "text": "One?"}), assistant("A.")]},
        "A.<|im_end|>",
        "One?",
    ),
    (
        "what a tool answered",
        {"messages": [user("One?"), {"role": "ipython", "content": "42", "tool_call_id": "x"}, assistant("A.")]},
        "A.<|im_end|>",
        "<|im_start|>tool\n42",
    ),
    (
        "turns in Python's notation in a text",
        {"messages": str([user("What's one?"), assistant("A.")])},
        "A.<|im_end|>",
        "What's one?",
    ),
    ("a column system", good(1) | {"system": "Be short."}, "Mira 1.<|im_end|>", "<|im_start|>system\nBe short."),
    ("a column system_prompt", good(1) | {"system_prompt": "Be short."}, "Mira 1.<|im_end|>", "Be short."),
    (
        "a history of pairs",
        good(1) | {"history": [["Zero?", "Z."]]},
        "Z.<|im_end|>Mira 1.<|im_end|>",
        "<|im_start|>user\nZero?<|im_end|>\n<|im_start|>assistant\nZ.",
    ),
    (
        "the assistant begins",
        {"messages": [assistant("Welcome."), user("One?"), assistant("A.")]},
        "A.<|im_end|>",
        "<|im_start|>assistant\nWelcome.",
    ),
    (
        "a dict of lists, as parquet has it",
        {"messages": {"role": ["user", "assistant"], "content": ["One?", "A."]}},
        "A.<|im_end|>",
        "One?",
    ),
    (
        "control tokens that the user quotes stay text",
        {"messages": [user("What is <|im_end|>?"), assistant("It ends <|im_start|> turns.")]},
        "It ends <|im_start|> turns.<|im_end|>",
        "What is <|im_end|>?",
    ),
    ("keys that describe a turn", {"messages": [user("One?", id=1), assistant("A.", model="x")]}, "A.<|im_end|>", "One?"),
    ("empty keys", {"messages": [user("One?", images=[]), assistant("A.", tool_calls="[]")]}, "A.<|im_end|>", "One?"),
]


@pytest.mark.parametrize(("row", "learned", "shown"), [case[1:] for case in LEARNED], ids=[case[0] for case in LEARNED])
def test_what_can_be_meant_is_learned(prepare: Prepare, row: dict[str, Any], learned: str, shown: str) -> None:
    written = prepare(among(row))
    assert written.of("learned")[0] == learned
    assert shown in written.of("text")[0]
    assert written.facts.dropped is None


def test_control_tokens_in_what_people_wrote_are_encoded_as_text(prepare: Prepare) -> None:
    row = {"messages": [user("What is <|im_end|>?"), assistant("It ends <|im_start|> turns.")]}
    written = prepare(among(row))
    (ids, *others), end = written.of("input_ids"), byte_tokenizer(None).eos_token_id
    assert ids.count(end) == others[0].count(end) == 2, "one end of turn for the question, one for the answer"
    assert written.of("prompt")[0] == "<|im_start|>user\nWhat is <|im_end|>?<|im_end|>\n<|im_start|>assistant\n"
    assert written.changed == {"ControlToken": (1, "rows.jsonl line 1")}


def test_the_loss_on_whole_rows_leaves_out_the_answers_that_are_not_learned(prepare: Prepare) -> None:
    row = {"messages": [user("One?"), assistant("A.", weight=0), user("Two?"), assistant("B.")]}
    written = prepare(among(row), training={"completionOnlyLoss": False})
    assert "A." not in written.of("learned")[0]
    assert "One?" in written.of("learned")[0]
    assert "Two?" in written.of("learned")[0]


def test_reasoning_goes_where_the_template_has_it(prepare: Prepare) -> None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        written = prepare(among({"messages": [user("One?"), assistant("A.", **{key: "Because."})]}), template=THINKING)
        assert written.of("learned")[0] == "<think>\nBecause.\n</think>\n\nA.<|im_end|>"
        assert written.of("completion")[0] == "A."


def test_reasoning_without_a_place_in_the_template_is_refused(prepare: Prepare) -> None:
    with pytest.raises(StepFailed, match=r"line 1: turn 2 has reasoning, for which the model's chat template has no place"):
        prepare(among({"messages": [user("One?"), assistant("A.", reasoning_content="Because.")]}))


def test_a_turn_that_the_template_leaves_out_is_refused(prepare: Prepare) -> None:
    with pytest.raises(StepFailed, match=r"line 1: the model's chat template leaves turn 1, of role system, out of the text"):
        prepare(among(good(1) | {"system": "Be short."}), template=NO_SYSTEM)


def test_answers_that_the_template_shows_whole_only_as_the_last_have_rows_of_their_own(prepare: Prepare) -> None:
    row = {"messages": [user("One?"), assistant("A."), user("Two?"), assistant("B."), user("Three?"), assistant("C.")]}
    written = prepare(among(row), template=THINKING)
    think = "<think>\n\n</think>\n\n"
    assert written.of("learned")[:3] == [f"{think}{answer}.<|im_end|>" for answer in "ABC"]
    assert written.of("text")[2].count("<think>") == 1
    assert written.changed == {"AnswerApart": (2, "rows.jsonl line 1")}
    assert (written.facts.rows, written.facts.train_rows) == (GOOD + 1, GOOD + 3)


# ── What is dropped or changed is counted ─────────────────────────────────────────────────────────────────────────────

DROPPED: list[tuple[str, dict[str, Any], str]] = [
    ("an empty answer", {"messages": [user("Hi?"), assistant(" ")]}, "NoAnswer"),
    ("an empty answer before the last", {"messages": [user("Hi?"), assistant(""), user("Ho?"), assistant("A")]}, "NoAnswer"),
    ("an answer that is an end token", {"messages": [user("Hi?"), assistant("<|im_end|>")]}, "NoAnswer"),
    ("nobody answers", {"messages": [user("Hi?")]}, "NoAnswer"),
    ("an empty question", {"messages": [user(""), assistant("Yes.")]}, "NoQuestion"),
    ("an empty question later", {"messages": [*good(1)["messages"], user(None), assistant("A.")]}, "NoQuestion"),
    ("nobody asks", {"messages": [{"role": "system", "content": "Be."}, assistant("Yes.")]}, "NoQuestion"),
    ("no turns", {"messages": []}, "NoQuestion"),
    ("nothing is to be learned", {"messages": [user("Hi?"), assistant("Yes.", weight=0)]}, "NotLearned"),
    ("another shape", {"prompt": "Hi?", "completion": "Yes."}, "OtherColumns"),
    ("a mistyped column", {"mesages": good(1)["messages"]}, "OtherColumns"),
    ("too long", {"messages": [user("Hi? " * 1000), assistant("Yes.")]}, "TooLong"),
]


@pytest.mark.parametrize(("row", "cause"), [case[1:] for case in DROPPED], ids=[case[0] for case in DROPPED])
def test_what_is_dropped_is_counted_by_cause_with_one_example(prepare: Prepare, row: dict[str, Any], cause: str) -> None:
    written = prepare(among(row))
    assert written.dropped == {cause: (1, "rows.jsonl line 1")}
    facts = written.facts
    assert (facts.rows, facts.train_rows, facts.dropped_rows) == (GOOD + 1, GOOD, 1)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("without an answer", {"prompt": "Hi?", "completion": ""}),
        ("with an answer that is null", {"prompt": "Hi?", "completion": None}),
        ("of another shape late in the file", {"messages": good(1)["messages"]}),
        ("with a mistyped column", {"prompt": "Hi?", "completoin": "Yes."}),
    ],
)
def test_too_many_dropped_rows_stop_the_job(prepare: Prepare, name: str, row: dict[str, Any]) -> None:
    with pytest.raises(StepFailed) as caught:
        prepare([*(pair(number) for number in range(100)), *[row] * 99])
    assert caught.value.reason == "DatasetRowsDropped", name
    assert caught.value.message.startswith("spec.dataset: 99 of 199 rows can't be used: 99 "), name
    assert "(rows.jsonl line 101 " in caught.value.message
    assert caught.value.message.endswith("or raise spec.dataset.maxDroppedFraction, which is 0.05")
    assert prepare([*(pair(number) for number in range(100)), *[row] * 99], maxDroppedFraction=0.5).facts.train_rows == 100


CHANGED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "a conversation that ends with the user",
        {"messages": [*good(1)["messages"], user("Thanks")]},
        "TurnsAfterAnswer",
        "Mira 1.",
    ),
    (
        "a conversation that begins with the assistant",
        {"messages": [assistant("Hi"), *good(1)["messages"]]},
        "OpeningAnswer",
        "Mira 1.",
    ),
    ("an end token in the answer", {"messages": [user("Hi?"), assistant("Yes.<|im_end|>\n")]}, "EndToken", "Yes."),
]


@pytest.mark.parametrize(("row", "cause", "answer"), [case[1:] for case in CHANGED], ids=[case[0] for case in CHANGED])
def test_what_is_changed_is_counted(prepare: Prepare, row: dict[str, Any], cause: str, answer: str) -> None:
    written = prepare(among(row))
    assert written.changed == {cause: (1, "rows.jsonl line 1")}
    assert (written.of("learned")[0], written.of("completion")[0]) == (f"{answer}<|im_end|>", answer)


def test_end_tokens_are_stripped_where_there_is_no_template(prepare: Prepare) -> None:
    written = prepare(among(pair(7, completion="Yes.<|im_end|>"), like=pair), template=None)
    assert written.of("completion")[0] == "Yes."
    assert written.of("learned")[0] == "Yes.<|im_end|>"


def test_columns_that_nothing_is_learned_from_are_named(prepare: Prepare) -> None:
    written = prepare([pair(n, id=n, topic="light", empty=None) for n in range(GOOD)])
    assert written.facts.unused_columns == ("id", "topic")


def test_pandas_nan_is_no_answer(prepare: Prepare) -> None:
    assert prepare(among(pair(1, completion=float("nan")), like=pair)).dropped == {"NoAnswer": (1, "rows.jsonl line 1")}
    alpaca = [{"instruction": f"Sing {n}.", "input": float("nan"), "output": "La"} for n in range(GOOD)]
    assert "nan" not in prepare(alpaca).of("text")[0]


@pytest.mark.parametrize("write", [json.dumps, str])
def test_turns_in_the_cells_of_a_table_are_turns_in_every_format(prepare: Prepare, write: Callable[[Any], str]) -> None:
    asked, better, worse = write([user("Who?")]), write([assistant("Mira.")]), write([assistant("Nobody.")])
    rows = {
        "SFT": {"prompt": asked, "completion": better},
        "DPO": {"prompt": asked, "chosen": better, "rejected": worse},
        "ORPO": {"chosen": write([user("Who?"), assistant("Mira.")]), "rejected": write([user("Who?"), assistant("Nobody.")])},
    }
    for objective, row in rows.items():
        text = prepare([row], training={"objective": objective}).of("text")[0]
        assert text == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMira.<|im_end|>", objective


@pytest.mark.parametrize("labels", [(1, 0), (1.0, 0.0), ("1", "0"), (True, False), ("desirable", "undesirable")])
def test_labels_beside_an_answer_say_whether_it_is_desirable_where_that_is_what_is_learned(
    prepare: Prepare, labels: tuple[Any, Any]
) -> None:
    written = prepare([pair(n, label=labels[n % 2]) for n in range(GOOD)], training={"objective": "KTO"})
    assert written.facts.format == "UnpairedPreference"
    assert written.of("desirable")[:2] == [True, False]


def test_a_prompt_of_input_alone_begins_with_it(prepare: Prepare) -> None:
    written = prepare([{"instruction": "", "input": f"Sing {n}.", "output": "La."} for n in range(GOOD)])
    assert written.of("prompt")[0] == "<|im_start|>user\nSing 0.<|im_end|>\n<|im_start|>assistant\n"


def test_labels_are_the_same_whatever_white_space_stands_around_them(prepare: Prepare) -> None:
    rows = [{"text": f"Row {n}", "label": ("ham", " ham\n", "nan")[n % 3]} for n in range(GOOD)]
    written = prepare(rows, maxDroppedFraction=0.5)
    assert ({*written.of("completion")}, written.facts.labels) == ({"ham"}, 1)
    assert written.dropped == {"NoAnswer": (GOOD // 3, "rows.jsonl line 3")}


def test_rows_inside_an_object_each_are_told_of_it(prepare: Prepare) -> None:
    with pytest.raises(StepFailed, match=r"column data holds an object with prompt, completion: make those the columns"):
        prepare([{"data": pair(n)} for n in range(GOOD)])


def test_text_that_was_rendered_before_begins_once(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of another program often has the model's first token already, which many tokenizers put before it by themselves."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(None)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    monkeypatch.setattr(f"{__name__}.byte_tokenizer", lambda _: tokenizer)
    written = prepare([{"text": f"{begun}[INST] Who? [/INST] Mira."} for begun in (bos[0], "")])
    assert [ids.count(bos[1]) for ids in written.of("input_ids")] == [1, 1]


# ── Test rows are never trained on ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("like", [pair, good], ids=["pairs", "conversations"])
def test_copies_that_differ_in_an_id_or_in_spaces_are_held_out_together(prepare: Prepare, like: Callable[..., Any]) -> None:
    rows = [like(n, id=n) for n in range(100)]
    copies = [{**like(n, id=n + 100), **({"completion": f"Mira  {n}. "} if like is pair else {})} for n in range(100)]
    written = prepare(rows + copies, test={"fraction": 0.1})
    assert written.dropped == {}
    assert (written.facts.train_rows, written.facts.test_rows) == (180, 20)
    assert len({" ".join(said.split()) for said in written.of("completion", "test")}) == 10


def test_rows_of_another_shape_are_not_copies_of_each_other(prepare: Prepare) -> None:
    """Else all of them would be held out with one of them, and none of the others."""
    others = [{"question": f"What is {n}?"} for n in range(50)]
    written = prepare([pair(n) for n in range(50)] + others, test={"fraction": 0.1}, maxDroppedFraction=0.6)
    assert written.dropped["OtherColumns"][0] == 50
    assert 3 <= written.facts.test_rows <= 8


def test_a_test_uri_that_is_the_training_file_is_refused(prepare: Prepare) -> None:
    with pytest.raises(StepFailed) as caught:
        prepare([pair(n) for n in range(30)], test={"uri": "pvc://data/rows.jsonl"})
    assert caught.value.reason == "DatasetEmpty"
    assert "30 InTestRows (rows.jsonl line 1 has prompt and answer of a test row)" in caught.value.message


def test_a_test_file_that_overlaps_with_the_training_file_is_taken_out_of_it(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "mounts/claims/data/test.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(10)))
    rows, test = [pair(n) for n in range(6, 16)], {"uri": "pvc://data/test.jsonl"}
    with pytest.raises(
        StepFailed, match=r"4 of 20 rows can't be used: 4 InTestRows \(rows\.jsonl line 1 has prompt and answer of"
    ):
        prepare(rows, test=test)
    written = prepare(rows, test=test, maxDroppedFraction=0.2)
    assert written.dropped == {"InTestRows": (4, "rows.jsonl line 1")}
    assert (written.facts.train_rows, written.facts.test_rows) == (6, 10)


def test_validation_rows_are_neither_trained_nor_tested_on(prepare: Prepare, tmp_path: Path) -> None:
    for name, numbers in (("validation", (0, 1, 50)), ("test", (1, 2, 51))):
        lines = "".join(json.dumps(pair(n)) + "\n" for n in numbers)
        (tmp_path / f"mounts/claims/data/{name}.jsonl").write_text(lines)
    held = {name: {"uri": f"pvc://data/{name}.jsonl"} for name in ("validation", "test")}
    written = prepare([pair(n) for n in range(50)], maxDroppedFraction=0.1, **held)
    assert written.dropped == {"InTestRows": (3, "validation.jsonl line 2"), "InValidationRows": (1, "rows.jsonl line 1")}
    assert (written.facts.train_rows, written.facts.validation_rows, written.facts.test_rows) == (47, 2, 3)


# ── As other tools write them ─────────────────────────────────────────────────────────────────────────────────────────

ASKED, BETTER, WORSE = user("Who?"), "Mira.", "Nobody."
PREFERENCES: dict[str, dict[str, Any]] = {
    "OpenAI's": {
        "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [assistant(BETTER)],
        "non_preferred_output": [assistant(WORSE)],
    },
    "LLaMA-Factory's": {
        "conversations": [{"from": "human", "value": "Who?"}],
        "chosen": {"from": "gpt", "value": BETTER},
        "rejected": {"from": "gpt", "value": WORSE},
    },
    "with the question as turns": {"messages": [ASKED], "chosen": BETTER, "rejected": WORSE},
    "with the answers as lists": {"messages": [ASKED], "chosen": [assistant(BETTER)], "rejected": [assistant(WORSE)]},
    "with an empty input beside the question": {"instruction": "Who?", "input": "", "chosen": BETTER, "rejected": WORSE},
    "with all of it in the answers": {
        "messages": [ASKED, assistant(BETTER)], "chosen": [ASKED, assistant(BETTER)], "rejected": [ASKED, assistant(WORSE)],
    },
}  # fmt: skip


@pytest.mark.parametrize("row", PREFERENCES.values(), ids=PREFERENCES)
def test_preferences_as_other_tools_write_them(prepare: Prepare, row: dict[str, Any]) -> None:
    written = prepare([row], training={"objective": "DPO"})
    assert written.dropped == {}
    (text,), (learned,) = written.of("text"), written.of("learned")
    assert text.startswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMira.")
    assert text.count("Mira.") == 1
    assert learned.startswith("Mira.")


def test_a_conversation_with_its_answer_is_no_prompt_of_a_preference(prepare: Prepare) -> None:
    with pytest.raises(StepFailed, match=r"name its column: spec\.dataset\.columns: \{prompt: …\}"):
        prepare([{"messages": [ASKED, assistant(BETTER)], "chosen": BETTER, "rejected": WORSE}], training={"objective": "DPO"})


def test_an_answer_whose_loss_is_false_is_context(prepare: Prepare) -> None:
    turns = [user("Who?", loss=None), assistant("Nobody.", loss=False), user("Who?"), assistant("Mira.", loss=True)]
    written = prepare([{"conversations": turns}])
    assert written.of("learned") == ["Mira.<|im_end|>"]


def test_the_context_of_questions_is_in_the_entry_to_write(prepare: Prepare) -> None:
    with pytest.raises(StepFailed, match=r"columns: \{input: context, output: response\}$"):
        prepare([{"instruction": "Who?", "context": "Mira keeps it.", "response": "Mira.", "category": "qa"}])


HALF = json.loads('"\\ud800"')  # of a surrogate pair


def test_half_a_surrogate_pair_in_a_columns_name_can_be_reported(prepare: Prepare) -> None:
    written = prepare(among(pair(1, **{f"x{HALF}": 1}), like=pair))
    assert written.facts.unused_columns == ("x\\ud800",)
    assert json.loads(written.facts.model_dump_json(by_alias=True))["unusedColumns"] == ["x\\ud800"]
    with pytest.raises(StepFailed) as caught:
        prepare([{f"prompt{HALF}": "Who?"}])
    assert "prompt\\ud800" in caught.value.message.encode().decode()


def test_a_files_name_that_is_no_text_can_be_reported(prepare: Prepare, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "mounts/claims/data/named")
    os.mkdir(folder)
    for name in (b"caf\xe9.jsonl", b"caf\xe9.bin"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(
                b"".join(json.dumps(pair(n)).encode() + b"\n" for n in range(GOOD)) + b'{"prompt": "", "completion": "a"}\n'
            )
    written = prepare([], uri="pvc://data/named")
    assert written.dropped == {"NoQuestion": (1, "caf\\udce9.jsonl line 41")}
    assert written.facts.unread_files == ("caf\\udce9.bin",)
