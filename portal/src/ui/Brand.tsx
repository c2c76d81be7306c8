import { Link } from "wouter-preact";

export function Brand({ href }: { href: string }) {
  return (
    <Link href={href} className="brand" aria-label="Stockade, start page">
      <svg width="22" height="22" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
        <path d="M6 27V11l3-4 3 4v16M13 27V8l3-4 3 4v19M20 27V11l3-4 3 4v16M3 15h26M3 21h26" />
      </svg>
      Stockade
    </Link>
  );
}
