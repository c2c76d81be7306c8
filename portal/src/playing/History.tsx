import { Link } from "wouter-preact";
import * as api from "../api";
import { seconds } from "../format";
import type { Loaded } from "../load";
import { Badge, Button, ErrorBox, Time, toastError } from "../ui";
import { stateTone, told } from "./outcome";

/** The account's last jobs: to look at, and to take into the editor again. */
export function History({ jobs, onTake }: { jobs: Loaded<api.Paged<api.JobSummary>>; onTake: (job: api.Job) => void }) {
  const take = (id: string) => {
    api.jobs.get(id).then(onTake, toastError);
  };
  if (jobs.error !== null) return <ErrorBox error={jobs.error} onRetry={jobs.reload} />;
  const rows = jobs.data?.items ?? [];
  if (rows.length === 0) return <p class="muted">What you run appears here.</p>;
  return (
    <ul class="history">
      {rows.map((job) => (
        <li key={job.id}>
          <Link href={`/app/jobs/${job.id}`} class="history-link">
            <Badge tone={stateTone(job.state)}>{job.state}</Badge>
            <span class="history-what">
              <span class="history-language">{job.language}</span>
              <span class="muted small">
                {told(job)}
                {job.result?.outcome === "exited" && `, ${seconds(job.result.durationS)}`}
              </span>
            </span>
            <span class="muted small">
              <Time at={job.createdAt} />
            </span>
          </Link>
          <Button small kind="quiet" aria-label={`Edit the ${job.language} program again`} onClick={() => take(job.id)}>
            Edit
          </Button>
        </li>
      ))}
    </ul>
  );
}
