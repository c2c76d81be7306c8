/** What the main process of a sandbox printed; follows it while it lives. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { sandboxes } from "../api";
import type { Sandbox } from "../api";
import { useLoad } from "../load";
import { Button } from "../ui/Button";
import { CopyButton } from "../ui/Copy";
import { Empty } from "../ui/Empty";
import { ErrorBox } from "../ui/ErrorBox";
import { CheckField } from "../ui/Field";
import { Spinner } from "../ui/Spinner";
import { Choices } from "./Choices";

type Stream = "stdout" | "stderr";
const STREAMS: { name: Stream; title: string }[] = [
  { name: "stdout", title: "Standard output" },
  { name: "stderr", title: "Standard error" },
];
const REFRESH_S = 2;
/** More text than this makes a browser slow; what is shown then is the end. */
const MOST_SHOWN = 512 * 1024;

export function SandboxLogs({ sandbox }: { sandbox: Sandbox }) {
  const [stream, setStream] = useState<Stream>("stdout");
  const [follows, setFollows] = useState(true);
  const output = useRef<HTMLPreElement>(null);
  const hasEnded = sandbox.state === "ended";
  const { data, error, reload } = useLoad(
    async () => ({ stream, text: await sandboxes.logs(sandbox.id, stream) }),
    // Once more when it has ended: what it printed last.
    [sandbox.id, stream, hasEnded],
    { every_s: follows && !hasEnded ? REFRESH_S : undefined },
  );
  const text = data?.stream === stream ? data.text : undefined;
  const shown = text?.slice(-MOST_SHOWN);

  useLayoutEffect(() => {
    if (follows && output.current) {
      output.current.scrollTop = output.current.scrollHeight;
    }
  }, [shown, follows]);
  useEffect(() => setFollows(true), [stream]);

  return (
    <div class="stack">
      <div class="spread">
        <Choices label="Which output" options={STREAMS} chosen={stream} onChoose={setStream} />
        <div class="row">
          {!hasEnded && <CheckField label="Follow" checked={follows} onChecked={setFollows} />}
          <Button small icon="refresh" onClick={reload}>
            Refresh
          </Button>
          {text && <CopyButton text={text} />}
        </div>
      </div>
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {text === undefined && error === null && <Spinner label="Loading the output" />}
      {text === "" && (
        <Empty icon="terminal" title={stream === "stdout" ? "Nothing on standard output" : "Nothing on standard error"}>
          <p>
            {sandbox.command.length > 0
              ? "Its main process has printed nothing here."
              : "This sandbox has no main process. What runs in the terminal is shown only there."}
          </p>
        </Empty>
      )}
      {shown && (
        <pre
          ref={output}
          class={`output sandbox-log ${stream === "stderr" ? "output-stderr" : ""}`}
          tabIndex={0}
          role="log"
          aria-live="off"
          aria-label={stream === "stdout" ? "Standard output" : "Standard error"}
        >
          {text !== undefined && text.length > MOST_SHOWN && "[earlier output is not shown]\n"}
          {shown}
        </pre>
      )}
    </div>
  );
}
