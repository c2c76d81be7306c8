import { CopyButton, Dialog, TextField } from "../ui";

export function ShareDialog({ link, onClose }: { link: string; onClose: () => void }) {
  return (
    <Dialog title="Share this program" onClose={onClose}>
      <div class="stack">
        <p>
          The link holds the program, its input and its arguments. They stand after the <code>#</code>: nothing is kept on the server, and
          whoever has the link can read them.
        </p>
        <TextField label="Link" value={link} onValue={() => undefined} readOnly class="mono" onFocus={(event) => event.currentTarget.select()} />
        <div class="dialog-actions">
          <CopyButton text={link} label="Copy link" small={false} />
        </div>
      </div>
    </Dialog>
  );
}
