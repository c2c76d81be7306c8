import { useEffect, useRef, useState } from "preact/hooks";
import { Link, useLocation, useSearch } from "wouter-preact";
import * as api from "../api";
import { seconds, shortId } from "../format";
import { useLoad } from "../load";
import { stateTone, told } from "../playing/outcome";
import "../styles/jobs.css";
import { Badge, Button, ButtonLink, Empty, ErrorBox, Page, SelectField, Spinner, Table, TextField, Time, toastError, type Column } from "../ui";

const STATES = [
  { value: "", label: "Any state" },
  { value: "queued", label: "Queued" },
  { value: "running", label: "Running" },
  { value: "succeeded", label: "Succeeded" },
  { value: "failed", label: "Failed" },
  { value: "cancelled", label: "Cancelled" },
  { value: "dead", label: "Dead letters" },
];

const FILTERS = ["state", "language", "key", "batch", "after", "before"] as const;
const PAGE = "50";

const columns: Column<api.JobSummary>[] = [
  {
    title: "Job",
    cell: (job) => (
      <Link href={`/app/jobs/${job.id}`} class="mono" title={job.id}>
        {shortId(job.id)}
      </Link>
    ),
  },
  {
    title: "State",
    cell: (job) => (
      <span class="row">
        <Badge tone={stateTone(job.state)}>{job.state}</Badge>
        {job.isDead && <Badge tone="bad">dead letter</Badge>}
      </span>
    ),
  },
  { title: "Language", cell: (job) => job.language },
  { title: "Outcome", cell: (job) => told(job) },
  { title: "Created", cell: (job) => <Time at={job.createdAt} /> },
  { title: "Time", isNumber: true, cell: (job) => (job.result ? seconds(job.result.durationS) : "–") },
  { title: "Key", cell: (job) => job.keyName ?? shortId(job.keyId) },
];

/** The filters as the server knows them. */
function toQuery(filters: URLSearchParams): api.JobQuery {
  const query: api.JobQuery = { limit: PAGE };
  for (const name of FILTERS) {
    const value = filters.get(name);
    if (!value) continue;
    if (name === "state" && value === "dead") query.dead = "true";
    // A day in the inputs is one of the user's; the server counts in UTC. Up to a day means to its end.
    else if (name === "after") query.after = new Date(`${value}T00:00:00`).toISOString();
    else if (name === "before") query.before = new Date(new Date(`${value}T00:00:00`).getTime() + 86_400_000).toISOString();
    else query[name] = value;
  }
  return query;
}

export default function Jobs() {
  const [path, navigate] = useLocation();
  const search = useSearch();
  const filters = new URLSearchParams(search);
  const isFiltered = FILTERS.some((name) => filters.get(name));
  const [more, setMore] = useState<{ rows: api.JobSummary[]; cursor: string | null } | null>(null);
  const [busy, setBusy] = useState(false);
  const asked = useRef(search);
  asked.current = search;
  const languages = useLoad(api.languages, []);
  const keys = useLoad(api.keys.list, []);
  const first = useLoad(() => api.jobs.list(toQuery(filters)), [search], { every_s: more ? undefined : 5 });
  useEffect(() => setMore(null), [search]);

  const choose = (name: (typeof FILTERS)[number], value: string) => {
    const next = new URLSearchParams(filters);
    if (value) next.set(name, value);
    else next.delete(name);
    const text = next.toString();
    navigate(text ? `${path}?${text}` : path, { replace: true });
  };

  const rows = [...(first.data?.items ?? []), ...(more?.rows ?? [])];
  const cursor = more ? more.cursor : (first.data?.cursor ?? null);
  const fetchMore = async () => {
    if (!cursor) return;
    setBusy(true);
    try {
      const page = await api.jobs.list({ ...toQuery(filters), cursor });
      if (asked.current === search) setMore({ rows: [...(more?.rows ?? []), ...page.items], cursor: page.cursor });
    } catch (error) {
      toastError(error);
    } finally {
      setBusy(false);
    }
  };

  return (
    <Page
      title="Jobs"
      intro="Programs that were queued, by you or with your keys."
      actions={
        <Button icon="refresh" busy={first.isLoading && first.data !== undefined && !busy && first.error !== null} onClick={() => (setMore(null), first.reload())}>
          Refresh
        </Button>
      }
    >
      <form class="filters" aria-label="Filters" onSubmit={(event) => event.preventDefault()}>
        <SelectField label="State" value={filters.get("state") ?? ""} onValue={(value) => choose("state", value)} options={STATES} />
        <SelectField
          label="Language"
          value={filters.get("language") ?? ""}
          onValue={(value) => choose("language", value)}
          options={[{ value: "", label: "Any language" }, ...(languages.data ?? []).map((one) => ({ value: one.name, label: one.title }))]}
        />
        <SelectField
          label="Key"
          value={filters.get("key") ?? ""}
          onValue={(value) => choose("key", value)}
          options={[{ value: "", label: "Any key" }, ...(keys.data ?? []).map((one) => ({ value: one.id, label: one.name }))]}
        />
        <TextField label="From" type="date" value={filters.get("after") ?? ""} onValue={(value) => choose("after", value)} />
        <TextField label="Up to" type="date" value={filters.get("before") ?? ""} onValue={(value) => choose("before", value)} />
      </form>
      {filters.get("batch") && (
        <p class="row">
          <span>
            Only the batch <code class="break">{filters.get("batch")}</code>
          </span>
          <Button small onClick={() => choose("batch", "")}>
            Show all
          </Button>
        </p>
      )}
      {first.error !== null && <ErrorBox error={first.error} onRetry={first.reload} />}
      {!first.data && first.error === null && <Spinner label="Loading the jobs" />}
      {first.data && rows.length === 0 && (
        <Empty icon="list" title={isFiltered ? "No job matches these filters" : "No jobs yet"}>
          <p>
            {isFiltered
              ? "Choose other ones, or look at all jobs."
              : "Run a program in the playground, or queue one with your API key: POST /v1/jobs."}
          </p>
          {isFiltered ? (
            <Button onClick={() => navigate(path, { replace: true })}>Show all jobs</Button>
          ) : (
            <ButtonLink href="/app/play" kind="primary" icon="play">
              To the playground
            </ButtonLink>
          )}
        </Empty>
      )}
      {rows.length > 0 && (
        <div class="table-frame">
          <Table caption="Jobs" columns={columns} rows={rows} rowKey={(job) => job.id} />
        </div>
      )}
      {cursor && (
        <div>
          <Button busy={busy} onClick={() => void fetchMore()}>
            Show more
          </Button>
        </div>
      )}
    </Page>
  );
}
