import { useState } from "preact/hooks";
import { Button } from "./Button";
import { toastError } from "./Toast";

/** Puts *text* on the clipboard. Outside HTTPS and localhost browsers have none for pages: then it says so. */
export function CopyButton({ text, label = "Copy", small = true }: { text: string; label?: string; small?: boolean }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setDone(true);
      setTimeout(() => setDone(false), 2_000);
    } catch {
      toastError(new Error("the browser gives no clipboard to this page; select the text and copy it"));
    }
  };
  return (
    <Button small={small} icon={done ? "check" : "copy"} onClick={copy}>
      {done ? "Copied" : label}
    </Button>
  );
}
