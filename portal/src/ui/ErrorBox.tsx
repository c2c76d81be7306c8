import type { ComponentChildren } from "preact";
import { ApiError } from "../api";
import { Button } from "./Button";
import { Icon } from "./Icon";

export function messageOf(error: unknown): string {
  if (error instanceof ApiError) {
    const wait = error.retryAfterS;
    return wait && !/\d/.test(error.message) ? `${error.message} Try again in ${wait} s.` : error.message;
  }
  return error instanceof Error ? `Something went wrong in this page: ${error.message}` : "Something went wrong in this page.";
}

/** What went wrong, read out at once; with *onRetry* a button that tries again. */
export function ErrorBox({ error, onRetry, children }: { error: unknown; onRetry?: () => void; children?: ComponentChildren }) {
  return (
    <div class="notice notice-bad" role="alert">
      <Icon name="alert" />
      <div>
        <p>{messageOf(error)}</p>
        {children}
        {onRetry && (
          <Button small icon="refresh" onClick={onRetry}>
            Try again
          </Button>
        )}
      </div>
    </div>
  );
}

/** Something to know: not an error. */
export function Notice({ tone = "info", children }: { tone?: "info" | "good" | "warn"; children: ComponentChildren }) {
  return (
    <div class={`notice notice-${tone}`} role="status">
      <Icon name={tone === "good" ? "check" : tone === "warn" ? "alert" : "info"} />
      <div>{children}</div>
    </div>
  );
}
