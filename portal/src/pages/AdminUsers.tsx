/** Everybody who registered: search, role, tier, lock, delete. */

import "../styles/admin.css";

import { useEffect, useState } from "preact/hooks";
import { admin } from "../api";
import type { AdminUser } from "../api";
import { useLoad } from "../load";
import { UserForm } from "../parts/UserForm";
import { session } from "../session";
import { Badge } from "../ui/Badge";
import { Button } from "../ui/Button";
import { Confirm } from "../ui/Dialog";
import { Empty } from "../ui/Empty";
import { ErrorBox } from "../ui/ErrorBox";
import { TextField } from "../ui/Field";
import { Page } from "../ui/Page";
import { Spinner } from "../ui/Spinner";
import { Table } from "../ui/Table";
import { Time } from "../ui/Time";
import { toast, toastError } from "../ui/Toast";

type Asked = { what: "change" | "delete"; user: AdminUser };
/** Not with every letter: the list is asked for when the typing pauses. */
const PAUSE_MS = 250;

export default function AdminUsers() {
  const [typed, setTyped] = useState("");
  const [wanted, setWanted] = useState("");
  const [more, setMore] = useState<{ items: AdminUser[]; cursor: string | null } | null>(null);
  const [asked, setAsked] = useState<Asked | null>(null);
  const { data, error, reload } = useLoad(() => admin.users({ q: wanted }), [wanted]);
  useEffect(() => {
    const timer = setTimeout(() => {
      setMore(null);
      setWanted(typed.trim());
    }, PAUSE_MS);
    return () => clearTimeout(timer);
  }, [typed]);

  const cursor = more === null ? data?.cursor : more.cursor;
  const fetchMore = async () => {
    try {
      const next = await admin.users({ q: wanted, cursor: cursor ?? "" });
      setMore({ items: [...(more?.items ?? []), ...next.items], cursor: next.cursor });
    } catch (reason) {
      toastError(reason);
    }
  };
  const changed = () => {
    setMore(null);
    reload();
  };
  const rows = [...(data?.items ?? []), ...(more?.items ?? [])];

  return (
    <Page title="Users" intro="Everybody who registered or logged in here, with the tier of their account." wide>
      <TextField
        label="Search"
        type="search"
        class="admin-search"
        value={typed}
        onValue={setTyped}
        hint="Part of a name or an e-mail address."
        autocomplete="off"
      />
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {data === undefined && error === null && <Spinner label="Loading users" />}
      {data !== undefined && rows.length === 0 && (
        <Empty icon="users" title={wanted === "" ? "Nobody has registered yet" : `Nobody matches “${wanted}”`}>
          <p>{wanted === "" ? "Users appear here once they have registered." : "Search for less, or for another part of the name."}</p>
        </Empty>
      )}
      {rows.length > 0 && <UserTable rows={rows} onAsk={setAsked} />}
      {cursor && (
        <div>
          <Button onClick={() => void fetchMore()}>Show more</Button>
        </div>
      )}
      {asked?.what === "change" && <UserForm user={asked.user} onClose={() => setAsked(null)} onChanged={changed} />}
      {asked?.what === "delete" && (
        <Confirm
          title={`Delete ${asked.user.name}?`}
          action="Delete the account"
          typed={asked.user.email}
          onConfirm={async () => {
            await admin.deleteUser(asked.user.id);
            toast(`${asked.user.email} was deleted.`);
            changed();
          }}
          onClose={() => setAsked(null)}
        >
          <p>Their keys stop working, their sandboxes are killed, their jobs and profile are deleted. To keep keys, jobs and profile, lock the account: that ends what runs, and no more.</p>
        </Confirm>
      )}
    </Page>
  );
}

function UserTable({ rows, onAsk }: { rows: AdminUser[]; onAsk: (asked: Asked) => void }) {
  const own = session.value?.user.id;
  return (
    <div class="table-frame admin-table">
      <Table
        caption="Users"
        rows={rows}
        rowKey={(user) => user.id}
        columns={[
          {
            title: "User",
            cell: (user) => (
              <div class="admin-user">
                <strong>{user.name}</strong>
                <span class="break">{user.email}</span>
                {user.organization && <span class="muted small">{user.organization}</span>}
              </div>
            ),
          },
          {
            title: "Role",
            cell: (user) => (
              <span class="row">
                {user.role === "admin" ? <Badge tone="busy">admin</Badge> : <Badge>user</Badge>}
                {user.isLocked && <Badge tone="bad">locked</Badge>}
                {user.id === own && <Badge tone="good">you</Badge>}
              </span>
            ),
          },
          { title: "Tier", cell: (user) => <span class="admin-word">{user.tier}</span> },
          { title: "Verified", cell: (user) => (user.emailVerified ? "yes" : <span class="muted">no</span>) },
          { title: "Registered", cell: (user) => <Time at={user.createdAt} /> },
          { title: "Last log-in", cell: (user) => (user.lastLoginAt ? <Time at={user.lastLoginAt} /> : <span class="muted">never</span>) },
          {
            title: "Actions",
            isActions: true,
            cell: (user) => (
              <>
                <Button small onClick={() => onAsk({ what: "change", user })}>
                  <span>
                    Change<span class="for-readers"> {user.name}</span>
                  </span>
                </Button>
                {user.id !== own && (
                  <Button small kind="danger" onClick={() => onAsk({ what: "delete", user })}>
                    <span>
                      Delete<span class="for-readers"> {user.name}</span>
                    </span>
                  </Button>
                )}
              </>
            ),
          },
        ]}
      />
    </div>
  );
}
