/** Whether the parts of the server work, and which protections this host enforces. */

import "../styles/admin.css";

import { admin } from "../api";
import type { Health } from "../api";
import { seconds } from "../format";
import { useLoad } from "../load";
import { Badge } from "../ui/Badge";
import { ErrorBox, Notice } from "../ui/ErrorBox";
import { Page } from "../ui/Page";
import { Spinner } from "../ui/Spinner";
import { Table } from "../ui/Table";

const REFRESH_S = 10;

export default function AdminHealth() {
  const { data, error, reload } = useLoad(admin.health, [], { every_s: REFRESH_S });
  return (
    <Page title="Health" intro="Whether the parts of the server work, and which protections this host can enforce." wide>
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {data === undefined && error === null && <Spinner label="Loading health" />}
      {data && (
        <>
          <dl class="figures">
            <div>
              <dt>Version</dt>
              <dd>{data.server.version}</dd>
            </div>
            <div>
              <dt>Running for</dt>
              <dd>{seconds(data.server.uptimeS)}</dd>
            </div>
            <Part name="Database" kind={data.database.kind} ok={data.database.ok} />
            <Part name="Queue of jobs" kind={data.jobs.store} ok={data.jobs.ok} />
          </dl>
          <Features features={data.features} />
        </>
      )}
    </Page>
  );
}

function Part({ name, kind, ok }: { name: string; kind: string; ok: boolean }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd class="row">
        {kind} {ok ? <Badge tone="good">works</Badge> : <Badge tone="bad">does not answer</Badge>}
      </dd>
    </div>
  );
}

function Features({ features }: { features: Health["features"] }) {
  const missing = features.filter((feature) => !feature.enforced).length;
  return (
    <section class="stack" aria-labelledby="features">
      <h2 id="features">Protections</h2>
      {missing === 0 ? (
        <Notice tone="good">
          <p>This host enforces all of them.</p>
        </Notice>
      ) : (
        <Notice tone="warn">
          <p>
            {missing} of {features.length} {missing === 1 ? "is" : "are"} not enforced. Below it says what to do.
          </p>
        </Notice>
      )}
      <div class="table-frame">
        <Table
          caption="Protections of this host"
          rows={[...features].sort((one, other) => Number(one.enforced) - Number(other.enforced))}
          rowKey={(feature) => feature.name}
          columns={[
            { title: "Protection", cell: (feature) => <strong>{feature.name.replaceAll("_", " ")}</strong> },
            {
              title: "State",
              cell: (feature) => (feature.enforced ? <Badge tone="good">enforced</Badge> : <Badge tone="bad">not enforced</Badge>),
            },
            { title: "By", cell: (feature) => feature.mechanism || <span class="muted">nothing</span> },
            { title: "What to do", cell: (feature) => feature.remedy || <span class="muted">nothing</span> },
          ]}
        />
      </div>
    </section>
  );
}
