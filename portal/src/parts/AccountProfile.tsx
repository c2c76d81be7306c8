import { useState } from "preact/hooks";
import { account, email, meta } from "../api";
import type { Session } from "../api";
import { day } from "../format";
import { useLoad } from "../load";
import { session as current } from "../session";
import { Badge } from "../ui/Badge";
import { Button } from "../ui/Button";
import { ErrorBox } from "../ui/ErrorBox";
import { TextField } from "../ui/Field";
import { toast, toastError } from "../ui/Toast";
import { problems } from "./problems";

/** Name and organization; address, role and tier to read. */
export function ProfileSection({ session }: { session: Session }) {
  const { user } = session;
  const [name, setName] = useState(user.name);
  const [organization, setOrganization] = useState(user.organization ?? "");
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const wrong = problems(error, ["name", "organization"]);
  const isSame = name.trim() === user.name && organization.trim() === (user.organization ?? "");

  const save = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      current.value = await account.change({ name: name.trim(), organization: organization.trim() });
      toast("Your profile was saved.");
    } catch (reason) {
      setError(reason);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="card" aria-labelledby="profile">
      <h2 id="profile">Profile</h2>
      <dl class="facts account-facts">
        <dt>E-mail</dt>
        <dd>
          <Address session={session} />
        </dd>
        <dt>Role</dt>
        <dd>{user.role === "admin" ? "administrator" : "user"}</dd>
        <dt>Tier</dt>
        <dd>{session.account.tier}</dd>
        <dt>Since</dt>
        <dd>{day(user.createdAt)}</dd>
      </dl>
      <form class="account-form" onSubmit={(event) => void save(event)}>
        <TextField label="Name" required value={name} onValue={setName} error={wrong.at("name")} autocomplete="name" />
        <TextField
          label="Organization"
          optional
          value={organization}
          onValue={setOrganization}
          error={wrong.at("organization")}
          autocomplete="organization"
        />
        {wrong.rest !== null && <ErrorBox error={wrong.rest} />}
        <div>
          <Button type="submit" kind="primary" busy={busy} disabled={isSame}>
            Save profile
          </Button>
        </div>
      </form>
    </section>
  );
}

function Address({ session }: { session: Session }) {
  const { user } = session;
  const known = useLoad(meta, []);
  const [busy, setBusy] = useState(false);
  const sendAgain = async () => {
    setBusy(true);
    try {
      await email.sendAgain();
      toast(`A message is on its way to ${user.email}.`);
    } catch (error) {
      toastError(error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <span class="row">
      <span class="break">{user.email}</span>
      {user.emailVerified && <Badge tone="good">verified</Badge>}
      {!user.emailVerified && known.data?.mail && (
        <>
          <Badge tone="warn">not verified</Badge>
          <Button small busy={busy} onClick={() => void sendAgain()}>
            Send the message again
          </Button>
        </>
      )}
    </span>
  );
}
