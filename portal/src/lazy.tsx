import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ErrorBox } from "./ui/ErrorBox";
import { Spinner } from "./ui/Spinner";

export interface PageProps {
  params: Record<string, string | undefined>;
}

type Module = { default: ComponentType<PageProps> };

/** A page whose code is fetched when it is first shown. */
export function lazy(load: () => Promise<Module>): ComponentType<PageProps> {
  let loaded: ComponentType<PageProps> | null = null;
  return function Lazy(props: PageProps) {
    const [Shown, setShown] = useState<{ page: ComponentType<PageProps> | null }>({ page: loaded });
    const [error, setError] = useState<unknown>(null);
    useEffect(() => {
      if (loaded) return;
      load().then(
        (module) => {
          loaded = module.default;
          setShown({ page: loaded });
        },
        (reason: unknown) => setError(reason),
      );
    }, []);
    if (error !== null) {
      // After an upgrade of the server the old page asks for files that are gone.
      return (
        <div class="page">
          <ErrorBox error={new Error("its code could not be fetched; Stockade may have been upgraded")} onRetry={() => location.reload()} />
        </div>
      );
    }
    return Shown.page ? <Shown.page {...props} /> : <Spinner />;
  };
}
