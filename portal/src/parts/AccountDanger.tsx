import { useState } from "preact/hooks";
import { useLocation } from "wouter-preact";
import { account } from "../api";
import type { User } from "../api";
import { session } from "../session";
import { Button, DownloadLink } from "../ui/Button";
import { Dialog } from "../ui/Dialog";
import { ErrorBox } from "../ui/ErrorBox";
import { TextField } from "../ui/Field";
import { toast } from "../ui/Toast";
import { problems } from "./problems";

const WORD = "delete my account";

/** Take the data away, or the whole account. */
export function DangerSection({ user }: { user: User }) {
  const [isDeleting, setIsDeleting] = useState(false);
  return (
    <>
      <section class="card" aria-labelledby="data">
        <h2 id="data">Your data</h2>
        <p class="account-words">One JSON file with your profile, keys (without secrets), jobs, sandboxes and usage.</p>
        <DownloadLink href={account.exportUrl}>Export my data</DownloadLink>
      </section>
      <section class="card account-danger" aria-labelledby="delete">
        <h2 id="delete">Delete the account</h2>
        <p class="account-words">
          Your keys stop working, your sandboxes are killed, and your jobs and profile are deleted. Nobody can bring them back.
        </p>
        <Button kind="danger" icon="trash" onClick={() => setIsDeleting(true)}>
          Delete my account
        </Button>
      </section>
      {isDeleting && <DeleteDialog user={user} onClose={() => setIsDeleting(false)} />}
    </>
  );
}

function DeleteDialog({ user, onClose }: { user: User; onClose: () => void }) {
  const [, navigate] = useLocation();
  const [proof, setProof] = useState("");
  const [word, setWord] = useState("");
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const wrong = problems(error, ["password", "email"]);
  const remove = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await account.delete(user.hasPassword ? { password: proof } : { email: proof });
      toast("Your account was deleted.");
      // First away from here: this page sends whoever is signed out to the log-in.
      navigate("/");
      session.value = null;
    } catch (reason) {
      setError(reason);
      setBusy(false);
      if (user.hasPassword) setProof("");
    }
  };
  return (
    <Dialog title="Delete the account?" onClose={onClose}>
      <form class="stack" onSubmit={(event) => void remove(event)}>
        <p>
          This deletes the account of <strong class="break">{user.email}</strong> for good.
        </p>
        {user.hasPassword ? (
          <TextField
            label="Your password"
            type="password"
            required
            value={proof}
            onValue={setProof}
            error={wrong.at("password")}
            autocomplete="current-password"
          />
        ) : (
          <TextField
            label="Your e-mail address"
            type="email"
            required
            value={proof}
            onValue={setProof}
            error={wrong.at("email")}
            autocomplete="off"
          />
        )}
        <TextField label={`Type “${WORD}” to confirm`} value={word} onValue={setWord} autocomplete="off" />
        {wrong.rest !== null && <ErrorBox error={wrong.rest} />}
        <div class="dialog-actions">
          <Button onClick={onClose}>Keep it</Button>
          <Button type="submit" kind="danger" busy={busy} disabled={word !== WORD || proof === ""}>
            Delete it
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
