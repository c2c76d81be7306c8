"""Spans: what happens inside of a request or a job, and how long it takes, for whoever collects traces.

A span is made only inside of another one. The outermost are made by `stockade.app`, and only where a collector is
configured: without one, nothing here costs more than a look at the context.

What is in a span leaves the machine: names, ids, figures and outcomes; never code, input, output, keys, or the message
of an exception, which may quote any of these.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import context, propagate, trace

__all__ = ["NAMESPACE", "OUTCOME", "Attribute", "inside", "span", "spanned", "traceparent"]

NAMESPACE = "stockade."
OUTCOME = NAMESPACE + "outcome"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Attribute = str | int | float | bool

_tracer = trace.get_tracer("stockade")
_NONE = nullcontext[trace.Span](trace.INVALID_SPAN)


def span(name: str, **attributes: Attribute) -> AbstractContextManager[trace.Span]:
    """A span around the block, where there is one around it already; else one that takes everything and keeps nothing.

    Args:
        attributes: the names are put into our namespace.
    """
    if not trace.get_current_span().get_span_context().is_valid:
        return _NONE
    return spanned(_tracer, name, {NAMESPACE + key: value for key, value in attributes.items()})


@contextmanager
def spanned(
    tracer: trace.Tracer,
    name: str,
    attributes: Mapping[str, Attribute],
    *,
    parent: context.Context | None = None,
    kind: trace.SpanKind = trace.SpanKind.INTERNAL,
) -> Iterator[trace.Span]:
    """A span around the block, whatever is around it. Of an exception that leaves the block it keeps the type alone.

    Args:
        parent: what it belongs to; `None` for what is around it.
    """
    with tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as one:
        try:
            yield one
        except BaseException as error:
            one.set_attribute("error.type", type(error).__name__)
            one.set_status(trace.StatusCode.ERROR)
            raise


def inside(traceparent: str) -> context.Context | None:
    """What belongs to the trace of a W3C `traceparent`; `None` where that is none."""
    return propagate.extract({"traceparent": traceparent}) if _TRACEPARENT.fullmatch(traceparent) else None


def traceparent(given: str = "") -> str:
    """The W3C `traceparent` by which others belong to the present span; without one *given*, if it is well-formed;
    else empty.
    """
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent") or (given if _TRACEPARENT.fullmatch(given) else "")
