"""Frozen records and enums that every ring shares. Standard library only."""

from stockade.model.limits import LimitOverrides, Limits
from stockade.model.outcomes import Outcome, Usage
from stockade.model.processes import Bundle, OnOutputLimit, ProcessResult, ProcessSpec, Template, TemplateKind
from stockade.model.runs import Actor, RunResult, RunSpec

__all__ = [
    "Actor",
    "Bundle",
    "LimitOverrides",
    "Limits",
    "OnOutputLimit",
    "Outcome",
    "ProcessResult",
    "ProcessSpec",
    "RunResult",
    "RunSpec",
    "Template",
    "TemplateKind",
    "Usage",
]
