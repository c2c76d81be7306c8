/** The sandboxes of the account: those that live, those that ended, and a form that makes one. */

import "../styles/sandboxes.css";

import { useState } from "preact/hooks";
import { Link, useLocation, useSearch } from "wouter-preact";
import { ApiError, meta, sandboxes } from "../api";
import type { Paged, Sandbox } from "../api";
import { shortId } from "../format";
import { useLoad } from "../load";
import { Choices } from "../parts/Choices";
import { SandboxBadge } from "../parts/SandboxBadge";
import { SandboxForm } from "../parts/SandboxForm";
import { Button, ButtonLink } from "../ui/Button";
import { Empty } from "../ui/Empty";
import { ErrorBox } from "../ui/ErrorBox";
import { Page } from "../ui/Page";
import { Spinner } from "../ui/Spinner";
import { Table } from "../ui/Table";
import type { Column } from "../ui/Table";
import { Time } from "../ui/Time";
import { toastError } from "../ui/Toast";

const FILTERS = [
  { name: "living", title: "Living" },
  { name: "ended", title: "Ended" },
  { name: "all", title: "All" },
] as const;
type Filter = (typeof FILTERS)[number]["name"];
const REFRESH_S = 5;

const COLUMNS: Column<Sandbox>[] = [
  {
    title: "Sandbox",
    cell: (sandbox) => (
      <Link href={`/app/sandboxes/${encodeURIComponent(sandbox.id)}`} class="mono" title={sandbox.id}>
        {shortId(sandbox.id)}
      </Link>
    ),
  },
  { title: "State", cell: (sandbox) => <SandboxBadge sandbox={sandbox} /> },
  { title: "Image", cell: (sandbox) => <span class="mono">{sandbox.image}</span> },
  {
    title: "Command",
    cell: (sandbox) =>
      sandbox.command.length > 0 ? (
        <code class="sandbox-command" title={sandbox.command.join(" ")}>
          {sandbox.command.join(" ")}
        </code>
      ) : (
        <span class="muted">none</span>
      ),
  },
  { title: "Made", cell: (sandbox) => <Time at={sandbox.createdAt} /> },
  {
    title: "Ends",
    cell: (sandbox) =>
      sandbox.state === "ended" || sandbox.deadlineAt ? <Time at={sandbox.endedAt ?? sandbox.deadlineAt} /> : <span>when stopped</span>,
  },
];

const EMPTY: Record<Filter, string> = {
  living: "No sandbox lives",
  ended: "No sandbox has ended yet",
  all: "There are no sandboxes yet",
};

function chosenFilter(search: string): Filter {
  const asked = new URLSearchParams(search).get("state");
  return FILTERS.find((filter) => filter.name === asked)?.name ?? "living";
}

export default function Sandboxes() {
  const [, navigate] = useLocation();
  const filter = chosenFilter(useSearch());
  const [isMaking, setIsMaking] = useState(false);
  const [more, setMore] = useState<Paged<Sandbox> | null>(null);
  const { data, error, reload } = useLoad(
    async () => ({ filter, page: await sandboxes.list({ state: filter }) }),
    [filter],
    { every_s: REFRESH_S },
  );
  const known = useLoad(meta, []);

  const choose = (name: Filter) => {
    setMore(null);
    navigate(name === "living" ? "/app/sandboxes" : `/app/sandboxes?state=${name}`, { replace: true });
  };
  // What was there before the filter changed is not what was asked for.
  const page = data?.filter === filter ? data.page : undefined;
  const cursor = more === null ? page?.cursor : more.cursor;
  const fetchMore = async () => {
    try {
      const next = await sandboxes.list({ state: filter, cursor: cursor ?? "" });
      setMore({ items: [...(more?.items ?? []), ...next.items], cursor: next.cursor });
    } catch (reason) {
      toastError(reason);
    }
  };
  const first = page?.items ?? [];
  const shown = new Set(first.map((sandbox) => sandbox.id));
  const rows = [...first, ...(more?.items ?? []).filter((sandbox) => !shown.has(sandbox.id))];
  const isOff = error instanceof ApiError && error.status === 501;

  return (
    <Page
      title="Sandboxes"
      intro="Linux machines in miniature: each with its own files, processes and network, gone when it ends."
      actions={
        <Button kind="primary" icon="plus" disabled={isOff} onClick={() => setIsMaking(true)}>
          New sandbox
        </Button>
      }
      wide
    >
      <Choices label="Which sandboxes" options={FILTERS} chosen={filter} onChoose={choose} />
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {page === undefined && error === null && <Spinner label="Loading sandboxes" />}
      {page !== undefined && rows.length === 0 && (
        <Empty icon="box" title={EMPTY[filter]}>
          <p>
            A sandbox stays until its time is over or you stop it. In it you have a terminal and files. To run a program once, the
            playground is quicker.
          </p>
          <div class="row">
            <Button kind="primary" icon="plus" onClick={() => setIsMaking(true)}>
              New sandbox
            </Button>
            <ButtonLink href="/app/play">To the playground</ButtonLink>
          </div>
        </Empty>
      )}
      {rows.length > 0 && (
        <div class="table-frame">
          <Table caption="Sandboxes" columns={COLUMNS} rows={rows} rowKey={(sandbox) => sandbox.id} />
        </div>
      )}
      {cursor && (
        <div>
          <Button onClick={() => void fetchMore()}>Show more</Button>
        </div>
      )}
      {isMaking && (
        <SandboxForm
          meta={known.data}
          onClose={() => setIsMaking(false)}
          onMade={(sandbox) => navigate(`/app/sandboxes/${encodeURIComponent(sandbox.id)}`)}
        />
      )}
    </Page>
  );
}
