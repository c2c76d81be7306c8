import { useState } from "preact/hooks";
import { logIns } from "../api";
import type { LogIn } from "../api";
import { useLoad } from "../load";
import { Badge } from "../ui/Badge";
import { Button } from "../ui/Button";
import { Confirm } from "../ui/Dialog";
import { ErrorBox } from "../ui/ErrorBox";
import { Spinner } from "../ui/Spinner";
import { Table } from "../ui/Table";
import { Time } from "../ui/Time";
import { toast, toastError } from "../ui/Toast";
import { agentName } from "./agents";

/** Where the user is logged in, and how to end that. */
export function LogInsSection() {
  const { data, error, reload } = useLoad(logIns.list, []);
  const [isEnding, setIsEnding] = useState(false);
  const [busy, setBusy] = useState("");
  const end = async (login: LogIn) => {
    setBusy(login.id);
    try {
      await logIns.end(login.id);
      toast("That log-in has ended.");
      reload();
    } catch (reason) {
      toastError(reason);
    } finally {
      setBusy("");
    }
  };
  const hasOthers = data?.some((login) => !login.isCurrent) ?? false;
  return (
    <section class="card account-log-ins" aria-labelledby="log-ins">
      <div class="spread">
        <h2 id="log-ins">Where you are logged in</h2>
        {hasOthers && (
          <Button small kind="danger" onClick={() => setIsEnding(true)}>
            End all others
          </Button>
        )}
      </div>
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {data === undefined && error === null && <Spinner label="Loading log-ins" />}
      {data && (
        <Table
          caption="Log-ins"
          rows={data}
          rowKey={(login) => login.id}
          columns={[
            { title: "Browser", cell: (login) => <span title={login.agent}>{agentName(login.agent)}</span> },
            { title: "Address", cell: (login) => <code>{login.address || "unknown"}</code> },
            { title: "Since", cell: (login) => <Time at={login.createdAt} /> },
            { title: "Last used", cell: (login) => <Time at={login.usedAt} /> },
            {
              title: "Actions",
              isActions: true,
              cell: (login) =>
                login.isCurrent ? (
                  <Badge tone="good">this one</Badge>
                ) : (
                  <Button small busy={busy === login.id} onClick={() => void end(login)}>
                    <span>
                      End<span class="for-readers"> {agentName(login.agent)}</span>
                    </span>
                  </Button>
                ),
            },
          ]}
        />
      )}
      {isEnding && (
        <Confirm
          title="End all other log-ins?"
          action="End them"
          onConfirm={async () => {
            await logIns.endOthers();
            toast("All other log-ins have ended.");
            reload();
          }}
          onClose={() => setIsEnding(false)}
        >
          <p>Every other browser has to log in again. This one stays. API keys go on working.</p>
        </Confirm>
      )}
    </section>
  );
}
