/** How far each upload has come. */

import { bytes } from "../format";
import { Button } from "../ui/Button";
import type { Upload } from "./uploads";

export interface UploadListProps {
  rows: Upload[];
  onCancel(id: number): void;
  onClear(): void;
}

function words(row: Upload): string {
  switch (row.state) {
    case "waiting":
      return `${bytes(row.size)}, waiting`;
    case "sending":
      return `${bytes(row.sent)} of ${bytes(row.size)}`;
    case "done":
      return `${bytes(row.size)}, uploaded`;
    case "failed":
      return row.message;
    case "cancelled":
      return "cancelled";
  }
}

export function UploadList({ rows, onCancel, onClear }: UploadListProps) {
  if (rows.length === 0) {
    return null;
  }
  const isBusy = rows.some((row) => row.state === "waiting" || row.state === "sending");
  const done = rows.filter((row) => row.state === "done").length;
  return (
    <section class="uploads" aria-label="Uploads">
      <div class="uploads-head">
        <p role="status">{`${done} of ${rows.length} uploaded`}</p>
        {!isBusy && (
          <Button small onClick={onClear}>
            Clear
          </Button>
        )}
      </div>
      <ul>
        {rows.map((row) => (
          <li key={row.id} class={`upload upload-${row.state}`}>
            <span class="upload-name">{row.name}</span>
            <progress max={Math.max(1, row.size)} value={row.state === "done" ? Math.max(1, row.size) : row.sent}>
              {words(row)}
            </progress>
            <span class="upload-words">{words(row)}</span>
            {(row.state === "waiting" || row.state === "sending") && (
              <button type="button" class="link-button" aria-label={`Cancel ${row.name}`} onClick={() => onCancel(row.id)}>
                Cancel
              </button>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}
