import { useState } from "preact/hooks";
import { ApiError } from "./api";

export interface Form {
  busy: boolean;
  /** What went wrong and belongs to no single input. */
  error: unknown;
  /** What is wrong with the input called *name*. */
  wrong: (name: string) => string | null;
  onSubmit: (event: Event) => void;
}

/** A form's sending: busy while it lasts; the server's words stand beside the input that they are about, which gets the focus. */
export function useForm(fields: readonly string[], submit: () => Promise<void>): Form {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const about = error instanceof ApiError && error.field && fields.includes(error.field) ? error.field : null;
  const onSubmit = (event: Event) => {
    event.preventDefault();
    if (busy) return;
    const form = event.currentTarget as HTMLFormElement;
    setBusy(true);
    setError(null);
    submit().then(
      () => setBusy(false),
      (reason: unknown) => {
        setBusy(false);
        setError(reason);
        const name = reason instanceof ApiError ? reason.field : null;
        const input = name ? form.elements.namedItem(name) : null;
        if (input instanceof HTMLElement) input.focus();
      },
    );
  };
  return {
    busy,
    error: about ? null : error,
    wrong: (name) => (about === name && error instanceof ApiError ? error.message : null),
    onSubmit,
  };
}
