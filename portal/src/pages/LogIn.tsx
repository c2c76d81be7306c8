import { useState } from "preact/hooks";
import { Link, Redirect, useLocation, useSearch } from "wouter-preact";
import * as api from "../api";
import { useForm } from "../form";
import { useLoad } from "../load";
import { logIn, nextPath, session } from "../session";
import { Button, ErrorBox, Notice, Outside, PasswordField, TextField } from "../ui";

/** Goes to the OpenID Connect provider, where the server knows one. */
export function ProviderLink({ name, next }: { name: string | undefined; next: string }) {
  if (!name) return null;
  return (
    <>
      <p class="or">or</p>
      <a class="button button-plain" href={api.session.oidcUrl(next)}>
        Continue with {name}
      </a>
    </>
  );
}

export default function LogIn() {
  const [, navigate] = useLocation();
  const search = useSearch();
  const about = useLoad(api.meta, []);
  const [email, setEmail] = useState("");
  const [password, setPassword] = useState("");
  const form = useForm(["email", "password"], async () => {
    try {
      await logIn(email, password);
    } catch (error) {
      setPassword("");
      throw error;
    }
    navigate(nextPath(search), { replace: true });
  });
  if (session.value) return <Redirect to={nextPath(search)} replace />;
  const query = new URLSearchParams(search);
  return (
    <Outside
      title="Log in"
      below={
        about.data?.sign_up !== false && (
          <p>
            No account yet? <Link href={`/register${search ? `?${search}` : ""}`}>Register</Link>
          </p>
        )
      }
    >
      {query.has("failed") && <ErrorBox error={new api.ApiError(401, "oidc", `${about.data?.oidc?.name ?? "The provider"} did not sign you in. Try again, or log in with your password.`)} />}
      {query.has("changed") && (
        <Notice tone="good">
          <p>Your password has changed. Log in with the new one.</p>
        </Notice>
      )}
      {query.has("next") && !query.has("failed") && <p class="muted">Log in to go on.</p>}
      <form class="stack" onSubmit={form.onSubmit} noValidate>
        {form.error !== null && <ErrorBox error={form.error} />}
        <TextField label="Email" name="email" type="email" autocomplete="username" required value={email} onValue={setEmail} error={form.wrong("email")} />
        <PasswordField label="Password" name="password" value={password} onValue={setPassword} error={form.wrong("password")} />
        <div class="spread">
          <Button type="submit" kind="primary" busy={form.busy}>
            Log in
          </Button>
          <Link href="/forgot">Forgot your password?</Link>
        </div>
      </form>
      <ProviderLink name={about.data?.oidc?.name} next={nextPath(search)} />
    </Outside>
  );
}
