import { useState } from "preact/hooks";
import { Link } from "wouter-preact";
import * as api from "../api";
import { useForm } from "../form";
import { useLoad } from "../load";
import { Button, ErrorBox, Notice, Outside, TextField } from "../ui";

export default function Forgot() {
  const about = useLoad(api.meta, []);
  const [email, setEmail] = useState("");
  const [sent, setSent] = useState(false);
  const form = useForm(["email"], async () => {
    await api.password.forgot(email);
    setSent(true);
  });
  return (
    <Outside
      title="Reset your password"
      below={
        <p>
          Remembered it? <Link href="/login">Log in</Link>
        </p>
      }
    >
      {sent ? (
        <Notice tone="good">
          <p>
            {about.data?.mail === false
              ? "If that address has an account, a link to set a new password is in the server's log: ask whoever runs this server for it."
              : "If that address has an account, a link to set a new password is on its way. It works once, for a short time."}
          </p>
        </Notice>
      ) : (
        <form class="stack" onSubmit={form.onSubmit} noValidate>
          <p class="muted">Enter the address that you registered with.</p>
          {form.error !== null && <ErrorBox error={form.error} />}
          <TextField label="Email" name="email" type="email" autocomplete="username" required value={email} onValue={setEmail} error={form.wrong("email")} />
          <Button type="submit" kind="primary" busy={form.busy}>
            Send the link
          </Button>
        </form>
      )}
    </Outside>
  );
}
