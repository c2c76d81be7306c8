/** Asks what a new sandbox shall be. */

import { useState } from "preact/hooks";
import { ApiError, sandboxes } from "../api";
import type { Meta, Sandbox, SandboxRequest } from "../api";
import { Button } from "../ui/Button";
import { Dialog } from "../ui/Dialog";
import { ErrorBox } from "../ui/ErrorBox";
import { SelectField, TextField } from "../ui/Field";
import { problems } from "./problems";
import { splitWords, UnfinishedQuote } from "./words";

const MIB = 1024 * 1024;
const NETWORKS = [
  { value: "none", label: "None: only itself" },
  { value: "outgoing", label: "Outgoing: it may reach the internet" },
  { value: "exposed", label: "Exposed: its ports can be reached, too" },
] as const;

export interface SandboxFormProps {
  meta: Meta | undefined;
  onClose: () => void;
  onMade: (sandbox: Sandbox) => void;
}

const FIELDS = ["image", "command", "timeout_s", "wall_s", "memory_bytes", "network", "ports"];

/** What is found before it is sent, in the shape in which the server tells it. */
function wrongInput(field: string, message: string): ApiError {
  return new ApiError(0, "invalid", message, field);
}

/** The server counts in other units than this form. */
function counted(message: string | undefined, unit: string): string | undefined {
  return message && `${message}, counted in ${unit}.`;
}

/** The ports that were typed, or a sentence that says what is wrong with them. */
function portsOf(text: string): number[] | string {
  const ports = text.split(/[\s,]+/).filter((word) => word !== "");
  const wrong = ports.find((word) => !/^\d+$/.test(word) || Number(word) < 1 || Number(word) > 65535);
  return wrong === undefined ? ports.map(Number) : `${wrong} is not a port: those are numbers from 1 to 65535.`;
}

export function SandboxForm({ meta, onClose, onMade }: SandboxFormProps) {
  const [image, setImage] = useState("");
  const [command, setCommand] = useState("");
  const [minutes, setMinutes] = useState("");
  const [memory, setMemory] = useState("");
  const [network, setNetwork] = useState<string>("none");
  const [ports, setPorts] = useState("");
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);

  const most = meta?.max_limits.memory_bytes;
  const wrong = problems(error, FIELDS);

  const wanted = (): SandboxRequest => {
    const request: SandboxRequest = {};
    if (minutes !== "") request.timeout_s = Number(minutes) * 60;
    if (memory !== "") request.memory_bytes = Number(memory) * MIB;
    try {
      const words = splitWords(command);
      if (words.length > 0) request.command = words;
    } catch (reason) {
      throw reason instanceof UnfinishedQuote ? wrongInput("command", reason.message) : reason;
    }
    if (image.trim() !== "") request.image = image.trim();
    request.network = NETWORKS.find(({ value }) => value === network)?.value ?? "none";
    if (network === "exposed") {
      const found = portsOf(ports);
      if (typeof found === "string") throw wrongInput("ports", found);
      request.ports = found;
    }
    return request;
  };

  const make = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      onMade(await sandboxes.create(wanted()));
    } catch (reason) {
      setError(reason);
      setBusy(false);
    }
  };

  return (
    <Dialog title="New sandbox" onClose={onClose}>
      <form class="stack" onSubmit={(event) => void make(event)}>
        <TextField
          label="Image"
          optional
          value={image}
          onValue={setImage}
          error={wrong.at("image")}
          hint="Left empty: the programs of the server itself, with files of its own."
          autocomplete="off"
          spellcheck={false}
        />
        <TextField
          label="Command"
          optional
          value={command}
          onValue={setCommand}
          error={wrong.at("command")}
          hint="The sandbox ends with it. Left empty, it waits for you."
          autocomplete="off"
          spellcheck={false}
        />
        <div class="sandbox-limits">
          <TextField
            label="Life, minutes"
            type="number"
            min="0.5"
            step="any"
            optional
            value={minutes}
            onValue={setMinutes}
            error={wrong.at("timeout_s") ?? counted(wrong.at("wall_s"), "seconds")}
          />
          <TextField
            label="Memory, MiB"
            type="number"
            min="16"
            max={most ? String(Math.floor(most / MIB)) : undefined}
            optional
            value={memory}
            onValue={setMemory}
            error={counted(wrong.at("memory_bytes"), "bytes")}
          />
        </div>
        <p class="muted small">Left empty: an hour and 512 MiB, or what the plan of your account allows where that is less.</p>
        <SelectField label="Network" value={network} onValue={setNetwork} options={NETWORKS} error={wrong.at("network")} />
        {network === "exposed" && (
          <TextField
            label="Ports"
            value={ports}
            onValue={setPorts}
            error={wrong.at("ports")}
            hint="Those that programs inside listen on, for example 8080, 9000."
            autocomplete="off"
            inputMode="numeric"
          />
        )}
        {wrong.rest !== null && <ErrorBox error={wrong.rest} />}
        <div class="dialog-actions">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" busy={busy}>
            Make sandbox
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
