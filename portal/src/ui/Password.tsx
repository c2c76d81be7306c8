import { useState } from "preact/hooks";
import { Button } from "./Button";
import { Field } from "./Field";

interface PasswordProps {
  label: string;
  name: string;
  value: string;
  onValue: (value: string) => void;
  error?: string | null;
  /** For a new one: says what it must have, and tells password managers. */
  isNew?: boolean;
}

/** The least bytes of a password; the server decides, this only tells. */
export const LEAST_PASSWORD = 12;

export function PasswordField({ label, name, value, onValue, error, isNew = false }: PasswordProps) {
  const [shown, setShown] = useState(false);
  return (
    <Field label={label} error={error} hint={isNew ? `At least ${LEAST_PASSWORD} characters. A few words in a row are easy to remember and hard to guess.` : undefined}>
      {(props) => (
        <div class="password">
          <input
            {...props}
            name={name}
            type={shown ? "text" : "password"}
            autocomplete={isNew ? "new-password" : "current-password"}
            autocapitalize="none"
            spellcheck={false}
            required
            value={value}
            onInput={(event) => onValue(event.currentTarget.value)}
          />
          <Button kind="quiet" small aria-pressed={shown} aria-label={`Show the ${label.toLowerCase()}`} onClick={() => setShown(!shown)}>
            {shown ? "Hide" : "Show"}
          </Button>
        </div>
      )}
    </Field>
  );
}
