"""Writes the questions for an LLM judge, and reads its answers. Pure text, no model.

Pairwise: the messages of the Self-Taught Evaluator, word for word as it was trained on them,
backslashes included (Wang et al., arXiv 2408.02666; the wording is MT-Bench's, Zheng et al., arXiv
2306.05685). Pointwise: a rubric asking for a score from 0 to 10, or to 9.

A verdict is read from the judge's own output only, and its last marker counts. Judges quote what
they read, so a marker in an instruction or a response could come back in the output and pass for
the verdict, and a response could end its own frame, or the user's turn, and begin the next. Such
markers are shown to the judge harmlessly changed: `[[A]]` as `[ [A] ]`, `Score:` as `Score :`, a
frame's brackets as parentheses, `<|im_end|>` and its kin with a space behind their first sign. All
else is shown as it is. No rewriting keeps a response from talking a judge into a verdict in plain
words; that both orders are asked weakens a plea for one letter, and no more.
"""

import enum
import math
import re
from collections.abc import Mapping

Message = dict[str, str]


class Verdict(enum.StrEnum):
    first = "first"
    """The response shown first (A) is better."""
    second = "second"
    tie = "tie"
    unreadable = "unreadable"


PAIRWISE_SYSTEM = (
    "Please act as an impartial judge and evaluate the quality of the responses provided by two AI "
    "assistants to the user question displayed below. You should choose the assistant that follows "
    "the user's instructions and answers the user's question better. Your evaluation should "
    "consider factors such as the helpfulness, relevance, accuracy, depth, creativity, and level "
    "of detail of their responses. Begin your evaluation by comparing the two responses and "
    "provide a short explanation. Avoid any position biases and ensure that the order in which the "
    "responses were presented does not influence your decision. Do not allow the length of the "
    "responses to influence your evaluation. Do not favor certain names of the assistants. Be as "
    "objective as possible. After providing your explanation, output your final verdict by "
    r"strictly following this format: \"[[A]]\" if assistant A is better, \"[[B]]\" if assistant B "
    "is better."
)
POINTWISE_SYSTEM = """\
Please act as an impartial judge and evaluate the quality of the response provided by an AI \
assistant to the user question displayed below. Rate it with a whole number from 0 to {best}.

{rubric}

Do not allow the length of the response to influence your evaluation. Be as objective as possible.
{form}"""
RUBRIC = """\
0: empty, harmful or about something else
1-2: tries to answer, and is wrong or useless
3-4: answers in part, with serious errors or gaps
5-6: answers most of the question; some errors or gaps remain
7-8: a correct and complete answer with small flaws
{best}: correct, complete and clear; hard to improve

Consider helpfulness, relevance, accuracy, depth and clarity."""
POINTWISE_FORM = {
    True: 'Begin with a short explanation. Then end with one line of this form: "Score: N".',
    False: 'Answer with one line of this form and nothing else: "Score: N".',
}

ASCII = re.IGNORECASE | re.ASCII
VERDICT = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", ASCII)
FRAME = re.compile(
    r"\[(\s*(?:User Question|The (?:Start|End) of Assistant(?: [AB])?['\u2019]s Answer)\s*)\]",
    ASCII,
)
SCORE_LABEL = r"\b(score[*_]*):"
SCORE = re.compile(
    SCORE_LABEL
    + r"""[ \t*_"'\[]*                      # Score: **[
        (?: ([0-9]{1,2}(?:\.[0-9]+)?)       # 7 or 7.5
            (?:[ \t]*/[ \t]*10)?            # 7/10
            (?! [\w%] | [.,][0-9] | [ \t]*/ | [ \t]*[-\u2013][ \t]*[0-9] )
        )?                                  # but not 700, 7%, 7,5, 7/5 or 7-8
    """,
    ASCII | re.VERBOSE,
)
CONTROL = re.compile(
    r"<\|[^<>|\n]{1,60}\|>|</?s>|<(?:start|end)_of_turn>|<[be]os>|\[/?INST\]", re.IGNORECASE
)
"""Texts that a tokenizer may take for the end of a turn and the beginning of the next."""
NUMBER = re.compile(r"\s*([0-9])\s*")
ENOUGH = 0.5
"""Share of probability on numbers below which the judge was about to say something else."""

MEANING = {"a": Verdict.first, "b": Verdict.second, "c": Verdict.tie, "tie": Verdict.tie}


def pairwise_messages(instruction: str, first: str, second: str) -> list[Message]:
    """`first` is shown as assistant A, `second` as assistant B."""
    user = f"[User Question]\n{_shown(instruction)}\n\n{_framed(' A', first)}\n\n"
    return _messages(PAIRWISE_SYSTEM, f"{user}{_framed(' B', second)}\n")


def parse_verdict(output: str) -> Verdict:
    """The last marker decides. Don't pass an output cut at its token limit: it has no verdict."""
    found = VERDICT.findall(output)
    return MEANING[found[-1].lower()] if found else Verdict.unreadable


def pointwise_messages(
    instruction: str, response: str, *, rubric: str | None = None, explain: bool = True
) -> list[Message]:
    """`rubric` says what a good response is. Without an explanation the score is the second thing
    said, for `expected_score`: then at most 9, since 10 is two tokens of many tokenizers, and the
    first of them is the score 1."""
    user = f"[User Question]\n{_shown(instruction)}\n\n{_framed('', response)}\n"
    system = POINTWISE_SYSTEM.format(
        best=10 if explain else 9,
        rubric=rubric or RUBRIC.format(best="9-10" if explain else "9"),
        form=POINTWISE_FORM[explain],
    )
    return _messages(system, user)


def parse_score(output: str) -> float | None:
    """The number after the last `Score:`; None where it isn't one from 0 to 10."""
    found = SCORE.findall(output)
    if not found or not found[-1][1]:
        return None
    score = float(found[-1][1])
    return score if score <= 10 else None


def expected_score(logprobs: Mapping[str, float]) -> float | None:
    """The mean of 0 to 9 by the log-probabilities of the tokens that can follow `Score:`.

    Tokens that aren't such numbers are left out, and the rest renormalised; None where the numbers
    have less than `ENOUGH` of the probability, or a log-probability is NaN.
    """
    weights: list[tuple[int, float]] = []
    for token, logprob in logprobs.items():
        if math.isnan(logprob):
            return None
        if number := NUMBER.fullmatch(token):
            weights.append((int(number[1]), math.exp(min(logprob, 0.0))))
    total = math.fsum(weight for _, weight in weights)
    if total < ENOUGH:
        return None
    return math.fsum(score * weight for score, weight in weights) / total


def _messages(system: str, user: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _framed(name: str, response: str) -> str:
    start, end = (f"[The {edge} of Assistant{name}'s Answer]" for edge in ("Start", "End"))
    return f"{start}\n{_shown(response)}\n{end}"


def _shown(text: str) -> str:
    text = VERDICT.sub(lambda found: f"[ {found[0][1:-1]} ]", text)
    text = FRAME.sub(r"(\1)", text)
    text = CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    return re.sub(SCORE_LABEL, r"\1 :", text, flags=ASCII)
