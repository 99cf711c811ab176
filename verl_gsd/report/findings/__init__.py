"""What is wrong with a run, in words, and which key to change to what."""

from verl_gsd.report.findings.find import findings
from verl_gsd.report.findings.finding import LIMITS, Finding, Limits

__all__ = ["LIMITS", "Finding", "Limits", "findings"]
