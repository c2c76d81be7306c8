import { useEffect, useState } from "preact/hooks";
import { moment, relative } from "../format";

/** How long ago (or until); the full date in a tooltip. */
export function Time({ at }: { at: string | null | undefined }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 10_000);
    return () => clearInterval(timer);
  }, []);
  if (!at) return <span>–</span>;
  return (
    <time dateTime={at} title={moment(at)}>
      {relative(at, now)}
    </time>
  );
}
