"""math-verify without any rule of this package, as verl's reward function ``math_verify`` calls it.

Only ``maths_worker.py`` may call this: math-verify may take forever and use all memory on text that a policy wrote.
"""

from __future__ import annotations

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify


def is_right(response: str, truth: str) -> bool:
    """math-verify's verdict on a whole response.

    Args:
        truth: LaTeX without a box.
    """
    gold = parse(rf"\boxed{{{truth}}}", [LatexExtractionConfig()], parsing_timeout=None)
    candidate = parse(response, [ExprExtractionConfig(), LatexExtractionConfig()], parsing_timeout=None)
    return bool(verify(gold, candidate, timeout_seconds=None))
