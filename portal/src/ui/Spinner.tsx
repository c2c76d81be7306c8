/** Something is being fetched. It shows after a moment only, so that quick answers do not flicker. */
export function Spinner({ label = "Loading" }: { label?: string }) {
  return (
    <div class="loading" role="status">
      <span class="spinner" aria-hidden="true" />
      <span class="for-readers">{label}</span>
    </div>
  );
}
