/** Asks for the name of a new folder. */

import { useState } from "preact/hooks";
import { files } from "../api";
import { Button } from "../ui/Button";
import { Dialog } from "../ui/Dialog";
import { messageOf } from "../ui/ErrorBox";
import { TextField } from "../ui/Field";
import { join, nameProblem } from "./paths";

export interface FolderDialogProps {
  sandboxId: string;
  path: string;
  onClose: () => void;
  onMade: () => void;
}

export function FolderDialog({ sandboxId, path, onClose, onMade }: FolderDialogProps) {
  const [name, setName] = useState("");
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const make = async (event: Event) => {
    event.preventDefault();
    const wrong = nameProblem(name);
    setProblem(wrong);
    if (wrong !== "") {
      return;
    }
    setBusy(true);
    try {
      await files.makeDirectory(sandboxId, join(path, name));
      onMade();
    } catch (error) {
      setProblem(messageOf(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title="New folder" onClose={onClose}>
      <form class="stack" onSubmit={(event) => void make(event)}>
        <TextField
          label={`Name of the folder in ${path}`}
          value={name}
          onValue={setName}
          error={problem}
          autocomplete="off"
          autofocus
        />
        <div class="dialog-actions">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" busy={busy}>
            Make folder
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
