import "../styles/choices.css";

interface ChoicesProps<Name extends string> {
  label: string;
  options: readonly { name: Name; title: string }[];
  chosen: Name;
  onChoose: (name: Name) => void;
}

/** Buttons of which one is pressed: which of a few things the page shows. */
export function Choices<Name extends string>({ label, options, chosen, onChoose }: ChoicesProps<Name>) {
  return (
    <div class="choices" role="group" aria-label={label}>
      {options.map(({ name, title }) => (
        <button key={name} type="button" aria-pressed={name === chosen} onClick={() => onChoose(name)}>
          {title}
        </button>
      ))}
    </div>
  );
}
