"""The page of a report: what rows say is data in it, whatever they say."""

from __future__ import annotations

import json

from finetune_trainer.reporting.page import render

HOSTILE = "</script><script>alert(1)</script><!--"


def test_no_text_of_a_row_becomes_markup() -> None:
    page = render({"name": "<b>job</b>", "answers": {"base": [{"prompt": HOSTILE}]}})
    assert page.count("</script>") == 2, "the facts' and the page's own"
    assert "<b>job" not in page
    held = page.partition('id="facts">')[2].partition("</script>")[0]
    assert json.loads(held)["answers"]["base"][0]["prompt"] == HOSTILE
    program = page.rpartition("<script>")[2]
    assert not any(word in program for word in ("innerHTML", "outerHTML", "document.write", "insertAdjacentHTML", "eval("))
