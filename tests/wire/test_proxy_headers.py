"""Which headers pass the proxy, as tables of pairs."""

import pytest

from stockade.wire.proxy_headers import Headers, Target, request_headers, response_headers

BY_HOST = Target(sandbox_id="box", port=8080, path=b"/")
BY_PATH = Target(sandbox_id="box", port=8080, path=b"/", prefix=b"/sandboxes/box/ports/8080")
FAR = "203.0.113.9"
CSP = b"content-security-policy"


def asked(headers: Headers, target: Target = BY_HOST, *, client: str = FAR, scheme: str = "http") -> dict[bytes, bytes]:
    return dict(request_headers([(b"host", b"a.example"), *headers], target, client=client, scheme=scheme))


def answered(headers: Headers, target: Target = BY_HOST, *, status: int = 200) -> Headers:
    return response_headers(headers, target, status=status, host=b"a.example:8080")


@pytest.mark.parametrize(
    "name", [b"keep-alive", b"te", b"trailer", b"upgrade", b"proxy-authorization", b"proxy-connection", b"expect"]
)
def test_headers_for_the_next_hop_do_not_pass(name: bytes) -> None:
    assert name not in asked([(name, b"x")])
    assert answered([(name, b"x"), (b"x-kept", b"1")]) == [(b"x-kept", b"1")]


def test_headers_that_connection_names_do_not_pass() -> None:
    headers = [(b"connection", b"close, X-Mine"), (b"x-mine", b"1"), (b"x-kept", b"2")]
    assert b"x-mine" not in asked(headers)
    assert asked(headers)[b"x-kept"] == b"2"
    assert answered(headers) == [(b"x-kept", b"2")]


def test_connection_cannot_take_the_host_away() -> None:
    assert asked([(b"connection", b"host")])[b"host"] == b"a.example"


def test_a_peer_elsewhere_does_not_choose_what_is_said_of_it() -> None:
    spoofed = [(b"x-forwarded-for", b"10.0.0.1"), (b"x-forwarded-proto", b"https"), (b"forwarded", b"for=10.0.0.1")]
    sent = asked(spoofed, scheme="http")
    assert sent[b"x-forwarded-for"] == FAR.encode()
    assert sent[b"x-forwarded-proto"] == b"http"
    assert sent[b"x-forwarded-host"] == b"a.example"
    assert b"forwarded" not in sent


def test_a_reverse_proxy_on_this_host_is_believed() -> None:
    said = [(b"x-forwarded-for", FAR.encode()), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"b.example")]
    sent = asked(said, client="127.0.0.1")
    assert sent[b"x-forwarded-for"] == f"{FAR}, 127.0.0.1".encode()
    assert sent[b"x-forwarded-proto"] == b"https"
    assert sent[b"x-forwarded-host"] == b"b.example"


def test_by_path_the_prefix_is_told_and_nothing_of_the_api_passes() -> None:
    ours = [(b"authorization", b"Bearer sk_x"), (b"x-api-key", b"sk_x"), (b"cookie", b"a=b")]
    sent = asked(ours, BY_PATH)
    assert sent[b"x-forwarded-prefix"] == BY_PATH.prefix
    assert not {name for name, _ in ours} & set(sent)
    by_host = asked(ours)
    assert {name for name, _ in ours} <= set(by_host)
    assert b"x-forwarded-prefix" not in by_host


def test_a_request_without_a_host_gets_one() -> None:
    headers = request_headers([], BY_HOST, client=FAR, scheme="http")
    assert headers[0] == (b"host", b"localhost:8080")


def test_a_cookie_is_for_its_own_host() -> None:
    cookies = [
        (b"set-cookie", b"a=1; Domain=.example.org; Path=/"),
        (b"set-cookie", b"b=domain; path=/;domain=example.org"),
        (b"set-cookie", b"c=3"),
    ]
    assert [value for _, value in answered(cookies)] == [b"a=1; Path=/", b"b=domain; path=/", b"c=3"]


@pytest.mark.parametrize(
    "name", [b"set-cookie", b"strict-transport-security", b"alt-svc", b"clear-site-data", b"nel", b"report-to"]
)
def test_by_path_nothing_is_said_for_the_whole_origin(name: bytes) -> None:
    assert name not in dict(answered([(name, b"x")], BY_PATH))
    assert name in dict(answered([(name, b"x")]))


def test_by_path_pages_have_no_origin() -> None:
    headers = answered([(CSP, b"default-src 'self'")], BY_PATH)
    policies = [value for name, value in headers if name == CSP]
    assert policies[0] == b"default-src 'self'"
    assert policies[1].startswith(b"sandbox ")
    assert b"allow-same-origin" not in policies[1]
    assert CSP not in dict(answered([]))


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        (b"/login", b"/sandboxes/box/ports/8080/login"),
        (b"http://a.example:8080/login?x=1", b"/sandboxes/box/ports/8080/login?x=1"),
        (b"https://a.example:8080", b"/sandboxes/box/ports/8080/"),
        (b"//elsewhere.example/x", b"//elsewhere.example/x"),
        (b"http://a.example:80801/x", b"http://a.example:80801/x"),
        (b"next", b"next"),
    ],
)
def test_by_path_redirects_lead_back_to_the_service(said: bytes, passed: bytes) -> None:
    assert dict(answered([(b"location", said)], BY_PATH))[b"location"] == passed
    assert dict(answered([(b"location", said)]))[b"location"] == said


@pytest.mark.parametrize("status", [204, 304])
def test_the_length_of_a_body_that_does_not_come_is_not_told(status: int) -> None:
    assert answered([(b"content-length", b"12")], status=status) == []


def test_values_that_would_break_the_answer_do_not_pass() -> None:
    assert answered([(b"x-odd", b"a\x01b"), (b"x-even", b"a\tb")]) == [(b"x-even", b"a\tb")]
