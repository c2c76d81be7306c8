"""What a user does with a server, from end to end; run as a script beside it, or imported.

python using.py URL KEY LANGUAGE…
"""

import base64
import io
import sys

import httpx

from stockade.sdk import Client

PROGRAMS = {
    "python": "print(6*7)",
    "node": "console.log(6*7)",
    "go": 'package main\nimport "fmt"\nfunc main() { fmt.Println(6*7) }\n',
}


def use(url: str, key: str, languages: list[str]) -> None:
    """A run at once, a job that a worker does, and a sandbox that lives: with files, processes and network."""
    with httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=60) as http:
        assert http.get("/health").json()["status"] == "healthy"
        assert "stockade_places" in http.get("/metrics").text
        for language in languages:
            ran = http.post("/execute", json={"language": language, "code": PROGRAMS[language]})
            assert ran.json().get("stdout") == "42\n", (language, ran.text)
            job = http.post("/v1/jobs", json={"language": language, "code": PROGRAMS[language]})
            assert job.status_code == 202, job.text
            ended = http.get(f"/v1/jobs/{job.json()['id']}", params={"wait": "30s"}).json()
            assert (ended.get("status"), ended["result"]["stdout"]) == ("succeeded", "42\n"), ended
    with Client(url, key) as client:
        sandbox = client.create("host", ["sleep", "300"], timeout_s=300)
        client.upload(sandbox.id, "/tmp/given", io.BytesIO(b"given"))
        command = "cat /tmp/given; ip -o link 2>/dev/null | wc -l; id -u; echo made > /tmp/made"
        with client.exec(sandbox.id, ["sh", "-c", command]) as process:
            finished = process.collect(timeout_s=30)
        assert finished.exit_code == 0, finished
        assert finished.stdout.startswith(b"given"), finished
        with client.download(sandbox.id, "/tmp/made") as parts:
            assert b"".join(parts) == b"made\n"
        client.kill(sandbox.id)


def use_box(url: str, key: str) -> None:
    """A box whose disk outlives a stop and goes on in a copy."""
    with httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:

        def asked(path: str, body: object = None) -> dict[str, str]:
            answer = http.post(path, json=body)
            assert answer.is_success, answer.text
            found: dict[str, str] = answer.json() if answer.content else {}
            return found

        def printed(box: str, command: str) -> str:
            execution = asked(f"/boxes/{box}/exec", {"command": "sh", "args": ["-c", command]})["execution_id"]
            return http.get(f"/boxes/{box}/executions/{execution}/output").text

        box = asked("/boxes", {"image": "host"})["box_id"]
        assert "event: exit" in printed(box, "echo kept > /srv/file")
        asked(f"/boxes/{box}/snapshots", {"name": "one"})
        asked(f"/boxes/{box}/stop")
        copy = asked(f"/boxes/{box}/clone", {"snapshot": "one"})["box_id"]
        for one in (box, copy):
            assert base64.b64encode(b"kept\n").decode() in printed(one, "cat /srv/file")
            assert http.delete(f"/boxes/{one}", params={"force": "true"}).status_code == 204
        figures = http.get(f"{url}/metrics", headers={"X-API-Key": key}).text
        assert 'stockade_box_starts_total{result="started"} 3.0' in figures


if __name__ == "__main__":
    use(sys.argv[1], sys.argv[2], sys.argv[3:])
    print("used")
