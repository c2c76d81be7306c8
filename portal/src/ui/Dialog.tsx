import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { Button, IconButton, type ButtonKind } from "./Button";
import { ErrorBox } from "./ErrorBox";
import { TextField } from "./Field";

/** A modal dialog; Escape and the cross close it. Mount it to open it: the browser keeps the focus inside and gives it back. */
export function Dialog({ title, onClose, children, wide = false }: { title: string; onClose: () => void; children: ComponentChildren; wide?: boolean }) {
  const element = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    const dialog = element.current;
    dialog?.showModal();
    return () => {
      dialog?.close();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  return (
    <dialog
      ref={element}
      class={`dialog ${wide ? "dialog-wide" : ""}`}
      aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        onClose();
      }}
    >
      <header class="dialog-head">
        <h2 id={id}>{title}</h2>
        <IconButton icon="close" label="Close" onClick={onClose} />
      </header>
      <div class="dialog-body">{children}</div>
    </dialog>
  );
}

interface ConfirmProps {
  title: string;
  action: string;
  kind?: ButtonKind;
  /** What must be typed first, for what cannot be undone. */
  typed?: string;
  onConfirm: () => Promise<void>;
  onClose: () => void;
  children: ComponentChildren;
}

/** Asks before something is done; stays open with the reason when it fails. */
export function Confirm({ title, action, kind = "danger", typed, onConfirm, onClose, children }: ConfirmProps) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const [word, setWord] = useState("");
  const confirm = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await onConfirm();
      onClose();
    } catch (reason) {
      setError(reason);
      setBusy(false);
    }
  };
  return (
    <Dialog title={title} onClose={onClose}>
      <form onSubmit={confirm} class="stack">
        <div>{children}</div>
        {typed && <TextField label={`Type “${typed}” to confirm`} value={word} onValue={setWord} autocomplete="off" />}
        {error !== null && <ErrorBox error={error} />}
        <div class="dialog-actions">
          <Button onClick={onClose}>Keep it</Button>
          <Button type="submit" kind={kind} busy={busy} disabled={typed !== undefined && word !== typed}>
            {action}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
