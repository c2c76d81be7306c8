/** What an administrator changes of a user: role, tier, lock. */

import { useState } from "preact/hooks";
import { admin } from "../api";
import type { AdminUser } from "../api";
import { session } from "../session";
import { Button } from "../ui/Button";
import { Dialog } from "../ui/Dialog";
import { ErrorBox } from "../ui/ErrorBox";
import { CheckField, SelectField } from "../ui/Field";
import { toast } from "../ui/Toast";

const TIERS = ["free", "starter", "pro", "enterprise"];
const ROLES = [
  { value: "user", label: "User" },
  { value: "admin", label: "Administrator" },
];

export function UserForm({ user, onClose, onChanged }: { user: AdminUser; onClose: () => void; onChanged: () => void }) {
  const [role, setRole] = useState<string>(user.role);
  const [tier, setTier] = useState(user.tier);
  const [isLocked, setIsLocked] = useState(user.isLocked);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  // Who takes their own role away cannot give it back.
  const isOwn = session.value?.user.id === user.id;
  const tiers = TIERS.includes(user.tier) ? TIERS : [user.tier, ...TIERS];

  const save = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await admin.changeUser(user.id, {
        ...(role === user.role ? {} : { role }),
        ...(tier === user.tier ? {} : { tier }),
        ...(isLocked === user.isLocked ? {} : { isLocked }),
      });
      toast(`${user.name} was changed.`);
      onChanged();
      onClose();
    } catch (reason) {
      setError(reason);
      setBusy(false);
    }
  };
  return (
    <Dialog title={`Change ${user.name}`} onClose={onClose}>
      <form class="stack" onSubmit={(event) => void save(event)}>
        <SelectField
          label="Role"
          value={role}
          onValue={setRole}
          options={ROLES}
          disabled={isOwn}
          hint={isOwn ? "Your own role is for another administrator to change." : "An administrator sees and changes every account."}
        />
        <SelectField
          label="Tier"
          value={tier}
          onValue={setTier}
          options={tiers.map((name) => ({ value: name, label: name }))}
          hint="How much the account may use."
        />
        <CheckField label="Locked: no log-in, its keys are refused, and what it runs is ended" checked={isLocked} onChecked={setIsLocked} disabled={isOwn} />
        {error !== null && <ErrorBox error={error} />}
        <div class="dialog-actions">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" busy={busy}>
            Save
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
