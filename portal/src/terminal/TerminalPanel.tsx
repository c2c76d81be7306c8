/** The terminal of a sandbox with its buttons. Loaded when it is first shown: xterm.js is the largest part of the page. */

import "@xterm/xterm/css/xterm.css";

import { useEffect, useRef, useState } from "preact/hooks";
import { isDark } from "../theme";
import { Button } from "../ui/Button";
import { CheckField } from "../ui/Field";
import { toast } from "../ui/Toast";
import { Shell } from "./shell";
import type { ShellState } from "./shell";
import { DARK, LIGHT } from "./themes";

export interface TerminalPanelProps {
  sandboxId: string;
  /** Whether there is a main process to attach to. */
  hasMain: boolean;
}

function words(state: ShellState): string {
  switch (state.kind) {
    case "connecting":
      return "Connecting…";
    case "open":
      return "Connected";
    case "ended":
      return `Ended with exit code ${state.code}`;
    case "failed":
      return state.message;
  }
}

export default function TerminalPanel({ sandboxId, hasMain }: TerminalPanelProps) {
  const place = useRef<HTMLDivElement>(null);
  const leave = useRef<HTMLDivElement>(null);
  const shell = useRef<Shell | null>(null);
  const [state, setState] = useState<ShellState>({ kind: "connecting" });
  const [hasSelection, setHasSelection] = useState(false);
  const [isRead, setIsRead] = useState(false);
  const [attach, setAttach] = useState<"shell" | "main">("shell");

  useEffect(() => {
    const parent = place.current;
    if (parent === null) {
      return;
    }
    const opened = new Shell(parent, {
      sandboxId,
      attach,
      theme: isDark.value ? DARK : LIGHT,
      onState: setState,
      onLeave: () => leave.current?.querySelector<HTMLElement>("button:not([disabled])")?.focus(),
      onSelection: setHasSelection,
    });
    shell.current = opened;
    opened.setScreenReader(isRead);
    opened.connect();
    opened.focus();
    const unfollow = isDark.subscribe((dark) => opened.setTheme(dark ? DARK : LIGHT));
    return () => {
      unfollow();
      shell.current = null;
      opened.dispose();
    };
  }, [sandboxId, attach]);

  const copy = async () => {
    try {
      await navigator.clipboard.writeText(shell.current?.selection() ?? "");
      toast("Copied.");
    } catch {
      toast("The browser does not let this page copy. Press Ctrl+Insert instead.", "bad");
    }
    shell.current?.focus();
  };
  const paste = async () => {
    try {
      shell.current?.paste(await navigator.clipboard.readText());
    } catch {
      toast("The browser does not let this page read the clipboard. Press Ctrl+Shift+V instead.", "bad");
      shell.current?.focus();
    }
  };
  const readAloud = (isOn: boolean) => {
    setIsRead(isOn);
    shell.current?.setScreenReader(isOn);
  };
  const isOver = state.kind === "ended" || state.kind === "failed";

  return (
    <section class="terminal-panel" aria-label="Terminal">
      <div class="terminal-bar">
        <p class={`terminal-state terminal-${state.kind}`} role="status">
          <span class="terminal-dot" aria-hidden="true" />
          {words(state)}
        </p>
        <div class="terminal-buttons" ref={leave}>
          {isOver && (
            <Button
              small
              kind="primary"
              onClick={() => {
                shell.current?.connect();
                shell.current?.focus();
              }}
            >
              {attach === "main" ? "Attach again" : "New shell"}
            </Button>
          )}
          <Button small disabled={!hasSelection} onClick={() => void copy()}>
            Copy
          </Button>
          <Button small disabled={isOver} onClick={() => void paste()}>
            Paste
          </Button>
          <Button small onClick={() => shell.current?.clear()}>
            Clear
          </Button>
        </div>
      </div>
      <div ref={place} class="terminal-place" />
      <div class="terminal-foot">
        <p>
          <kbd>F6</kbd> leaves the terminal, <kbd>Shift+F6</kbd> types F6. <kbd>Ctrl+Shift+C</kbd> and{" "}
          <kbd>Ctrl+Shift+V</kbd> copy and paste.
        </p>
        <div class="terminal-options">
          {hasMain && (
            <CheckField label="Main process" checked={attach === "main"} onChecked={(isOn) => setAttach(isOn ? "main" : "shell")} />
          )}
          <CheckField label="For screen readers" checked={isRead} onChecked={readAloud} />
        </div>
      </div>
    </section>
  );
}
