"""The process that compares two answers by math-verify: a JSON pair a line in; ``right``, ``wrong`` or ``unknown`` out.

Its limits are its parent's: it is killed when it does not answer, and when it does not know. It ends with its input.
math-verify catches most of what goes wrong inside it, a lack of memory too, and then finds two answers different.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys

#: Bytes of address space: sympy on ``9^{9^{9^9}}`` would take all there is.
MEMORY = 4 << 30


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever sympy or math-verify print is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)  # that its own time-outs are off, once a process
    latex = [LatexExtractionConfig(boxed_match_priority=0)]

    def are_equal(answer: str, truth: str) -> bool:
        read = [parse(rf"\boxed{{{text}}}", latex, parsing_timeout=None) for text in (truth, answer)]
        return all(read) and verify(*read, timeout_seconds=None)

    are_equal("0.5", r"\frac{1}{2}")  # the first one imports what all need: no answer's time is spent on that
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            verdict = "right" if are_equal(*json.loads(line)) else "wrong"
        except (MemoryError, RecursionError):
            verdict = "unknown"
        print(verdict, file=answers, flush=True)


if __name__ == "__main__":
    main()
