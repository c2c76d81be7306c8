import { useEffect, useState } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import * as api from "../api";
import { CodeEditor } from "../editor/CodeEditor";
import { bytes, limit, moment, shortId } from "../format";
import type { PageProps } from "../lazy";
import { useLoad } from "../load";
import { follow, hasEnded, type Followed } from "../playing/follow";
import { Output, Summary } from "../playing/Result";
import { toHash } from "../playing/share";
import "../styles/jobs.css";
import "../styles/playground.css";
import { Badge, Button, ButtonLink, Confirm, CopyButton, Empty, ErrorBox, Page, Spinner, toast, toastError } from "../ui";

function Facts({ job }: { job: api.Job }) {
  const labels = Object.entries(job.labels);
  const limits = [job.limits.wall_s && limit(job.limits.wall_s), job.limits.cpu_s && `${limit(job.limits.cpu_s)} CPU`, job.limits.memory_bytes && bytes(job.limits.memory_bytes)].filter(Boolean);
  return (
    <dl class="facts">
      <dt>Job</dt>
      <dd class="row">
        <code>{job.id}</code> <CopyButton text={job.id} label="Copy" />
      </dd>
      <dt>Language</dt>
      <dd>{job.requestedLanguage === job.language ? job.language : `${job.language} (asked for as ${job.requestedLanguage})`}</dd>
      <dt>Created</dt>
      <dd>{moment(job.createdAt)}</dd>
      {job.runAt && job.runAt > job.createdAt && (
        <>
          <dt>Not before</dt>
          <dd>{moment(job.runAt)}</dd>
        </>
      )}
      <dt>Started</dt>
      <dd>{moment(job.startedAt)}</dd>
      <dt>Ended</dt>
      <dd>{moment(job.endedAt)}</dd>
      <dt>Attempts</dt>
      <dd>{job.attempts}</dd>
      <dt>Priority</dt>
      <dd>{job.priority}</dd>
      <dt>Limits</dt>
      <dd>{limits.length > 0 ? limits.join(", ") : "the server's"}</dd>
      <dt>Key</dt>
      <dd>{job.keyName ?? shortId(job.keyId)}</dd>
      {labels.length > 0 && (
        <>
          <dt>Labels</dt>
          <dd class="row">
            {labels.map(([name, value]) => (
              <Badge key={name}>
                {name}={value}
              </Badge>
            ))}
          </dd>
        </>
      )}
      {job.batchId && (
        <>
          <dt>Batch</dt>
          <dd>
            <Link href={`/app/jobs?batch=${encodeURIComponent(job.batchId)}`}>{shortId(job.batchId)}</Link>
          </dd>
        </>
      )}
      {job.retryOf && (
        <>
          <dt>Again for</dt>
          <dd>
            <Link href={`/app/jobs/${job.retryOf}`}>{shortId(job.retryOf)}</Link>
          </dd>
        </>
      )}
    </dl>
  );
}

export default function JobDetail({ params }: PageProps) {
  const id = params["id"] ?? "";
  const [, navigate] = useLocation();
  const loaded = useLoad(() => api.jobs.get(id), [id]);
  const [now, setNow] = useState<Followed | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [asksToForget, setAsksToForget] = useState(false);

  useEffect(() => {
    const job = loaded.data;
    if (!job) return undefined;
    const { stdout = "", stderr = "" } = job.result ?? {};
    const segments = [
      { stream: "stdout" as const, text: stdout },
      { stream: "stderr" as const, text: stderr },
    ].filter((segment) => segment.text);
    setNow({ job, segments });
    return hasEnded(job.state) ? undefined : follow(job, setNow, setError);
  }, [loaded.data]);

  const title = `Job ${shortId(id)}`;
  if (loaded.error !== null) {
    const isGone = loaded.error instanceof api.ApiError && loaded.error.status === 404;
    return (
      <Page title={title}>
        {isGone ? (
          <Empty icon="list" title="There is no such job">
            <p>Ended jobs are kept for some time only; this one may be gone, or belong to another account.</p>
            <ButtonLink href="/app/jobs">All jobs</ButtonLink>
          </Empty>
        ) : (
          <ErrorBox error={loaded.error} onRetry={loaded.reload} />
        )}
      </Page>
    );
  }
  if (!now) {
    return (
      <Page title={title}>
        <Spinner label="Loading the job" />
      </Page>
    );
  }
  const job = now.job;
  const ended = hasEnded(job.state);
  const retry = () => {
    api.jobs.retry(id).then((fresh) => {
      toast("Queued once more.");
      navigate(`/app/jobs/${fresh.id}`);
    }, toastError);
  };
  const cancel = () => {
    api.jobs.cancel(id).then((fresh) => {
      toast(hasEnded(fresh.state) ? "Cancelled." : "Asked the worker to stop it.");
      if (hasEnded(fresh.state)) loaded.set(fresh);
    }, toastError);
  };
  const edit = () => {
    toHash({ language: job.language, code: job.code, stdin: job.stdin, args: job.args }).then(
      (hash) => navigate(`/app/play${hash}`),
      toastError,
    );
  };
  return (
    <Page
      title={title}
      wide
      intro={<Link href="/app/jobs">All jobs</Link>}
      actions={
        <>
          <Button icon="code" onClick={edit}>
            Open in the playground
          </Button>
          {ended ? (
            <>
              <Button icon="refresh" onClick={retry}>
                Run again
              </Button>
              <Button kind="danger" icon="trash" onClick={() => setAsksToForget(true)}>
                Delete
              </Button>
            </>
          ) : (
            <Button kind="danger" icon="stop" onClick={cancel}>
              Cancel
            </Button>
          )}
        </>
      }
    >
      {error !== null && <ErrorBox error={error} onRetry={() => (setError(null), loaded.reload())} />}
      <div class="job">
        <div class="job-main">
          <section class="card stack" aria-label="Result">
            <Summary job={job}>{job.isDead && <Badge tone="bad">dead letter</Badge>}</Summary>
            {job.isDead && <p class="muted">Its workers were lost as often as a job may lose them. It is not tried again by itself.</p>}
            {(ended || now.segments.length > 0) && <Output {...now} />}
          </section>
          <section class="card" aria-labelledby="program">
            <h2 id="program">Program</h2>
            <CodeEditor label="Program" language={job.language} value={job.code} readOnly />
          </section>
          {job.stdin && (
            <section class="card" aria-labelledby="stdin">
              <h2 id="stdin">Input</h2>
              <pre class="output" tabIndex={0} role="region" aria-labelledby="stdin">
                {job.stdin}
              </pre>
            </section>
          )}
          {job.args.length > 0 && (
            <section class="card" aria-labelledby="args">
              <h2 id="args">Arguments</h2>
              <ol class="job-args">
                {job.args.map((argument, at) => (
                  <li key={at}>
                    <code class="break">{argument}</code>
                  </li>
                ))}
              </ol>
            </section>
          )}
        </div>
        <section class="card" aria-labelledby="facts">
          <h2 id="facts">Details</h2>
          <Facts job={job} />
        </section>
      </div>
      {asksToForget && (
        <Confirm
          title="Delete this job?"
          action="Delete"
          onClose={() => setAsksToForget(false)}
          onConfirm={async () => {
            await api.jobs.forget(id);
            toast("The job is gone.");
            navigate("/app/jobs", { replace: true });
          }}
        >
          <p>Its program and its output are removed. What it used stays in the usage figures.</p>
        </Confirm>
      )}
    </Page>
  );
}
