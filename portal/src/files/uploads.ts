/** Files on their way into a sandbox, one after the other, with how far each has come. */

export type UploadState = "waiting" | "sending" | "done" | "failed" | "cancelled";

export interface Upload {
  id: number;
  name: string;
  path: string;
  size: number;
  sent: number;
  state: UploadState;
  message: string;
}

export interface Sender {
  /** Send `file`; resolves once the server has it. Rejects with an Error that says why not. */
  (path: string, file: File, onProgress: (sent: number) => void, signal: AbortSignal): Promise<void>;
}

export class Uploads {
  private rows: Upload[] = [];
  private readonly files = new Map<number, File>();
  private readonly cancels = new Map<number, AbortController>();
  private next = 1;
  private isSending = false;

  constructor(
    private readonly sender: Sender,
    private readonly onChange: (rows: Upload[]) => void,
    private readonly onArrived: (upload: Upload) => void,
  ) {}

  add(path: string, file: File): void {
    const id = this.next++;
    this.files.set(id, file);
    this.rows = [...this.rows, { id, name: file.name, path, size: file.size, sent: 0, state: "waiting", message: "" }];
    this.onChange(this.rows);
    void this.sendAll();
  }

  cancel(id: number): void {
    this.cancels.get(id)?.abort();
    this.change(id, { state: "cancelled" });
  }

  /** Forget those that are over. */
  clear(): void {
    this.rows = this.rows.filter((row) => row.state === "waiting" || row.state === "sending");
    this.onChange(this.rows);
  }

  dispose(): void {
    for (const row of this.rows) {
      this.cancel(row.id);
    }
  }

  private change(id: number, change: Partial<Upload>): void {
    this.rows = this.rows.map((row) => (row.id === id ? { ...row, ...change } : row));
    this.onChange(this.rows);
  }

  private async sendAll(): Promise<void> {
    if (this.isSending) {
      return;
    }
    this.isSending = true;
    for (let row = this.waiting(); row !== undefined; row = this.waiting()) {
      await this.send(row);
    }
    this.isSending = false;
  }

  private waiting(): Upload | undefined {
    return this.rows.find((row) => row.state === "waiting");
  }

  private async send(row: Upload): Promise<void> {
    const file = this.files.get(row.id);
    const cancel = new AbortController();
    this.cancels.set(row.id, cancel);
    this.change(row.id, { state: "sending" });
    try {
      if (file !== undefined) {
        await this.sender(row.path, file, (sent) => this.change(row.id, { sent }), cancel.signal);
      }
      this.change(row.id, { state: "done", sent: row.size });
      this.onArrived(row);
    } catch (error) {
      if (!cancel.signal.aborted) {
        this.change(row.id, { state: "failed", message: error instanceof Error ? error.message : String(error) });
      }
    } finally {
      this.cancels.delete(row.id);
      this.files.delete(row.id);
    }
  }
}
