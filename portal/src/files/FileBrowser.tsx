/** The files of a sandbox that lives: look around, bring files in by button or drag and drop, take them out, delete. */

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { files } from "../api";
import type { FileEntry } from "../api";
import { Button } from "../ui/Button";
import { Confirm } from "../ui/Dialog";
import { Empty } from "../ui/Empty";
import { ErrorBox } from "../ui/ErrorBox";
import { Spinner } from "../ui/Spinner";
import { toast } from "../ui/Toast";
import { FileTable } from "./FileTable";
import { FolderDialog } from "./FolderDialog";
import { UploadList } from "./UploadList";
import { crumbs, join, parent } from "./paths";
import { Uploads } from "./uploads";
import type { Upload } from "./uploads";

interface Listing {
  path: string;
  entries: FileEntry[];
}

/** Starts in the folder `start`. */
export default function FileBrowser({ sandboxId, start }: { sandboxId: string; start: string }) {
  const [path, setPath] = useState(start);
  const [listing, setListing] = useState<Listing | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [rows, setRows] = useState<Upload[]>([]);
  const [isOver, setIsOver] = useState(false);
  const [isNaming, setIsNaming] = useState(false);
  const [doomed, setDoomed] = useState<FileEntry | null>(null);
  const [colliding, setColliding] = useState<File[]>([]);
  const uploads = useRef<Uploads | null>(null);
  const picker = useRef<HTMLInputElement>(null);
  const shown = useRef(path);
  shown.current = path;

  const load = useCallback(
    async (wanted: string) => {
      try {
        const found = await files.list(sandboxId, wanted);
        // The user may have gone on meanwhile; then the answer that is on its way is the one to show.
        if (shown.current === wanted) {
          setListing(found);
          setError(null);
        }
      } catch (problem) {
        if (shown.current === wanted) {
          setError(problem);
        }
      }
    },
    [sandboxId],
  );

  useEffect(() => {
    void load(path);
  }, [path, load]);

  useEffect(() => {
    const made = new Uploads(
      (target, file, onProgress, signal) => files.upload(sandboxId, target, file, onProgress, signal),
      setRows,
      (upload) => {
        if (parent(upload.path) === shown.current) {
          void load(shown.current);
        }
      },
    );
    uploads.current = made;
    return () => made.dispose();
  }, [sandboxId, load]);

  const send = (chosen: File[]) => {
    for (const file of chosen) {
      uploads.current?.add(join(path, file.name), file);
    }
  };

  const bring = (chosen: File[]) => {
    const known = new Set(listing?.entries.map((entry) => entry.name));
    send(chosen.filter((file) => !known.has(file.name)));
    setColliding(chosen.filter((file) => known.has(file.name)));
  };

  const dropped = (event: DragEvent) => {
    event.preventDefault();
    setIsOver(false);
    const items = [...(event.dataTransfer?.items ?? [])].filter((item) => item.kind === "file");
    const isFolder = (item: DataTransferItem) => item.webkitGetAsEntry()?.isDirectory ?? false;
    if (items.some(isFolder)) {
      toast("Folders cannot be dropped here. Pack them into an archive, or drop their files.", "bad");
    }
    const found = items.filter((item) => !isFolder(item)).map((item) => item.getAsFile());
    bring(found.filter((file) => file !== null));
  };

  const remove = async (entry: FileEntry) => {
    await files.delete(sandboxId, join(path, entry.name));
    toast(`${entry.name} was deleted.`);
    await load(path);
  };

  const isHere = listing !== null && listing.path === path;
  return (
    <section
      class={isOver ? "files files-over" : "files"}
      aria-label="Files"
      onDragOver={(event) => {
        event.preventDefault();
        setIsOver(true);
      }}
      onDragLeave={(event) => {
        // Also sent when the pointer passes from one part of the list to another.
        if (!event.currentTarget.contains(event.relatedTarget as Node | null)) {
          setIsOver(false);
        }
      }}
      onDrop={dropped}
    >
      <div class="files-bar">
        <nav aria-label="Folder">
          <ol class="crumbs">
            {crumbs(path).map((crumb) => (
              <li key={crumb.path}>
                <button
                  type="button"
                  aria-current={crumb.path === path ? "location" : undefined}
                  onClick={() => setPath(crumb.path)}
                >
                  {crumb.name}
                </button>
              </li>
            ))}
          </ol>
        </nav>
        <div class="files-buttons">
          <Button small onClick={() => void load(path)}>
            Refresh
          </Button>
          <Button small onClick={() => setIsNaming(true)}>
            New folder
          </Button>
          <Button small kind="primary" onClick={() => picker.current?.click()}>
            Upload
          </Button>
          <input
            ref={picker}
            type="file"
            multiple
            hidden
            aria-label="Files to upload"
            onChange={(event) => {
              bring([...(event.currentTarget.files ?? [])]);
              // So that the same file can be chosen again.
              event.currentTarget.value = "";
            }}
          />
        </div>
      </div>
      <UploadList rows={rows} onCancel={(id) => uploads.current?.cancel(id)} onClear={() => uploads.current?.clear()} />
      {error !== null && <ErrorBox error={error} onRetry={() => void load(path)} />}
      {error !== null && path !== "/" && (
        <Button small onClick={() => setPath(parent(path))}>
          Go to {parent(path)}
        </Button>
      )}
      {error === null && !isHere && <Spinner label="Loading the folder" />}
      {error === null && isHere && listing.entries.length === 0 && (
        <Empty icon="folder" title="This folder is empty">
          <p>Drop files here, or use Upload.</p>
        </Empty>
      )}
      {error === null && isHere && listing.entries.length > 0 && (
        <FileTable
          sandboxId={sandboxId}
          path={path}
          entries={listing.entries}
          onOpen={(name) => setPath(join(path, name))}
          onDelete={setDoomed}
        />
      )}
      {isNaming && (
        <FolderDialog
          sandboxId={sandboxId}
          path={path}
          onClose={() => setIsNaming(false)}
          onMade={() => {
            setIsNaming(false);
            void load(path);
          }}
        />
      )}
      {doomed !== null && (
        <Confirm
          title={`Delete ${doomed.name}?`}
          action="Delete"
          onConfirm={() => remove(doomed)}
          onClose={() => setDoomed(null)}
        >
          {doomed.kind === "directory"
            ? "The folder and all that is in it are gone for good."
            : "The file is gone for good."}
        </Confirm>
      )}
      {colliding.length > 0 && (
        <Confirm
          title={colliding.length === 1 ? "Replace the file?" : `Replace ${colliding.length} files?`}
          action="Replace"
          onConfirm={() => {
            send(colliding);
            return Promise.resolve();
          }}
          onClose={() => setColliding([])}
        >
          {`In ${path} there is already ${colliding.map((file) => file.name).join(", ")}.`}
        </Confirm>
      )}
    </section>
  );
}
