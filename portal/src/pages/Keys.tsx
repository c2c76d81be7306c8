/** The API keys of the account: make, limit, rotate, revoke. */

import "../styles/keys.css";

import { useState } from "preact/hooks";
import { keys as keysApi } from "../api";
import type { ApiKey, KeyWithSecret } from "../api";
import { count, day } from "../format";
import { useLoad } from "../load";
import { KeyForm } from "../parts/KeyForm";
import { SecretDialog } from "../parts/SecretDialog";
import { Badge } from "../ui/Badge";
import { Button } from "../ui/Button";
import { Confirm } from "../ui/Dialog";
import { Empty } from "../ui/Empty";
import { ErrorBox } from "../ui/ErrorBox";
import { CheckField } from "../ui/Field";
import { Page } from "../ui/Page";
import { Spinner } from "../ui/Spinner";
import { Table } from "../ui/Table";
import { Time } from "../ui/Time";
import { toast } from "../ui/Toast";

type Asked = { what: "create" } | { what: "change" | "rotate" | "revoke"; key: ApiKey };

function hasExpired(key: ApiKey): boolean {
  return key.expiresAt !== null && key.expiresAt !== undefined && new Date(key.expiresAt).getTime() <= Date.now();
}

function isUsable(key: ApiKey): boolean {
  return key.isActive && !hasExpired(key);
}

function limitsOf(key: ApiKey): string {
  const limits = [
    key.dailyLimit ? `${count(key.dailyLimit)} a day` : "",
    key.concurrentLimit ? `${count(key.concurrentLimit)} at once` : "",
  ];
  return limits.filter((limit) => limit !== "").join(", ") || "the account's";
}

function Name({ apiKey }: { apiKey: ApiKey }) {
  return (
    <div class="key-name">
      <span class="key-title">
        <strong class="break">{apiKey.name || "without a name"}</strong>
        {apiKey.isPrimary && <Badge>primary</Badge>}
        {!apiKey.isActive && <Badge tone="bad">revoked</Badge>}
        {apiKey.isActive && hasExpired(apiKey) && <Badge tone="warn">expired</Badge>}
      </span>
      {apiKey.description !== "" && <span class="muted small">{apiKey.description}</span>}
      <code class="muted">{apiKey.preview}</code>
    </div>
  );
}

function KeyTable({ rows, onAsk }: { rows: ApiKey[]; onAsk: (asked: Asked) => void }) {
  const button = (key: ApiKey, what: "change" | "rotate" | "revoke", title: string) => (
    <Button small kind={what === "revoke" ? "danger" : "plain"} onClick={() => onAsk({ what, key })}>
      <span>
        {title}
        <span class="for-readers"> {key.name || key.preview}</span>
      </span>
    </Button>
  );
  return (
    <div class="table-frame key-table">
      <Table
        caption="API keys"
        rows={rows}
        rowKey={(key) => key.id}
        columns={[
          { title: "Key", cell: (key) => <Name apiKey={key} /> },
          { title: "Made", cell: (key) => <Time at={key.createdAt} /> },
          { title: "Last used", cell: (key) => (key.lastUsedAt ? <Time at={key.lastUsedAt} /> : <span class="muted">never</span>) },
          { title: "Expires", cell: (key) => (key.expiresAt ? day(key.expiresAt) : <span class="muted">never</span>) },
          { title: "Limits", cell: (key) => limitsOf(key) },
          {
            title: "Actions",
            isActions: true,
            cell: (key) =>
              key.isActive && (
                <>
                  {button(key, "change", "Change")}
                  {button(key, "rotate", "Rotate")}
                  {!key.isPrimary && button(key, "revoke", "Revoke")}
                </>
              ),
          },
        ]}
      />
    </div>
  );
}

export default function Keys() {
  const { data, error, reload } = useLoad(keysApi.list, []);
  const [asked, setAsked] = useState<Asked | null>(null);
  const [made, setMade] = useState<KeyWithSecret | null>(null);
  const [showsAll, setShowsAll] = useState(false);
  const close = () => setAsked(null);
  const show = (answer: KeyWithSecret) => {
    setMade(answer);
    reload();
  };
  const all = data ?? [];
  const rows = all.filter((key) => showsAll || isUsable(key));
  const hidden = all.filter((key) => !isUsable(key)).length;

  return (
    <Page
      title="Keys"
      intro="A key lets a program use the API in your name. Stockade keeps no key, only its fingerprint: copy a new one before you close it."
      actions={
        <Button kind="primary" icon="plus" onClick={() => setAsked({ what: "create" })}>
          New key
        </Button>
      }
      wide
    >
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {data === undefined && error === null && <Spinner label="Loading keys" />}
      {hidden > 0 && (
        <CheckField label={`Show those that are revoked or expired (${hidden})`} checked={showsAll} onChecked={setShowsAll} />
      )}
      {data !== undefined && rows.length === 0 && (
        <Empty icon="key" title="There is no key that works">
          <p>Make one for each program or machine: then one can be revoked without the others.</p>
          <Button kind="primary" icon="plus" onClick={() => setAsked({ what: "create" })}>
            New key
          </Button>
        </Empty>
      )}
      {rows.length > 0 && <KeyTable rows={rows} onAsk={setAsked} />}
      {asked?.what === "create" && <KeyForm onClose={close} onMade={show} onChanged={reload} />}
      {asked?.what === "change" && <KeyForm apiKey={asked.key} onClose={close} onMade={show} onChanged={reload} />}
      {asked?.what === "rotate" && (
        <Confirm
          title={`Rotate ${asked.key.name || "the key"}?`}
          action="Rotate"
          kind="primary"
          onConfirm={async () => show(await keysApi.rotate(asked.key.id))}
          onClose={close}
        >
          <p>It gets a new secret, and the old one stops working at once. Programs that use it need the new one.</p>
        </Confirm>
      )}
      {asked?.what === "revoke" && (
        <Confirm
          title={`Revoke ${asked.key.name || "the key"}?`}
          action="Revoke"
          onConfirm={async () => {
            await keysApi.revoke(asked.key.id);
            toast("The key was revoked.");
            reload();
          }}
          onClose={close}
        >
          <p>Programs that use it are refused from now on. This cannot be undone; what the key used stays in the usage.</p>
        </Confirm>
      )}
      {made !== null && <SecretDialog made={made} onClose={() => setMade(null)} />}
    </Page>
  );
}
