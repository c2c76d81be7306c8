import { useState } from "preact/hooks";
import { Link, useSearch } from "wouter-preact";
import * as api from "../api";
import { useLoad } from "../load";
import { loadSession, session } from "../session";
import { ErrorBox, Notice, Outside, Spinner } from "../ui";
import { tokenOf } from "./Reset";

export default function Verify() {
  const search = useSearch();
  const [token] = useState(() => tokenOf(search));
  const done = useLoad(async () => {
    if (!token) throw new api.ApiError(400, "token", "This link is not whole: its token is missing. Open the link from the message once more.");
    await api.email.verify(token);
    if (session.value) await loadSession();
    return true;
  }, []);
  return (
    <Outside title="Confirm your address" below={<p>{session.value ? <Link href="/app">Open the app</Link> : <Link href="/login">Log in</Link>}</p>}>
      {done.data ? (
        <Notice tone="good">
          <p>Your address is confirmed.</p>
        </Notice>
      ) : done.error !== null ? (
        <ErrorBox error={done.error}>
          <p>{session.value ? "Your account page sends a new link." : "Log in; your account page sends a new link."}</p>
        </ErrorBox>
      ) : (
        <Spinner label="Confirming" />
      )}
    </Outside>
  );
}
