import type { Sandbox } from "../api";
import { Badge } from "../ui/Badge";
import type { Tone } from "../ui/Badge";

const TONES: Record<string, Tone> = { creating: "busy", running: "good", stopping: "warn", ended: "neutral" };

const ENDINGS: Record<string, string> = {
  itself: "Its main process ended",
  stop: "It was stopped",
  kill: "It was killed",
  deadline: "Its time was over",
  limit: "It went past a limit",
  failure: "It could not be started",
  lost: "Its host went away",
};

/** What ended the sandbox, in words; empty while it lives. */
export function ending(sandbox: Sandbox): string {
  return sandbox.endedBy ? (ENDINGS[sandbox.endedBy] ?? sandbox.endedBy) : "";
}

export function SandboxBadge({ sandbox }: { sandbox: Sandbox }) {
  const isBad = sandbox.endedBy === "failure" || sandbox.endedBy === "lost" || sandbox.endedBy === "limit";
  return <Badge tone={isBad ? "bad" : (TONES[sandbox.state] ?? "neutral")}>{sandbox.state}</Badge>;
}
