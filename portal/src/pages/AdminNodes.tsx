/** Where code runs and what waits: places, workers, queue, jobs that were given up, and what everybody used. */

import "../styles/admin.css";

import { useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { admin, jobs } from "../api";
import type { JobSummary, Nodes, QueueDepth } from "../api";
import { count, relative, shortId } from "../format";
import { useLoad } from "../load";
import { UsageCharts } from "../parts/UsageCharts";
import { Badge } from "../ui/Badge";
import { Button } from "../ui/Button";
import { Empty } from "../ui/Empty";
import { ErrorBox } from "../ui/ErrorBox";
import { Page } from "../ui/Page";
import { Spinner } from "../ui/Spinner";
import { Table } from "../ui/Table";
import { Time } from "../ui/Time";
import { toast, toastError } from "../ui/Toast";

const REFRESH_S = 3;
const DAYS = 30;
/** A worker writes that it lives every few seconds; one that is silent for this long is in trouble. */
const SILENT_S = 30;

export default function AdminNodes() {
  const nodes = useLoad(admin.nodes, [], { every_s: REFRESH_S });
  const queue = useLoad(admin.queue, [], { every_s: REFRESH_S });
  const dead = useLoad(() => jobs.list({ dead: "true", limit: "20" }), []);
  const usage = useLoad(() => admin.usage(DAYS), []);
  return (
    <Page title="Nodes" intro="Where code runs, what waits, and what everybody used." wide>
      {nodes.error !== null && <ErrorBox error={nodes.error} onRetry={nodes.reload} />}
      {nodes.data === undefined && nodes.error === null && <Spinner label="Loading nodes" />}
      {nodes.data && <Places nodes={nodes.data} queue={queue.data} />}
      {nodes.data && <Workers nodes={nodes.data} />}
      <section class="stack" aria-labelledby="queue">
        <h2 id="queue">Queue</h2>
        {queue.error !== null && <ErrorBox error={queue.error} onRetry={queue.reload} />}
        {queue.data && <Queue queue={queue.data} />}
      </section>
      <section class="stack" aria-labelledby="dead">
        <h2 id="dead">Jobs that were given up</h2>
        {dead.error !== null && <ErrorBox error={dead.error} onRetry={dead.reload} />}
        {dead.data && <Dead rows={dead.data.items} onChange={dead.reload} />}
      </section>
      <section class="stack" aria-labelledby="used">
        <h2 id="used">The last {DAYS} days, everybody together</h2>
        {usage.error !== null && <ErrorBox error={usage.error} onRetry={usage.reload} />}
        {usage.data?.total.runs === 0 && <p class="muted">Nothing ran.</p>}
        {usage.data !== undefined && usage.data.total.runs > 0 && <UsageCharts usage={usage.data} days={DAYS} />}
      </section>
    </Page>
  );
}

function Places({ nodes, queue }: { nodes: Nodes; queue: QueueDepth | undefined }) {
  const { all, running, waiting } = nodes.places;
  return (
    <dl class="figures">
      <div>
        <dt>Places of this server in use</dt>
        <dd>
          {count(running)} of {count(all)}
        </dd>
      </div>
      <div>
        <dt>Runs waiting for a place</dt>
        <dd>{count(waiting)}</dd>
      </div>
      <div>
        <dt>Workers</dt>
        <dd>{count(nodes.workers.length)}</dd>
      </div>
      <div>
        <dt>Jobs running</dt>
        <dd>{queue ? count(queue.running) : "–"}</dd>
      </div>
    </dl>
  );
}

function Workers({ nodes }: { nodes: Nodes }) {
  const isSilent = (seenAt: string) => Date.now() - new Date(seenAt).getTime() > SILENT_S * 1000;
  return (
    <section class="stack" aria-labelledby="workers">
      <h2 id="workers">Workers</h2>
      {nodes.workers.length === 0 && (
        <Empty icon="server" title="No worker takes jobs">
          <p>
            Jobs stay in the queue until one does. Give the server itself places (<code>jobs.places</code> in its configuration), or
            start <code>stockade worker</code> on any machine that reaches the queue.
          </p>
        </Empty>
      )}
      {nodes.workers.length > 0 && (
        <div class="table-frame admin-table">
          <Table
            caption="Workers"
            rows={nodes.workers}
            rowKey={(worker) => worker.id}
            columns={[
              {
                title: "Worker",
                cell: (worker) => (
                  <span class="admin-user">
                    <strong class="break">{worker.host}</strong>
                    <span class="muted small">process {worker.pid}</span>
                  </span>
                ),
              },
              {
                title: "State",
                cell: (worker) =>
                  isSilent(worker.seenAt) ? (
                    <Badge tone="bad">silent</Badge>
                  ) : worker.isDraining ? (
                    <Badge tone="warn">draining</Badge>
                  ) : (
                    <Badge tone="good">working</Badge>
                  ),
              },
              { title: "Places in use", isNumber: true, cell: (worker) => `${count(worker.running)} of ${count(worker.places)}` },
              {
                title: "Languages",
                cell: (worker) => (worker.languages.length === 0 ? <span class="muted">all</span> : worker.languages.join(", ")),
              },
              { title: "Started", cell: (worker) => <Time at={worker.startedAt} /> },
              { title: "Last heard of", cell: (worker) => <Time at={worker.seenAt} /> },
            ]}
          />
        </div>
      )}
    </section>
  );
}

function Queue({ queue }: { queue: QueueDepth }) {
  const languages = Object.entries(queue.queued).sort(([, one], [, other]) => other - one);
  const sum = languages.reduce((total, [, waiting]) => total + waiting, 0);
  return (
    <>
      <dl class="figures">
        <div>
          <dt>Queued</dt>
          <dd>{count(sum)}</dd>
        </div>
        <div>
          <dt>Oldest queued</dt>
          <dd>{queue.oldestQueuedAt ? relative(queue.oldestQueuedAt) : "–"}</dd>
        </div>
        <div>
          <dt>Delayed</dt>
          <dd>{count(queue.delayed)}</dd>
        </div>
        <div>
          <dt>Given up</dt>
          <dd>{count(queue.dead)}</dd>
        </div>
      </dl>
      {languages.length > 0 && (
        <div class="table-frame admin-narrow">
          <Table
            caption="Queued jobs by language"
            rows={languages}
            rowKey={([name]) => name}
            columns={[
              { title: "Language", cell: ([name]) => name },
              { title: "Queued", isNumber: true, cell: ([, waiting]) => count(waiting) },
            ]}
          />
        </div>
      )}
    </>
  );
}

function Dead({ rows, onChange }: { rows: JobSummary[]; onChange: () => void }) {
  const [busy, setBusy] = useState("");
  const retry = async (job: JobSummary) => {
    setBusy(job.id);
    try {
      await jobs.retry(job.id);
      toast("A new job was made of it.");
      onChange();
    } catch (error) {
      toastError(error);
    } finally {
      setBusy("");
    }
  };
  if (rows.length === 0) {
    return <p class="muted">None. A job is given up when its worker died under it too often.</p>;
  }
  return (
    <div class="table-frame admin-table">
      <Table
        caption="Jobs that were given up"
        rows={rows}
        rowKey={(job) => job.id}
        columns={[
          {
            title: "Job",
            cell: (job) => (
              <Link href={`/app/jobs/${encodeURIComponent(job.id)}`} class="mono">
                {shortId(job.id)}
              </Link>
            ),
          },
          { title: "Language", cell: (job) => job.language },
          { title: "Attempts", isNumber: true, cell: (job) => count(job.attempts) },
          { title: "Made", cell: (job) => <Time at={job.createdAt} /> },
          { title: "Given up", cell: (job) => <Time at={job.endedAt} /> },
          {
            title: "Actions",
            isActions: true,
            cell: (job) => (
              <Button small busy={busy === job.id} onClick={() => void retry(job)}>
                <span>
                  Try again<span class="for-readers"> {shortId(job.id)}</span>
                </span>
              </Button>
            ),
          },
        ]}
      />
    </div>
  );
}
