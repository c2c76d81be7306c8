/** Asks what a key shall be called and how much it may; for a new one, or for one that exists. */

import { useState } from "preact/hooks";
import { keys } from "../api";
import type { ApiKey, KeyRequest, KeyWithSecret } from "../api";
import { Button } from "../ui/Button";
import { Dialog } from "../ui/Dialog";
import { ErrorBox } from "../ui/ErrorBox";
import { TextField } from "../ui/Field";
import { toast } from "../ui/Toast";
import { problems } from "./problems";

export interface KeyFormProps {
  /** The one to change; without it a new one is made. */
  apiKey?: ApiKey;
  onClose: () => void;
  onMade: (made: KeyWithSecret) => void;
  onChanged: () => void;
}

const FIELDS = ["name", "description", "expiresAt", "dailyLimit", "concurrentLimit"];

/** What a date field shows: the day, as the user's calendar has it. */
function dayOf(at: string | null | undefined): string {
  if (!at) {
    return "";
  }
  const local = new Date(at);
  const digits = (value: number) => String(value).padStart(2, "0");
  return `${local.getFullYear()}-${digits(local.getMonth() + 1)}-${digits(local.getDate())}`;
}

/** The end of that day where the user is. */
function endOf(day: string): string | null {
  return day === "" ? null : new Date(`${day}T23:59:59`).toISOString();
}

function numberOf(text: string): number | null {
  return text === "" ? null : Number(text);
}

export function KeyForm({ apiKey, onClose, onMade, onChanged }: KeyFormProps) {
  const [name, setName] = useState(apiKey?.name ?? "");
  const [description, setDescription] = useState(apiKey?.description ?? "");
  const [expires, setExpires] = useState(dayOf(apiKey?.expiresAt));
  const [daily, setDaily] = useState(apiKey?.dailyLimit ? String(apiKey.dailyLimit) : "");
  const [concurrent, setConcurrent] = useState(apiKey?.concurrentLimit ? String(apiKey.concurrentLimit) : "");
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);

  const wrong = problems(error, FIELDS);

  const wanted = (): KeyRequest => ({
    name: name.trim(),
    description: description.trim(),
    dailyLimit: numberOf(daily),
    concurrentLimit: numberOf(concurrent),
    // A day that was not touched keeps its hour.
    ...(expires === dayOf(apiKey?.expiresAt) ? {} : { expiresAt: endOf(expires) }),
  });

  const save = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      if (apiKey === undefined) {
        onMade(await keys.create(wanted()));
      } else {
        await keys.change(apiKey.id, wanted());
        toast("The key was changed.");
        onChanged();
      }
      onClose();
    } catch (reason) {
      setError(reason);
      setBusy(false);
    }
  };

  return (
    <Dialog title={apiKey === undefined ? "New key" : `Change ${apiKey.name || "the key"}`} onClose={onClose}>
      <form class="stack" onSubmit={(event) => void save(event)}>
        <TextField
          label="Name"
          required
          maxLength={100}
          value={name}
          onValue={setName}
          error={wrong.at("name")}
          hint="What uses it, for example “build server”."
          autocomplete="off"
        />
        <TextField
          label="Description"
          optional
          maxLength={500}
          value={description}
          onValue={setDescription}
          error={wrong.at("description")}
          autocomplete="off"
        />
        <TextField
          label="Last day"
          type="date"
          optional
          min={dayOf(new Date().toISOString())}
          value={expires}
          onValue={setExpires}
          error={wrong.at("expiresAt")}
          hint="Left empty, it does not expire."
        />
        <div class="key-limits">
          <TextField
            label="Runs a day"
            type="number"
            min="1"
            optional
            value={daily}
            onValue={setDaily}
            error={wrong.at("dailyLimit")}
          />
          <TextField
            label="Runs at once"
            type="number"
            min="1"
            optional
            value={concurrent}
            onValue={setConcurrent}
            error={wrong.at("concurrentLimit")}
          />
        </div>
        <p class="muted small">Limits left empty are the account's. A key never gets more than its account.</p>
        {wrong.rest !== null && <ErrorBox error={wrong.rest} />}
        <div class="dialog-actions">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" busy={busy}>
            {apiKey === undefined ? "Make key" : "Save"}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
