import type { ComponentChildren } from "preact";
import { bytes, seconds } from "../format";
import { Badge } from "../ui";
import { shown, type Followed } from "./follow";
import { stateTone, told } from "./outcome";

/** State and figures of a job. Read out when they change. */
export function Summary({ job, children }: { job: Followed["job"]; children?: ComponentChildren }) {
  const result = job.result;
  return (
    <div class="summary">
      <div class="spread">
        <p role="status" class="row">
          <Badge tone={stateTone(job.state)}>{job.state}</Badge>
          <span>{told(job)}</span>
        </p>
        {children}
      </div>
      {result && (
        <dl class="summary-figures">
          <div>
            <dt>Time</dt>
            <dd>{seconds(result.durationS)}</dd>
          </div>
          <div>
            <dt>CPU</dt>
            <dd>{seconds(result.cpuS)}</dd>
          </div>
          <div>
            <dt>Memory</dt>
            <dd>{bytes(result.memoryPeakBytes)}</dd>
          </div>
          <div>
            <dt>Exit code</dt>
            <dd>{result.exitCode ?? "–"}</dd>
          </div>
        </dl>
      )}
      {result?.message && !told(job).includes(result.message) && <p class="muted small break">{result.message}</p>}
    </div>
  );
}

/** What a job printed. */
export function Output({ job, segments }: Followed) {
  const { segments: parts, left } = shown(segments);
  const isCut = Boolean(job.result?.stdoutTruncated || job.result?.stderrTruncated);
  return (
    <>
      <pre class="output" tabIndex={0} role="region" aria-label="Output">
        {parts.length === 0 ? (
          <span class="muted">{job.result ? "It printed nothing." : "Nothing printed yet."}</span>
        ) : (
          parts.map((part, at) => (
            <span key={at} class={part.stream === "stderr" ? "output-stderr" : ""}>
              {part.text}
            </span>
          ))
        )}
      </pre>
      {left > 0 && <p class="muted small">{left.toLocaleString("en")} characters more are not shown here.</p>}
      {isCut && <p class="muted small">It printed more than is kept; the rest is gone.</p>}
    </>
  );
}
