/** One sandbox: what it is, its terminal, files, logs and ports, and the buttons that end it. */

import "../styles/sandboxes.css";

import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ApiError, sandboxes } from "../api";
import type { Sandbox } from "../api";
import { bytes, seconds, shortId } from "../format";
import type { PageProps } from "../lazy";
import { useLoad } from "../load";
import { ending, SandboxBadge } from "../parts/SandboxBadge";
import { SandboxLogs } from "../parts/SandboxLogs";
import { SandboxPorts } from "../parts/SandboxPorts";
import { Button, ButtonLink } from "../ui/Button";
import { CopyButton } from "../ui/Copy";
import { Confirm } from "../ui/Dialog";
import { Empty } from "../ui/Empty";
import { ErrorBox, Notice } from "../ui/ErrorBox";
import { Page } from "../ui/Page";
import { Spinner } from "../ui/Spinner";
import { Tabs } from "../ui/Tabs";
import { Time } from "../ui/Time";
import { toast, toastError } from "../ui/Toast";

type Tab = "terminal" | "files" | "logs";
const REFRESH_S = 3;
const EXTENSION_S = 30 * 60;

/** The server counts from now on, the button from the time at which the sandbox would end. */
function extended(deadlineAt: string): number {
  return Math.max(0, (new Date(deadlineAt).getTime() - Date.now()) / 1000) + EXTENSION_S;
}

/** A part whose code is fetched when it is first shown, and that stays as it is while another tab is shown. */
function Part<Props extends object>({ load, isShown, props }: { load: () => Promise<ComponentType<Props>>; isShown: boolean; props: Props }) {
  const [Shown, setShown] = useState<{ part: ComponentType<Props> } | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [wasShown, setWasShown] = useState(false);
  useEffect(() => {
    if (!isShown || wasShown) return;
    setWasShown(true);
    load().then(
      (part) => setShown({ part }),
      (reason: unknown) => setError(reason),
    );
  }, [isShown]);
  return (
    <div hidden={!isShown}>
      {error !== null && (
        <ErrorBox error={new Error("its code could not be fetched; Stockade may have been upgraded")} onRetry={() => location.reload()} />
      )}
      {error === null && (Shown === null ? <Spinner /> : <Shown.part {...props} />)}
    </div>
  );
}

const loadTerminal = () => import("../terminal/TerminalPanel").then((module) => module.default);
const loadFiles = () => import("../files/FileBrowser").then((module) => module.default);

export default function SandboxDetail({ params }: PageProps) {
  const id = params["id"] ?? "";
  const [every, setEvery] = useState<number | undefined>(REFRESH_S);
  const { data: sandbox, error, reload, set } = useLoad(() => sandboxes.get(id), [id], { every_s: every });
  const hasEnded = sandbox?.state === "ended";
  useEffect(() => {
    if (hasEnded) setEvery(undefined);
  }, [hasEnded]);

  if (error instanceof ApiError && error.status === 404) {
    return (
      <Page title="Sandbox">
        <Empty icon="box" title="There is no such sandbox">
          <p>It may have been deleted, or it belongs to another account.</p>
          <ButtonLink href="/app/sandboxes" kind="primary">
            All sandboxes
          </ButtonLink>
        </Empty>
      </Page>
    );
  }
  return (
    <Page title={`Sandbox ${shortId(id)}`} actions={sandbox && !hasEnded && <Actions sandbox={sandbox} onChange={set} />} wide>
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {sandbox === undefined && error === null && <Spinner label="Loading the sandbox" />}
      {sandbox && (
        <>
          {hasEnded && <Ended sandbox={sandbox} />}
          <Facts sandbox={sandbox} />
          <Inside sandbox={sandbox} />
        </>
      )}
    </Page>
  );
}

function Actions({ sandbox, onChange }: { sandbox: Sandbox; onChange: (sandbox: Sandbox) => void }) {
  const [busy, setBusy] = useState("");
  const [isKilling, setIsKilling] = useState(false);
  const { deadlineAt } = sandbox;
  const run = async (name: string, change: () => Promise<Sandbox>, said: string) => {
    setBusy(name);
    try {
      onChange(await change());
      toast(said);
    } catch (error) {
      toastError(error);
    } finally {
      setBusy("");
    }
  };
  return (
    <>
      {deadlineAt && (
        <Button
          busy={busy === "extend"}
          icon="plus"
          onClick={() => void run("extend", () => sandboxes.extend(sandbox.id, extended(deadlineAt)), "The sandbox has 30 minutes more.")}
        >
          30 minutes more
        </Button>
      )}
      <Button
        busy={busy === "stop"}
        icon="stop"
        disabled={sandbox.state !== "running"}
        onClick={() => void run("stop", () => sandboxes.stop(sandbox.id), "The sandbox was asked to stop.")}
      >
        Stop
      </Button>
      <Button kind="danger" onClick={() => setIsKilling(true)}>
        Kill
      </Button>
      {isKilling && (
        <Confirm
          title="Kill the sandbox?"
          action="Kill"
          onConfirm={async () => onChange(await sandboxes.kill(sandbox.id))}
          onClose={() => setIsKilling(false)}
        >
          <p>All that runs in it ends at once, without a chance to finish, and its files are gone. Stop asks its main process first.</p>
        </Confirm>
      )}
    </>
  );
}

function Ended({ sandbox }: { sandbox: Sandbox }) {
  return (
    <Notice tone={sandbox.endedBy === "itself" || sandbox.endedBy === "stop" || sandbox.endedBy === "kill" ? "info" : "warn"}>
      <p>
        {ending(sandbox) || "It has ended"}, <Time at={sandbox.endedAt} />
        {sandbox.exitCode !== null && sandbox.exitCode !== undefined && `, with exit code ${sandbox.exitCode}`}.
      </p>
      {sandbox.message !== "" && <p>{sandbox.message}</p>}
    </Notice>
  );
}

function Facts({ sandbox }: { sandbox: Sandbox }) {
  const { memory_bytes: memory, wall_s: wall } = sandbox.limits;
  const labels = Object.entries(sandbox.labels);
  return (
    <section class="card sandbox-facts" aria-label="About the sandbox">
      <dl class="facts">
        <dt>State</dt>
        <dd>
          <SandboxBadge sandbox={sandbox} />
        </dd>
        <dt>Id</dt>
        <dd class="row">
          <code class="break">{sandbox.id}</code>
          <CopyButton text={sandbox.id} />
        </dd>
        <dt>Image</dt>
        <dd>
          <code>{sandbox.image}</code>
        </dd>
        <dt>Command</dt>
        <dd>{sandbox.command.length > 0 ? <code>{sandbox.command.join(" ")}</code> : "none: it waits"}</dd>
      </dl>
      <dl class="facts">
        <dt>Made</dt>
        <dd>
          <Time at={sandbox.createdAt} />
        </dd>
        {sandbox.state !== "ended" && (
          <>
            <dt>Ends</dt>
            <dd>{sandbox.deadlineAt ? <Time at={sandbox.deadlineAt} /> : "when it is stopped"}</dd>
          </>
        )}
        <dt>Limits</dt>
        <dd>{[memory && `${bytes(memory)} memory`, wall && `${seconds(wall)} life`].filter(Boolean).join(", ") || "none"}</dd>
        <dt>Network</dt>
        <dd>{sandbox.network.mode}</dd>
        {sandbox.ports.length > 0 && (
          <>
            <dt>Ports</dt>
            <dd>
              <SandboxPorts sandbox={sandbox} />
            </dd>
          </>
        )}
        {labels.length > 0 && (
          <>
            <dt>Labels</dt>
            <dd>
              <code>{labels.map(([name, value]) => `${name}=${value}`).join(" ")}</code>
            </dd>
          </>
        )}
      </dl>
    </section>
  );
}

function Inside({ sandbox }: { sandbox: Sandbox }) {
  const hasEnded = sandbox.state === "ended";
  const [chosen, setChosen] = useState<Tab>("terminal");
  if (sandbox.state === "creating") {
    return <Spinner label="The sandbox is being made" />;
  }
  const tab = hasEnded ? "logs" : chosen;
  const tabs: { name: Tab; title: string }[] = hasEnded
    ? [{ name: "logs", title: "Logs" }]
    : [
        { name: "terminal", title: "Terminal" },
        { name: "files", title: "Files" },
        { name: "logs", title: "Logs" },
      ];
  return (
    <Tabs label="Inside the sandbox" tabs={tabs} chosen={tab} onChoose={setChosen}>
      {!hasEnded && (
        <>
          <Part
            load={loadTerminal}
            isShown={tab === "terminal"}
            props={{ sandboxId: sandbox.id, hasMain: sandbox.command.length > 0 }}
          />
          <Part load={loadFiles} isShown={tab === "files"} props={{ sandboxId: sandbox.id, start: sandbox.cwd || "/" }} />
        </>
      )}
      {tab === "logs" && <SandboxLogs sandbox={sandbox} />}
    </Tabs>
  );
}
