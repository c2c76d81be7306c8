/** What the account used: over time, by outcome, by key. */

import { useState } from "preact/hooks";
import { keys as keysApi, usage as usageApi } from "../api";
import { useLoad } from "../load";
import { Choices } from "../parts/Choices";
import { KeyShares, UsageCharts } from "../parts/UsageCharts";
import { ButtonLink, DownloadLink } from "../ui/Button";
import { Empty } from "../ui/Empty";
import { ErrorBox } from "../ui/ErrorBox";
import { SelectField } from "../ui/Field";
import { Page } from "../ui/Page";
import { Spinner } from "../ui/Spinner";

const RANGES = [
  { name: "7", title: "7 days" },
  { name: "30", title: "30 days" },
  { name: "90", title: "90 days" },
] as const;
type Range = (typeof RANGES)[number]["name"];

export default function Usage() {
  const [range, setRange] = useState<Range>("30");
  const [key, setKey] = useState("");
  const days = Number(range);
  const { data, error, reload } = useLoad(() => usageApi.get({ days, key: key || undefined }), [days, key]);
  const known = useLoad(keysApi.list, []);
  const keys = known.data ?? [];

  return (
    <Page
      title="Usage"
      intro="Counted by UTC day, for runs and sandboxes of every protocol."
      actions={<DownloadLink href={usageApi.csvUrl(days)}>Export CSV</DownloadLink>}
      wide
    >
      <div class="usage-choices">
        <Choices label="How many days" options={RANGES} chosen={range} onChoose={setRange} />
        {keys.length > 1 && (
          <SelectField
            label="Key"
            class="usage-key"
            value={key}
            onValue={setKey}
            options={[{ value: "", label: "All keys" }, ...keys.map(({ id, name, preview }) => ({ value: id, label: name || preview }))]}
          />
        )}
      </div>
      {error !== null && <ErrorBox error={error} onRetry={reload} />}
      {data === undefined && error === null && <Spinner label="Loading usage" />}
      {data !== undefined && data.total.runs === 0 && (
        <Empty icon="chart" title="Nothing ran in this time">
          <p>Run a program in the playground, or call the API with one of your keys. It is counted here within a minute.</p>
          <ButtonLink href="/app/play" kind="primary">
            To the playground
          </ButtonLink>
        </Empty>
      )}
      {data !== undefined && data.total.runs > 0 && (
        <>
          <UsageCharts usage={data} days={days} />
          {key === "" && <KeyShares usage={data} />}
        </>
      )}
    </Page>
  );
}
