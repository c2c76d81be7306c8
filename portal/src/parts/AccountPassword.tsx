import { useState } from "preact/hooks";
import { password } from "../api";
import type { User } from "../api";
import { Button } from "../ui/Button";
import { ErrorBox } from "../ui/ErrorBox";
import { TextField } from "../ui/Field";
import { toast } from "../ui/Toast";
import { problems } from "./problems";

/** Change the password; who logs in elsewhere (OpenID Connect) has none. */
export function PasswordSection({ user }: { user: User }) {
  const [old, setOld] = useState("");
  const [fresh, setFresh] = useState("");
  const [again, setAgain] = useState("");
  const [mismatch, setMismatch] = useState("");
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const wrong = problems(error, ["old", "new", "password"]);

  const change = async (event: Event) => {
    event.preventDefault();
    setError(null);
    setMismatch(fresh === again ? "" : "The two are not the same.");
    if (fresh !== again) {
      return;
    }
    setBusy(true);
    try {
      await password.change(old, fresh);
      setFresh("");
      setAgain("");
      toast("Your password was changed. Log-ins elsewhere have ended.");
    } catch (reason) {
      setError(reason);
    } finally {
      setOld("");
      setBusy(false);
    }
  };
  if (!user.hasPassword) {
    return (
      <section class="card" aria-labelledby="password">
        <h2 id="password">Password</h2>
        <p>You log in through your organization. This account has no password of its own.</p>
      </section>
    );
  }
  return (
    <section class="card" aria-labelledby="password">
      <h2 id="password">Password</h2>
      <form class="account-form" onSubmit={(event) => void change(event)}>
        {/* Tells a password manager whose password it is. */}
        <input type="email" value={user.email} autocomplete="username" readOnly hidden />
        <TextField
          label="Present password"
          type="password"
          required
          value={old}
          onValue={setOld}
          error={wrong.at("old")}
          autocomplete="current-password"
        />
        <TextField
          label="New password"
          type="password"
          required
          value={fresh}
          onValue={setFresh}
          error={wrong.at("new") ?? wrong.at("password")}
          autocomplete="new-password"
        />
        <TextField
          label="New password again"
          type="password"
          required
          value={again}
          onValue={setAgain}
          error={mismatch}
          autocomplete="new-password"
        />
        {wrong.rest !== null && <ErrorBox error={wrong.rest} />}
        <div>
          <Button type="submit" kind="primary" busy={busy}>
            Change password
          </Button>
        </div>
      </form>
    </section>
  );
}
