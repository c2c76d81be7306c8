/** One job followed from start to end: its state and what it prints, as it happens. */

import * as api from "../api";

export interface Segment {
  stream: "stdout" | "stderr";
  text: string;
}

export interface Followed {
  job: api.Job;
  segments: Segment[];
}

const POLL_MS = 1_000;
const MOST_SHOWN = 256 * 1024; // characters; a browser stumbles over megabytes in one element

export const hasEnded = (state: api.JobState): boolean => state === "succeeded" || state === "failed" || state === "cancelled";

function joined(segments: readonly Segment[], stream: Segment["stream"]): string {
  return segments
    .filter((segment) => segment.stream === stream)
    .map((segment) => segment.text)
    .join("");
}

/** What to show of an ended job: in the order in which it was printed where that is known, else one stream after the other. */
function settled(job: api.Job, live: Segment[]): Segment[] {
  const { stdout = "", stderr = "" } = job.result ?? {};
  if (joined(live, "stdout") === stdout && joined(live, "stderr") === stderr) return live;
  const both: Segment[] = [
    { stream: "stdout", text: stdout },
    { stream: "stderr", text: stderr },
  ];
  return both.filter((segment) => segment.text !== "");
}

/** What of *segments* is put on the page: the beginning, and how many characters are left out. */
export function shown(segments: readonly Segment[]): { segments: Segment[]; left: number } {
  const kept: Segment[] = [];
  let room = MOST_SHOWN;
  let left = 0;
  for (const segment of segments) {
    const text = segment.text.slice(0, Math.max(room, 0));
    if (text) kept.push({ stream: segment.stream, text });
    left += segment.text.length - text.length;
    room -= text.length;
  }
  return { segments: kept, left };
}

/**
 * Tell *onChange* of everything that happens to *job* until it has ended.
 *
 * The browser opens a stream that breaks again by itself; what was printed then comes once more from its beginning.
 * Where it gives up, the job is asked for every second. Returns what stops following.
 */
export function follow(job: api.Job, onChange: (now: Followed) => void, onError: (error: unknown) => void): () => void {
  let now: Followed = { job, segments: [] };
  let isOver = false;
  let frame = 0;
  let timer = 0;
  const source = new EventSource(api.jobs.eventsUrl(job.id));

  const stop = () => {
    isOver = true;
    source.close();
    cancelAnimationFrame(frame);
    clearTimeout(timer);
  };
  const tell = () => {
    // A program may print thousands of pieces a second; the page is drawn sixty times.
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => onChange(now));
  };
  const take = (fresh: api.Job) => {
    if (hasEnded(fresh.state)) {
      stop();
      onChange({ job: fresh, segments: settled(fresh, now.segments) });
      return;
    }
    const isNewRun = fresh.state === "running" && now.job.attempts !== fresh.attempts;
    now = { job: fresh, segments: isNewRun ? [] : now.segments };
    tell();
  };
  const poll = async () => {
    try {
      take(await api.jobs.get(job.id));
    } catch (error) {
      if (isOver) return;
      if (error instanceof api.ApiError && error.status !== 0 && error.status < 500) {
        stop();
        onError(error);
        return;
      }
    }
    if (!isOver) timer = window.setTimeout(() => void poll(), POLL_MS);
  };

  source.addEventListener("open", () => {
    now = { job: now.job, segments: [] };
  });
  source.addEventListener("state", (event) => take(JSON.parse((event as MessageEvent<string>).data) as api.Job));
  source.addEventListener("output", (event) => {
    const piece = JSON.parse((event as MessageEvent<string>).data) as api.OutputPiece;
    const last = now.segments.at(-1);
    const segments =
      last?.stream === piece.stream
        ? [...now.segments.slice(0, -1), { stream: piece.stream, text: last.text + piece.text }]
        : [...now.segments, { stream: piece.stream, text: piece.text }];
    now = { job: now.job, segments };
    tell();
  });
  source.addEventListener("failure", () => {
    source.close();
    void poll();
  });
  source.addEventListener("error", () => {
    if (!isOver && source.readyState === EventSource.CLOSED) void poll();
  });
  return stop;
}
