/** The nonce under which style elements may be added to this page (`style-src 'nonce-…'`). */
export function cspNonce(): string {
  return document.querySelector<HTMLMetaElement>('meta[name="csp-nonce"]')?.content ?? "";
}
