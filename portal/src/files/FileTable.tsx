/** The entries of one folder. */

import { files } from "../api";
import type { FileEntry } from "../api";
import { bytes, moment } from "../format";
import { Button, DownloadLink } from "../ui/Button";
import { Icon } from "../ui/Icon";
import type { IconName } from "../ui/Icon";
import { Table } from "../ui/Table";
import { join, permissions } from "./paths";

export interface FileTableProps {
  sandboxId: string;
  path: string;
  entries: FileEntry[];
  onOpen(name: string): void;
  onDelete(entry: FileEntry): void;
}

const ICONS: Record<FileEntry["kind"], IconName> = { directory: "folder", file: "file", link: "share", other: "info" };
const KINDS: Record<FileEntry["kind"], string> = { directory: "folder", file: "file", link: "link", other: "special file" };

/** Folders first, then by name as people sort. */
function sorted(entries: FileEntry[]): FileEntry[] {
  const isFile = (entry: FileEntry) => Number(entry.kind !== "directory");
  return [...entries].sort(
    (one, other) => isFile(one) - isFile(other) || one.name.localeCompare(other.name, undefined, { numeric: true }),
  );
}

function Name({ entry, onOpen }: { entry: FileEntry; onOpen(name: string): void }) {
  const canOpen = entry.kind === "directory" || entry.kind === "link";
  return (
    <span class={`file-name file-${entry.kind}`}>
      <Icon name={ICONS[entry.kind]} />
      <span class="for-readers">{KINDS[entry.kind]} </span>
      {canOpen ? (
        <button type="button" class="link-button" onClick={() => onOpen(entry.name)}>
          {entry.name}
        </button>
      ) : (
        <span>{entry.name}</span>
      )}
    </span>
  );
}

export function FileTable({ sandboxId, path, entries, onOpen, onDelete }: FileTableProps) {
  return (
    <div class="table-frame file-table">
      <Table
        caption={`Files in ${path}`}
        rows={sorted(entries)}
        rowKey={(entry) => entry.name}
        columns={[
          { title: "Name", cell: (entry) => <Name entry={entry} onOpen={onOpen} /> },
          { title: "Size", isNumber: true, cell: (entry) => (entry.kind === "file" ? bytes(entry.sizeBytes) : "–") },
          { title: "Modified", cell: (entry) => <time dateTime={entry.modifiedAt}>{moment(entry.modifiedAt)}</time> },
          { title: "Mode", cell: (entry) => <code>{permissions(entry.mode)}</code> },
          {
            title: "Actions",
            isActions: true,
            cell: (entry) => (
              <>
                {entry.kind === "file" && (
                  <DownloadLink small kind="quiet" href={files.contentUrl(sandboxId, join(path, entry.name))} download={entry.name}>
                    <span>
                      Download<span class="for-readers"> {entry.name}</span>
                    </span>
                  </DownloadLink>
                )}
                <Button small kind="quiet" icon="trash" onClick={() => onDelete(entry)}>
                  <span>
                    Delete<span class="for-readers"> {entry.name}</span>
                  </span>
                </Button>
              </>
            ),
          },
        ]}
      />
    </div>
  );
}
