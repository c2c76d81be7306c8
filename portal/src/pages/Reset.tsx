import { useState } from "preact/hooks";
import { Link, useLocation, useSearch } from "wouter-preact";
import * as api from "../api";
import { useForm } from "../form";
import { session } from "../session";
import { Button, ErrorBox, Notice, Outside, PasswordField } from "../ui";

/** The token of a mailed link: after `?` or, where it should stay out of logs, after `#`. */
export function tokenOf(search: string): string {
  return new URLSearchParams(search).get("token") ?? new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
}

export default function Reset() {
  const [, navigate] = useLocation();
  const search = useSearch();
  const [token] = useState(() => tokenOf(search));
  const [password, setPassword] = useState("");
  const form = useForm(["password"], async () => {
    try {
      await api.password.reset(token, password);
    } catch (error) {
      setPassword("");
      throw error;
    }
    session.value = null; // a new password ends every log-in
    navigate("/login?changed=1", { replace: true });
  });
  const again = <Link href="/forgot">Ask for a new link</Link>;
  return (
    <Outside title="Set a new password" below={<p>{again}</p>}>
      {token ? (
        <form class="stack" onSubmit={form.onSubmit} noValidate>
          {form.error !== null && <ErrorBox error={form.error} />}
          <PasswordField label="New password" name="password" isNew value={password} onValue={setPassword} error={form.wrong("password")} />
          <Button type="submit" kind="primary" busy={form.busy}>
            Set password
          </Button>
        </form>
      ) : (
        <Notice tone="warn">
          <p>This link is not whole: its token is missing. Open the link from the message once more, or ask for a new one.</p>
        </Notice>
      )}
    </Outside>
  );
}
