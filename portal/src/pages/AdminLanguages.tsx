/** The languages that the server knows, and which of them it can run. */

import "../styles/admin.css";

import { useState } from "preact/hooks";
import { languages } from "../api";
import { useLoad } from "../load";
import { Choices } from "../parts/Choices";
import { Badge } from "../ui/Badge";
import { Empty } from "../ui/Empty";
import { ErrorBox } from "../ui/ErrorBox";
import { TextField } from "../ui/Field";
import { Page } from "../ui/Page";
import { Spinner } from "../ui/Spinner";
import { Table } from "../ui/Table";

const FILTERS = [
  { name: "all", title: "All" },
  { name: "installed", title: "Installed" },
  { name: "missing", title: "Missing" },
] as const;
type Filter = (typeof FILTERS)[number]["name"];

export default function AdminLanguages() {
  const { data, error, reload } = useLoad(languages, []);
  const [filter, setFilter] = useState<Filter>("all");
  const [typed, setTyped] = useState("");
  const wanted = typed.trim().toLowerCase();
  const rows = (data ?? []).filter(
    ({ name, title, aliases, installed }) =>
      (filter === "all" || installed === (filter === "installed")) &&
      [name, title, ...aliases].some((word) => word.toLowerCase().includes(wanted)),
  );
  const installed = data?.filter((language) => language.installed).length ?? 0;

  return (
    <Page
      title="Languages"
      intro={data ? `${installed} of ${data.length} languages can run on this server.` : "The languages that this server knows."}
      wide
    >
      <div class="admin-choices">
        <TextField label="Search" type="search" class="admin-search" value={typed} onValue={setTyped} autocomplete="off" />
        <Choices label="Which languages" options={FILTERS} chosen={filter} onChoose={setFilter} />
      </div>
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {data === undefined && error === null && <Spinner label="Loading languages" />}
      {data !== undefined && rows.length === 0 && (
        <Empty icon="code" title="No language matches">
          <p>Search for less, or show all.</p>
        </Empty>
      )}
      {rows.length > 0 && (
        <div class="table-frame">
          <Table
            caption="Languages"
            rows={rows}
            rowKey={(language) => language.name}
            columns={[
              { title: "Language", cell: (language) => <strong>{language.title}</strong> },
              { title: "Name", cell: (language) => <code>{language.name}</code> },
              {
                title: "Also called",
                cell: (language) => (language.aliases.length > 0 ? <code>{language.aliases.join(", ")}</code> : <span class="muted">–</span>),
              },
              { title: "File", cell: (language) => <code>{language.extension}</code> },
              {
                title: "State",
                cell: (language) => (language.installed ? <Badge tone="good">installed</Badge> : <Badge>missing</Badge>),
              },
            ]}
          />
        </div>
      )}
      <p class="muted">
        A missing language runs once its compiler or interpreter is on the server, or in an image that names it: see the page on languages in
        the documentation.
      </p>
    </Page>
  );
}
