"""Frozen records and enums that every ring shares. Standard library only."""

from stockade.model.limits import LimitOverrides, Limits
from stockade.model.outcomes import Outcome, Usage
from stockade.model.processes import Bundle, OnOutputLimit, ProcessResult, ProcessSpec, Template, TemplateKind
from stockade.model.runs import Actor, RunResult, RunSpec
from stockade.model.sandboxes import (
    LEGAL_MOVES,
    BuildFile,
    BuildSpec,
    EndedBy,
    ExecSpec,
    FileInfo,
    FileKind,
    Network,
    NetworkMode,
    Port,
    Protocol,
    Sandbox,
    SandboxRequest,
    SandboxState,
    TerminalSize,
)

__all__ = [
    "LEGAL_MOVES",
    "Actor",
    "BuildFile",
    "BuildSpec",
    "Bundle",
    "EndedBy",
    "ExecSpec",
    "FileInfo",
    "FileKind",
    "LimitOverrides",
    "Limits",
    "Network",
    "NetworkMode",
    "OnOutputLimit",
    "Outcome",
    "Port",
    "ProcessResult",
    "ProcessSpec",
    "Protocol",
    "RunResult",
    "RunSpec",
    "Sandbox",
    "SandboxRequest",
    "SandboxState",
    "Template",
    "TemplateKind",
    "TerminalSize",
    "Usage",
]
