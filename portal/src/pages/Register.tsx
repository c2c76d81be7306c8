import { useState } from "preact/hooks";
import { Link, Redirect, useLocation, useSearch } from "wouter-preact";
import * as api from "../api";
import { useForm } from "../form";
import { useLoad } from "../load";
import { nextPath, register, session } from "../session";
import { Button, ErrorBox, Notice, Outside, PasswordField, TextField } from "../ui";
import { ProviderLink } from "./LogIn";

export default function Register() {
  const [, navigate] = useLocation();
  const search = useSearch();
  const about = useLoad(api.meta, []);
  const [name, setName] = useState("");
  const [email, setEmail] = useState("");
  const [organization, setOrganization] = useState("");
  const [password, setPassword] = useState("");
  const form = useForm(["name", "email", "organization", "password"], async () => {
    try {
      await register({ name, email, organization, password });
    } catch (error) {
      setPassword("");
      throw error;
    }
    navigate(nextPath(search), { replace: true });
  });
  if (session.value) return <Redirect to={nextPath(search)} replace />;
  const closed = about.data?.sign_up === false;
  return (
    <Outside
      title="Register"
      below={
        <p>
          Already registered? <Link href={`/login${search ? `?${search}` : ""}`}>Log in</Link>
        </p>
      }
    >
      {closed && (
        <Notice tone="warn">
          <p>Nobody can register here: ask whoever runs this server for an account.</p>
        </Notice>
      )}
      {about.error !== null && <ErrorBox error={about.error} onRetry={about.reload} />}
      <form class="stack" onSubmit={form.onSubmit} noValidate>
        {form.error !== null && <ErrorBox error={form.error} />}
        <TextField label="Name" name="name" autocomplete="name" required value={name} onValue={setName} error={form.wrong("name")} />
        <TextField label="Email" name="email" type="email" autocomplete="email" required value={email} onValue={setEmail} error={form.wrong("email")} />
        <TextField label="Organization" name="organization" autocomplete="organization" optional value={organization} onValue={setOrganization} error={form.wrong("organization")} />
        <PasswordField label="Password" name="password" isNew value={password} onValue={setPassword} error={form.wrong("password")} />
        <Button type="submit" kind="primary" busy={form.busy} disabled={closed}>
          Create account
        </Button>
      </form>
      <ProviderLink name={about.data?.oidc?.name} next={nextPath(search)} />
    </Outside>
  );
}
