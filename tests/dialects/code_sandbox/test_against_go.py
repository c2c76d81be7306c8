"""Durations and bodies held against Go itself: whatever it says, we say."""

import base64
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from stockade.dialects.code_sandbox.durations import BadDuration, format_ns, parse_ns
from stockade.dialects.code_sandbox.gojson import BadPayload, is_blank, parse_strings

GO = shutil.which("go")
LONG = os.environ.get("STOCKADE_LONG_TESTS") == "1"
CASES = 40_000

pytestmark = pytest.mark.skipif(not LONG or GO is None, reason="long: STOCKADE_LONG_TESTS=1, and needs Go")

PROGRAM = """
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

type request struct {
	Language string `json:"language"`
	Code     string `json:"code"`
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		raw, _ := base64.StdEncoding.DecodeString(in.Text()[1:])
		if in.Text()[0] == 'd' {
			if length, err := time.ParseDuration(string(raw)); err == nil {
				fmt.Fprintln(out, int64(length), length)
			} else {
				fmt.Fprintln(out, "refused")
			}
			continue
		}
		var one request
		if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&one); err == nil {
			fmt.Fprintf(out, "%x|%x|%t\\n", one.Language, one.Code, strings.TrimSpace(one.Code) == "")
		} else {
			fmt.Fprintln(out, "refused")
		}
	}
}
"""
NAMES = ["language", "code", "Code", "LANGUAGE", "cod\u00e9", "x", "\u212a", "\u017f"]
PIECES = [
    b"null",
    b"1",
    b"-0",
    b"01",
    b"1.",
    b"1e5",
    b"1E+",
    b"true",
    b"[]",
    b"[1,2]",
    b"{}",
    b'{"code":1}',
    b'"a"',
    b'"\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"\\ud800\\ud83d\\ude00"',
    b'"\\udc00\\ud800"',
    b'"\xff\xfe"',
    b'"\xe2\x82"',
    b'"\xed\xa0\x80"',
    b'"\xf0\x9f\x98"',
    b'"\xf4\x90\x80\x80"',
    b'"\t"',
    b'"\\n\\/\\b"',
    b'"\\x"',
    b'"\\u12"',
    b'" \xc2\xa0\xe3\x80\x80"',
    b'"\x1c"',
    b'"\\u001c"',
    b"NaN",
    b"-",
    b'"',
    b"",
    b'"\\u0000"',
]


def a_duration(choice: random.Random) -> bytes:
    if choice.random() < 0.3:
        return "".join(choice.choices("0123456789.+-nusmhµμ e_", k=choice.randint(0, 10))).encode()
    text = choice.choice(["", "+", "-"])
    for number in range(choice.randint(1, 4)):
        # Two terms that are too long make Go 1.19 forget both: that is no use to anybody.
        longest = str(choice.randint(2**63 - 3, 2**63 + 3)) if number == 0 else "7"
        whole = choice.choice(["", str(choice.randint(0, 99)), longest])
        fraction = choice.choice(["", ".", f".{choice.randint(0, 10 ** choice.randint(1, 25))}"])
        text += whole + fraction + choice.choice(["ns", "us", "µs", "μs", "ms", "s", "m", "h", "d", ""])
    return text.encode()


def a_body(choice: random.Random) -> bytes:
    members = [
        json.dumps(choice.choice(NAMES), ensure_ascii=choice.random() < 0.5).encode()
        + b":"
        + choice.choice([b"", b"", b" ", b"\n"])
        + choice.choice(PIECES if choice.random() < 0.5 else [b'"a"', b"null"])
        for _ in range(choice.randint(0, 4))
    ]
    body = b"{" + b",".join(members) + b"}" + choice.choice([b"", b" x", b"}", b"\xff"])
    return body if choice.random() < 0.9 else body[: choice.randint(0, len(body))]


def our_duration(raw: bytes) -> str:
    try:
        length_ns = parse_ns(raw.decode())
    except BadDuration:
        return "refused"
    return f"{length_ns} {format_ns(length_ns)}"


def our_body(raw: bytes) -> str:
    try:
        found = parse_strings(raw, {"language", "code"})
    except BadPayload:
        return "refused"
    language, code = found.get("language", ""), found.get("code", "")
    return f"{language.encode().hex()}|{code.encode().hex()}|{str(is_blank(code)).lower()}"


def test_go_and_we_agree_on_every_duration_and_every_body(tmp_path: Path) -> None:
    choice = random.Random(6)
    durations = [a_duration(choice) for _ in range(CASES)]
    bodies = [a_body(choice) for _ in range(CASES)]
    (tmp_path / "main.go").write_text(PROGRAM)
    environ = {**os.environ, "GO111MODULE": "off", "GOCACHE": str(tmp_path / "cache")}
    assert GO is not None
    subprocess.run([GO, "build", "-o", "main", "main.go"], cwd=tmp_path, env=environ, check=True, timeout=300)
    lines = [f"d{base64.b64encode(raw).decode()}" for raw in durations]
    lines += [f"j{base64.b64encode(raw).decode()}" for raw in bodies]
    text = "".join(f"{line}\n" for line in lines)
    said = subprocess.run([tmp_path / "main"], input=text, capture_output=True, text=True, check=True, timeout=120)
    ours = [our_duration(raw) for raw in durations] + [our_body(raw) for raw in bodies]
    assert ours == said.stdout.splitlines()
