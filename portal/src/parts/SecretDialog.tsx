/** Shows the secret of a key, this once. */

import { useId } from "preact/hooks";
import type { KeyWithSecret } from "../api";
import { Button } from "../ui/Button";
import { CopyButton } from "../ui/Copy";
import { Dialog } from "../ui/Dialog";
import { Notice } from "../ui/ErrorBox";

export function SecretDialog({ made, onClose }: { made: KeyWithSecret; onClose: () => void }) {
  const id = useId();
  return (
    <Dialog title={`The key ${made.key.name}`} onClose={onClose}>
      <div class="stack">
        <Notice tone="warn">
          <p>Copy it now. It is not shown again: who loses it rotates the key.</p>
        </Notice>
        <div class="field">
          <label for={id}>Secret</label>
          <div class="secret">
            <input
              id={id}
              type="text"
              class="mono"
              readOnly
              value={made.secret}
              autocomplete="off"
              spellcheck={false}
              onFocus={(event) => event.currentTarget.select()}
            />
            <CopyButton text={made.secret} small={false} />
          </div>
        </div>
        <div class="dialog-actions">
          <Button kind="primary" onClick={onClose}>
            I have copied it
          </Button>
        </div>
      </div>
    </Dialog>
  );
}
