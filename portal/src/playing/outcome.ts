/** How jobs are told about. */

import type { JobResult, JobState, JobSummary } from "../api";
import { bytes, limit } from "../format";
import type { Tone } from "../ui/Badge";

type Told = Pick<JobSummary, "state" | "limits"> & { result?: Partial<JobResult> | null; runAt?: string | null };

const TONES: Record<JobState, Tone> = { queued: "neutral", running: "busy", succeeded: "good", failed: "bad", cancelled: "warn" };

export const stateTone = (state: JobState): Tone => TONES[state] ?? "neutral";

/** In a sentence: what became of it. */
export function told(job: Told): string {
  if (job.state === "queued") return "Waiting for a worker";
  if (job.state === "running") return "Running";
  const result = job.result;
  if (!result) return job.state === "cancelled" ? "Cancelled" : "Ended";
  if (result.compilationFailed) return "Did not compile";
  switch (result.outcome) {
    case "exited":
      return result.exitCode === 0 ? "Ended well" : `Ended with status ${result.exitCode}`;
    case "signaled":
      return `Killed by signal ${result.signal}`;
    case "wall_time":
      return job.limits.wall_s ? `Stopped: longer than ${limit(job.limits.wall_s)}` : "Stopped: took too long";
    case "cpu_time":
      return "Stopped: used too much CPU time";
    case "memory":
      return job.limits.memory_bytes ? `Stopped: more memory than ${bytes(job.limits.memory_bytes)}` : "Stopped: used too much memory";
    case "output":
      return "Stopped: printed too much";
    case "processes":
      return "Failed: too many processes";
    case "disk":
      return "Failed: its disk was full";
    case "cancelled":
      return "Cancelled";
    case "lost":
      return "Lost: its worker went away";
    default:
      return result.message || (job.state === "cancelled" ? "Cancelled" : "Failed");
  }
}
