"""Names of images."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.engine.image_references import InvalidReference, Reference, is_digest

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("ghcr.io/team/app/part:v1", "ghcr.io/team/app/part:v1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("GHCR.io/a", "ghcr.io/a:latest"),
        ("[::1]:5000/a:b", "[::1]:5000/a:b"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        ("a/b__c--d.e", "docker.io/a/b__c--d.e:latest"),
    ],
)
def test_what_a_reference_leaves_out_is_filled_in(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


@pytest.mark.parametrize(
    "text",
    [
        "", "Alpine", "a b", "a:", "a@", "a@sha256:12", f"a@{DIGEST.upper()}", "a//b", "/a", "a/", "a/../b", "../a",
        "http://a.b/c", "a:b:c", "a.b:port/c", "-a", "a:" + "t" * 129, "a/" * 200 + "a", "x" * 600, "a\n", "a:\u0661",
        "host.example:123456/a", f"@{DIGEST}", "a\0b", "\u00e9",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(text)


def test_the_default_registry_can_be_another() -> None:
    found = Reference.parse("app:1", default_registry="registry.example:5000")
    assert str(found) == "registry.example:5000/app:1"
    assert found.familiar == "registry.example:5000/app:1"


@pytest.mark.parametrize("text", ["alpine:3", "team/app:1", "ghcr.io/team/app:1", f"alpine@{DIGEST}"])
def test_a_familiar_name_leads_back(text: str) -> None:
    assert Reference.parse(text).familiar == text


_PART = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)
_REFERENCES = st.builds(
    lambda host, parts, end: "/".join((*host, *parts)) + end,
    st.sampled_from([(), ("ghcr.io",), ("localhost:5000",), ("r.example",)]),
    st.lists(_PART, min_size=1, max_size=4),
    st.sampled_from(["", ":1", ":A.b-c_d", f"@{DIGEST}"]),
)


@given(_REFERENCES)
def test_a_full_reference_is_its_own_full_form(text: str) -> None:
    found = Reference.parse(text)
    assert Reference.parse(str(found)) == found
    assert Reference.parse(found.familiar) == found
    assert (found.tag is None) == (found.digest is not None)


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        found = Reference.parse(text)
    except InvalidReference:
        return
    assert str(found).isprintable()
    assert ".." not in found.repository
    assert found.digest is None or is_digest(found.digest)
