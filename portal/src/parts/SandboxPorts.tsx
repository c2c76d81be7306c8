import type { Sandbox } from "../api";
import { Icon } from "../ui/Icon";

/** The ports of a sandbox: a link where a browser can open one. */
export function SandboxPorts({ sandbox }: { sandbox: Sandbox }) {
  return (
    <ul class="row">
      {sandbox.ports.map(({ port, protocol, url }) => (
        <li key={`${port}/${protocol}`}>
          {url && /^(https?:)?\//.test(url) && sandbox.state !== "ended" ? (
            <a class="sandbox-port" href={url} target="_blank" rel="noopener noreferrer">
              {port}/{protocol} <Icon name="external" size={13} />
              <span class="for-readers">, opens a new window</span>
            </a>
          ) : (
            <code>
              {port}/{protocol}
            </code>
          )}
        </li>
      ))}
    </ul>
  );
}
