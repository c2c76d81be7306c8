/**
 * A terminal on the page, joined to one in a sandbox over a WebSocket.
 *
 * Binary frames are bytes of the terminal, both ways. Text frames are JSON: ours say the size, the server's say how it
 * ended. See docs/portal.md.
 */

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import type { ITheme } from "@xterm/xterm";
import { sandboxes } from "../api";
import { translateStyleAttributes, withStyleNonce } from "./styling";

export type ShellState =
  | { kind: "connecting" }
  | { kind: "open" }
  | { kind: "ended"; code: number }
  | { kind: "failed"; message: string };

/** Bytes that the terminal has not drawn yet: past the first figure we skip output, down to the second. */
const MOST_PENDING = 8 * 1024 * 1024;
const FEW_PENDING = 512 * 1024;
const F6 = "\x1b[17~";

export interface ShellOptions {
  sandboxId: string;
  attach: "shell" | "main";
  theme: ITheme;
  onState(state: ShellState): void;
  /** The user asked to leave the terminal with the keyboard. */
  onLeave(): void;
  onSelection(hasSelection: boolean): void;
}

export class Shell {
  private readonly terminal: Terminal;
  private readonly fit = new FitAddon();
  private readonly observer: ResizeObserver;
  private readonly options: ShellOptions;
  private socket: WebSocket | null = null;
  private pending = 0;
  private isSkipping = false;
  private hasEnded = false;
  private lastError = "";

  constructor(parent: HTMLElement, options: ShellOptions) {
    this.options = options;
    const styles = getComputedStyle(document.documentElement);
    this.terminal = new Terminal({
      theme: options.theme,
      fontFamily: styles.getPropertyValue("--mono").trim() || "monospace",
      fontSize: 13,
      lineHeight: 1.2,
      scrollback: 5000,
      // A main process mostly has no terminal, which would turn its line ends into those of a screen.
      convertEol: options.attach === "main",
      cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
      // Colours that a program chooses are lifted until they can be read.
      minimumContrastRatio: 4.5,
    });
    this.terminal.loadAddon(this.fit);
    translateStyleAttributes();
    withStyleNonce(() => this.terminal.open(parent));
    this.terminal.attachCustomKeyEventHandler((event) => this.keyed(event));
    this.terminal.onData((text) => this.type(text));
    this.terminal.onBinary((text) => this.send(Uint8Array.from(text, (letter) => letter.charCodeAt(0))));
    this.terminal.onResize(({ cols, rows }) => this.tell({ resize: { cols, rows } }));
    this.terminal.onSelectionChange(() => options.onSelection(this.terminal.hasSelection()));
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(parent);
    this.resize();
  }

  /** Start a shell in the sandbox (or attach to its main process), in place of the one before. */
  connect(): void {
    this.drop();
    this.hasEnded = false;
    this.isSkipping = false;
    this.lastError = "";
    this.options.onState({ kind: "connecting" });
    const { cols, rows } = this.terminal;
    const attach = this.options.attach === "main" ? { attach: "main" as const } : {};
    const socket = new WebSocket(sandboxes.terminalUrl(this.options.sandboxId, { cols, rows, ...attach }));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.options.onState({ kind: "open" });
      // The page may have been resized while the connection was made.
      this.tell({ resize: { cols: this.terminal.cols, rows: this.terminal.rows } });
    };
    socket.onmessage = (event: MessageEvent<ArrayBuffer | string>) => this.received(event.data);
    socket.onclose = (event) => this.closed(event);
    this.socket = socket;
  }

  focus(): void {
    this.terminal.focus();
  }

  selection(): string {
    return this.terminal.getSelection();
  }

  paste(text: string): void {
    this.terminal.paste(text);
    this.terminal.focus();
  }

  clear(): void {
    this.terminal.clear();
    this.terminal.focus();
  }

  setTheme(theme: ITheme): void {
    this.terminal.options.theme = theme;
  }

  /** Mirror the screen as text that a screen reader follows. */
  setScreenReader(isOn: boolean): void {
    this.terminal.options.screenReaderMode = isOn;
  }

  dispose(): void {
    this.observer.disconnect();
    this.drop();
    this.terminal.dispose();
  }

  private drop(): void {
    const socket = this.socket;
    this.socket = null;
    if (socket !== null) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  private resize(): void {
    // Hidden (another tab of the page is shown) it has no size, and would shrink to the smallest.
    if (this.terminal.element?.offsetParent) {
      this.fit.fit();
    }
  }

  private keyed(event: KeyboardEvent): boolean {
    if (event.key === "F6") {
      if (event.type === "keydown") {
        if (event.shiftKey) {
          this.send(new TextEncoder().encode(F6));
        } else {
          this.options.onLeave();
        }
        event.preventDefault();
      }
      return false;
    }
    const isClipboard = event.ctrlKey && event.shiftKey && !event.altKey;
    if (isClipboard && event.code === "KeyC") {
      // Not the browser's own use of the key, developer tools.
      event.preventDefault();
      if (event.type === "keydown" && this.terminal.hasSelection()) {
        void navigator.clipboard?.writeText(this.selection());
      }
      return false;
    }
    // The browser pastes into the terminal's text field, and the terminal reads it from there.
    return !(isClipboard && event.code === "KeyV");
  }

  private type(text: string): void {
    if (this.socket === null) {
      if (text === "\r") {
        this.connect();
      }
      return;
    }
    // Without a terminal nothing makes a line end of what the Enter key sends.
    this.send(new TextEncoder().encode(this.options.attach === "main" ? text.replaceAll("\r", "\n") : text));
  }

  private send(bytes: Uint8Array<ArrayBuffer>): void {
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.socket.send(bytes);
    }
  }

  private tell(message: object): void {
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.socket.send(JSON.stringify(message));
    }
  }

  private received(data: ArrayBuffer | string): void {
    if (typeof data === "string") {
      this.told(data);
      return;
    }
    if (this.isSkipping) {
      return;
    }
    this.pending += data.byteLength;
    this.terminal.write(new Uint8Array(data), () => this.drawn(data.byteLength));
    // A WebSocket cannot be slowed down by its reader, and the terminal keeps all that it has not drawn in memory.
    this.isSkipping = this.pending > MOST_PENDING;
  }

  private drawn(size: number): void {
    this.pending -= size;
    if (this.isSkipping && this.pending < FEW_PENDING) {
      this.isSkipping = false;
      this.note("output skipped: it came faster than the page can draw");
    }
  }

  private told(text: string): void {
    const message = JSON.parse(text) as { exit?: { code: number }; error?: string };
    if (message.exit !== undefined) {
      this.end({ kind: "ended", code: message.exit.code });
    } else if (message.error !== undefined) {
      // It may go on after this; when it does not, this is why.
      this.lastError = message.error;
      this.note(message.error);
    }
  }

  private closed(event: CloseEvent): void {
    this.socket = null;
    const reason = this.lastError || event.reason || "The connection to the server was lost.";
    this.end({ kind: "failed", message: reason });
  }

  /** Say once how it ended: the server's word counts, and the closed connection after it adds nothing. */
  private end(state: ShellState): void {
    if (this.hasEnded) {
      return;
    }
    this.hasEnded = true;
    if (state.kind === "ended") {
      this.note(`ended with exit code ${state.code}; Enter starts again`);
    } else if (state.kind === "failed") {
      this.note("connection closed; Enter starts again");
    }
    this.options.onState(state);
  }

  private note(text: string): void {
    this.terminal.write(`\r\n\x1b[2m[${text}]\x1b[0m\r\n`);
  }
}
