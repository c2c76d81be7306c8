import { signal } from "@preact/signals";
import { messageOf } from "./ErrorBox";
import { IconButton } from "./Button";

interface Message {
  id: number;
  text: string;
  tone: "good" | "bad";
}

const SHOWN_MS = 6_000;
const messages = signal<Message[]>([]);
let last = 0;

function drop(id: number): void {
  messages.value = messages.value.filter((message) => message.id !== id);
}

/** Say for some seconds, on screen and to screen readers, that something was done. */
export function toast(text: string, tone: "good" | "bad" = "good"): void {
  last += 1;
  const id = last;
  messages.value = [...messages.value.slice(-3), { id, text, tone }];
  setTimeout(() => drop(id), tone === "bad" ? 2 * SHOWN_MS : SHOWN_MS);
}

export function toastError(error: unknown): void {
  toast(messageOf(error), "bad");
}

/** Where toasts appear; once in a page. */
export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite" aria-label="Messages">
      {messages.value.map((message) => (
        <div key={message.id} class={`toast toast-${message.tone}`}>
          <span>{message.text}</span>
          <IconButton icon="close" label="Dismiss" small onClick={() => drop(message.id)} />
        </div>
      ))}
    </div>
  );
}
