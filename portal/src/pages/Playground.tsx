import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import * as api from "../api";
import { CodeEditor } from "../editor/CodeEditor";
import { bytes } from "../format";
import { useLoad } from "../load";
import { keepDraft, readDraft, type Draft } from "../playing/draft";
import { follow, hasEnded, type Followed } from "../playing/follow";
import { History } from "../playing/History";
import { Output, Summary } from "../playing/Result";
import { fromHash, toHash } from "../playing/share";
import { ShareDialog } from "../playing/ShareDialog";
import "../styles/playground.css";
import { AreaField, Button, Empty, ErrorBox, Field, Notice, Page, Spinner, TextField, toast, toastError } from "../ui";

const MIB = 1024 * 1024;
const SHOWN_JOBS = "8";

const lines = (text: string): string[] => (text === "" ? [] : text.split("\n"));

/** The limits that were typed; an empty input leaves the server's. */
function limitsOf(draft: Draft): api.RunLimits {
  const limits: api.RunLimits = {};
  const wall = Number(draft.wall);
  const memory = Number(draft.memory);
  if (draft.wall.trim()) {
    if (!(wall > 0)) throw new api.ApiError(400, "limit", "The time must be a number of seconds above zero.", "wall_s");
    limits.wall_s = wall;
  }
  if (draft.memory.trim()) {
    if (!(memory > 0)) throw new api.ApiError(400, "limit", "The memory must be a number of MiB above zero.", "memory_bytes");
    limits.memory_bytes = Math.round(memory * MIB);
  }
  return limits;
}

export default function Playground() {
  const languages = useLoad(api.languages, []);
  const about = useLoad(api.meta, []);
  // Jobs that a key started, or another window, appear and end without anything happening here.
  const history = useLoad(() => api.jobs.list({ limit: SHOWN_JOBS }), [], { every_s: 5 });
  const [draft, setDraft] = useState<Draft>(readDraft);
  const [fromLink, setFromLink] = useState(false);
  const [running, setRunning] = useState<Followed | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const [link, setLink] = useState<string | null>(null);
  const [taken, setTaken] = useState(0); // counts texts that came into the editor from elsewhere
  const stop = useRef<() => void>(() => undefined);
  const result = useRef<HTMLElement>(null);

  const change = useCallback((part: Partial<Draft>) => setDraft((old) => ({ ...old, ...part })), []);
  useEffect(() => keepDraft(draft), [draft]);
  useEffect(() => () => stop.current(), []);

  const known = languages.data ?? [];
  const installed = known.filter((language) => language.installed);
  const chosen =
    installed.find((language) => language.name === draft.language || language.aliases.includes(draft.language)) ??
    installed.find((language) => language.name === "python") ??
    installed[0];
  const code = chosen ? (draft.programs[chosen.name] ?? chosen.example) : "";

  const take = useCallback(
    (language: string, program: string, stdin: string, args: string[]) => {
      setDraft((old) => ({ ...old, language, programs: { ...old.programs, [language]: program }, stdin, args: args.join("\n") }));
      setTaken((old) => old + 1);
    },
    [],
  );

  useEffect(() => {
    const open = () => {
      if (!location.hash) return;
      fromHash(location.hash).then(
        (shared) => {
          if (!shared) return;
          take(shared.language, shared.code, shared.stdin, shared.args);
          setFromLink(true);
          // The program is in the editor now: loading the page again must not undo what is typed from here on.
          window.history.replaceState(null, "", location.pathname + location.search);
        },
        (reason: unknown) => setError(reason),
      );
    };
    open();
    window.addEventListener("hashchange", open);
    return () => window.removeEventListener("hashchange", open);
  }, []);

  const isRunning = running !== null && !hasEnded(running.job.state);

  const run = async () => {
    if (!chosen || busy || isRunning) return;
    stop.current();
    setBusy(true);
    setError(null);
    try {
      const job = await api.jobs.submit({
        language: chosen.name,
        code,
        stdin: draft.stdin,
        args: lines(draft.args),
        limits: limitsOf(draft),
      });
      setRunning({ job, segments: [] });
      // On a phone it stands below the window.
      result.current?.scrollIntoView({ block: "nearest" });
      history.reload();
      stop.current = follow(
        job,
        (now) => {
          setRunning(now);
          if (hasEnded(now.job.state)) history.reload();
        },
        setError,
      );
    } catch (reason) {
      setError(reason);
    } finally {
      setBusy(false);
    }
  };

  const cancel = () => {
    if (running) api.jobs.cancel(running.job.id).then(() => toast("Asked the worker to stop it."), toastError);
  };

  const share = () => {
    if (!chosen) return;
    toHash({ language: chosen.name, code, stdin: draft.stdin, args: lines(draft.args) }).then(
      (hash) => setLink(`${location.origin}/app/play${hash}`),
      toastError,
    );
  };

  const onKeyDown = (event: KeyboardEvent) => {
    // In the editor CodeMirror has dealt with it already.
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.defaultPrevented) return;
    event.preventDefault();
    void run();
  };

  const wrong = (name: string) => (error instanceof api.ApiError && error.field === name ? error.message : null);
  const isInField = error instanceof api.ApiError && ["wall_s", "memory_bytes", "limits"].includes(error.field ?? "");

  if (languages.error !== null) {
    return (
      <Page title="Playground">
        <ErrorBox error={languages.error} onRetry={languages.reload} />
      </Page>
    );
  }
  if (!languages.data) {
    return (
      <Page title="Playground">
        <Spinner label="Loading the languages" />
      </Page>
    );
  }
  if (!chosen) {
    return (
      <Page title="Playground">
        <Empty icon="code" title="No language is installed on this server">
          <p>
            Its administrator can see with <code>stockade languages</code> which packages to install.
          </p>
        </Empty>
      </Page>
    );
  }
  const hint = (value: number | undefined, told: (value: number) => string) => (value ? `${told(value)} unless you say otherwise` : undefined);
  return (
    <Page title="Playground" wide>
      {draft.language && chosen.name !== draft.language && !chosen.aliases.includes(draft.language) && (
        <Notice tone="warn">
          <p>
            “{draft.language}” is not installed on this server; this is {chosen.title}.
          </p>
        </Notice>
      )}
      {fromLink && (
        <Notice>
          <p>This program came with a link. Read it before you run it.</p>
          <Button small onClick={() => setFromLink(false)}>
            Understood
          </Button>
        </Notice>
      )}
      <div class="playground" onKeyDown={onKeyDown}>
        <div class="playground-program">
          <div class="playground-bar">
            <Field label="Language" class="playground-language">
              {(props) => (
                <select {...props} value={chosen.name} onChange={(event) => change({ language: event.currentTarget.value })}>
                  <optgroup label="Installed">
                    {installed.map((language) => (
                      <option key={language.name} value={language.name}>
                        {language.title}
                      </option>
                    ))}
                  </optgroup>
                  {installed.length < known.length && (
                    <optgroup label="Not installed on this server">
                      {known
                        .filter((language) => !language.installed)
                        .map((language) => (
                          <option key={language.name} value={language.name} disabled>
                            {language.title}
                          </option>
                        ))}
                    </optgroup>
                  )}
                </select>
              )}
            </Field>
            <div class="row">
              <Button kind="quiet" icon="refresh" onClick={() => take(chosen.name, chosen.example, draft.stdin, lines(draft.args))}>
                Example
              </Button>
              <Button kind="quiet" icon="share" onClick={share}>
                Share
              </Button>
              {isRunning ? (
                <Button kind="danger" icon="stop" onClick={cancel}>
                  Stop
                </Button>
              ) : (
                <Button kind="primary" icon="play" busy={busy} onClick={() => void run()} aria-keyshortcuts="Control+Enter">
                  Run
                </Button>
              )}
            </div>
          </div>
          <CodeEditor
            label="Program"
            language={chosen.name}
            value={code}
            version={`${chosen.name} ${taken}`}
            onValue={(value) => setDraft((old) => ({ ...old, programs: { ...old.programs, [chosen.name]: value } }))}
            onRun={() => void run()}
            describedBy="editor-keys"
          />
          <p id="editor-keys" class="muted small">
            <kbd>Ctrl</kbd> <kbd>Enter</kbd> runs it. <kbd>Tab</kbd> indents; to leave the editor press <kbd>Esc</kbd>, then <kbd>Tab</kbd>.
          </p>
          <div class="playground-inputs">
            <AreaField label="Input (stdin)" mono value={draft.stdin} onValue={(stdin) => change({ stdin })} />
            <AreaField label="Arguments, one a line" mono value={draft.args} onValue={(args) => change({ args })} />
            <TextField
              label="Time limit in seconds"
              inputMode="decimal"
              value={draft.wall}
              onValue={(wall) => change({ wall })}
              error={wrong("wall_s")}
              hint={hint(about.data?.default_limits.wall_s, (value) => `${value} s`)}
            />
            <TextField
              label="Memory limit in MiB"
              inputMode="decimal"
              value={draft.memory}
              onValue={(memory) => change({ memory })}
              error={wrong("memory_bytes")}
              hint={hint(about.data?.default_limits.memory_bytes, bytes)}
            />
          </div>
        </div>
        <div class="playground-result">
          {error !== null && (!isInField || wrong("limits")) && <ErrorBox error={error} />}
          <section class="card stack" aria-label="Result" ref={result}>
            {running ? (
              <>
                <Summary job={running.job} />
                <Output {...running} />
              </>
            ) : (
              <p class="muted">Run the program to see here what it prints, and what it used.</p>
            )}
          </section>
          <section class="card" aria-labelledby="history">
            <h2 id="history">Your last runs</h2>
            <History
              jobs={history}
              onTake={(job) => {
                take(job.language, job.code, job.stdin, job.args);
                toast("The program is in the editor.");
              }}
            />
          </section>
        </div>
      </div>
      {link !== null && <ShareDialog link={link} onClose={() => setLink(null)} />}
    </Page>
  );
}
