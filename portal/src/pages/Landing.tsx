import { useEffect } from "preact/hooks";
import { session } from "../session";
import { ButtonLink, CopyButton, Icon, OutsideBar, type IconName } from "../ui";
import "../styles/landing.css";

const CURL = (origin: string) => `curl ${origin}/v1/execute \\
  -H 'Content-Type: application/json' \\
  -d '{"language": "python", "code": "print(6 * 7)"}'`;

const ANSWER = `{"id": "7b0f6f0e-3a52-4a7c-9d0a-0f6f2f2f4c11",
 "status": "queued",
 "createdAt": "2026-03-02T09:30:00.120457Z"}`;

const POINTS: { icon: IconName; title: string; text: string }[] = [
  {
    icon: "shield",
    title: "Held in by the kernel",
    text: "Namespaces, cgroups and a system-call filter that denies by default. What a machine cannot enforce is refused, not forgotten.",
  },
  {
    icon: "box",
    title: "Fresh for every run",
    text: "One program, one sandbox, thrown away after it. Or one that lives: a terminal, files and ports for as long as you work in it.",
  },
  {
    icon: "play",
    title: "Milliseconds, not containers",
    text: "No container engine, no virtual machine, no image to pull. A sandbox costs a few milliseconds on ordinary hardware.",
  },
  {
    icon: "list",
    title: "Jobs that are not lost",
    text: "Queued work is kept in a database, taken by any number of workers, tried again after a crash, and ends exactly once.",
  },
  {
    icon: "chart",
    title: "Limits and figures",
    text: "CPU time, memory, processes, disk and output are limited for each run, and what it used is told with its result.",
  },
  {
    icon: "server",
    title: "On your own machine",
    text: "One Python package under the Apache licence. Nothing is sent anywhere: this page asks no other host for anything.",
  },
];

const PROTOCOLS = [
  { name: "Code Sandbox API", use: "jobs that are queued, and the accounts around them", path: "/v1/execute" },
  { name: "isobox", use: "one-shot runs with test cases, over HTTP and gRPC", path: "/execute" },
  { name: "execbox", use: "sandboxes that live: processes, streams, files, ports", path: "/v1/sessions" },
  { name: "Koyeb's sandbox executor", use: "one sandbox that a secret opens, for that service's own clients", path: "stockade executor" },
];

export default function Landing() {
  useEffect(() => {
    document.title = "Stockade: run code that nobody vouches for";
  }, []);
  const curl = CURL(location.origin);
  return (
    <div class="outside">
      <a class="skip" href="#main">
        Skip to the content
      </a>
      <OutsideBar />
      <main id="main" class="landing" tabIndex={-1}>
        <section class="hero">
          <div class="hero-words">
            <h1>Run code that nobody vouches for</h1>
            <p>
              What a language model wrote, what a student handed in, what a stranger pasted: Stockade gives every program a fresh Linux
              sandbox with hard limits, on a machine of your own.
            </p>
            <div class="row">
              {session.value ? (
                <ButtonLink href="/app" kind="primary" icon="play">
                  Open the playground
                </ButtonLink>
              ) : (
                <>
                  <ButtonLink href="/register" kind="primary">
                    Create an account
                  </ButtonLink>
                  <ButtonLink href="/login">Log in</ButtonLink>
                </>
              )}
            </div>
          </div>
          <figure class="hero-code">
            <figcaption class="spread">
              Queue a program
              <CopyButton text={curl} />
            </figcaption>
            <pre tabIndex={0} aria-label="Command">
              <code>{curl}</code>
            </pre>
            <pre tabIndex={0} aria-label="Answer" class="hero-answer">
              <code>{ANSWER}</code>
            </pre>
          </figure>
        </section>

        <section aria-labelledby="points">
          <h2 id="points">What you get</h2>
          <ul class="points">
            {POINTS.map((point) => (
              <li key={point.title} class="card">
                <h3>
                  <Icon name={point.icon} size={20} />
                  {point.title}
                </h3>
                <p>{point.text}</p>
              </li>
            ))}
          </ul>
        </section>

        <section aria-labelledby="protocols">
          <h2 id="protocols">Speaks what your clients speak</h2>
          <p class="muted">Programs written for these services work unchanged; their page of differences comes with Stockade.</p>
          <dl class="protocols">
            {PROTOCOLS.map((protocol) => (
              <div key={protocol.name}>
                <dt>{protocol.name}</dt>
                <dd>
                  {protocol.use} <code>{protocol.path}</code>
                </dd>
              </div>
            ))}
          </dl>
        </section>
      </main>
      <footer class="outside-foot">
        <p>
          Stockade is free software under the Apache licence 2.0. <a href="/docs">API documentation</a>
        </p>
      </footer>
    </div>
  );
}
