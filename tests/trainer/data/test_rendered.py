"""Rendered rows: what is written is read again, and the files stay what the digests in stores were made of."""

from pathlib import Path

import pytest

from finetune_trainer.data import rendered
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.export import calibration

PLAIN = Rendered((5, 6), (1, 1), "", "Varn\N{LINE SEPARATOR}Point", 0)
CHAT = Rendered((1, 2, 3), (0, 0, 1), "Who?", "Mira.", 2)
PAIR = Rendered((1, 2, 3), (0, 0, 1), "Who?", "Mira.", 2, rejected="Nobody.", rejected_ids=(4, 5))
UNPAIRED = Rendered((1, 2, 3), (0, 0, 1), "Who?", "Nobody.", 2, desirable=False)
LINES = """\
{"input_ids":[5,6],"completion_mask":[1,1],"prompt":"","completion":"Varn\N{LINE SEPARATOR}Point","prompt_tokens":0}
{"input_ids":[1,2,3],"completion_mask":[0,0,1],"prompt":"Who?","completion":"Mira.","prompt_tokens":2}
{"input_ids":[1,2,3],"completion_mask":[0,0,1],"prompt":"Who?","completion":"Mira.","prompt_tokens":2,"rejected":"Nobody.",\
"rejected_ids":[4,5]}
{"input_ids":[1,2,3],"completion_mask":[0,0,1],"prompt":"Who?","completion":"Nobody.","prompt_tokens":2,"desirable":false}
"""


def test_rows_are_read_as_they_were_written_and_lie_as_they_always_did(tmp_path: Path) -> None:
    rows = [PLAIN, CHAT, PAIR, UNPAIRED]
    rendered.write(tmp_path, "train", rows)
    assert rendered.read(tmp_path, "train") == rows
    assert rendered.count(tmp_path, "train") == len(rows)
    assert (tmp_path / "train.jsonl").read_text("utf-8") == LINES


@pytest.mark.parametrize(
    ("most", "every", "expected"), [(2, 1, [0, 1]), (2, 3, [0, 3]), (9, 4, [0, 4, 8]), (None, 1, list(range(10))), (0, 1, [])]
)
def test_a_few_rows_are_read_from_the_begin_or_from_all_over(
    tmp_path: Path, most: int | None, every: int, expected: list[int]
) -> None:
    rendered.write(tmp_path, "train", (Rendered((n,), (1,), "", "x", 0) for n in range(10)))
    assert [row.input_ids[0] for row in rendered.read(tmp_path, "train", most, every)] == expected


def test_a_row_tells_what_is_asked_and_what_is_learned() -> None:
    assert (CHAT.asked_ids, CHAT.answer_ids, CHAT.counted) == ((1, 2), (3,), (False, False, True))
    assert (PAIR.length, PAIR.tokens) == (4, 7)
    assert (CHAT.length, CHAT.tokens) == (3, 3)


def test_quantizers_read_rows_with_any_text(tmp_path: Path) -> None:
    """Text may hold characters at which str.splitlines, but no JSON reader, ends a line."""
    rendered.write(tmp_path, "train", [PLAIN, CHAT])
    assert calibration.rows(tmp_path) == [[5, 6], [1, 2, 3]]
