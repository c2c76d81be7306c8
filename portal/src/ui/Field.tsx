import type { ComponentChildren, JSX } from "preact";
import { useId } from "preact/hooks";

/** What an input inside a `Field` spreads onto itself, so that its label, hint and error belong to it. */
export interface InputProps {
  id: string;
  "aria-describedby": string | undefined;
  "aria-invalid": boolean | undefined;
}

interface FieldProps {
  label: string;
  hint?: ComponentChildren;
  error?: string | null;
  /** Say that it may stay empty. */
  optional?: boolean;
  /** Keep the label for screen readers only. */
  hideLabel?: boolean;
  class?: string;
}

/** A labelled input: `<Field label="Name">{(input) => <input {...input} />}</Field>`. */
export function Field({ label, hint, error, optional, hideLabel, class: more = "", children }: FieldProps & { children: (input: InputProps) => ComponentChildren }) {
  const id = useId();
  const described = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ");
  return (
    <div class={`field ${error ? "field-wrong" : ""} ${more}`}>
      <label for={id} class={hideLabel ? "for-readers" : ""}>
        {label}
        {optional && <span class="field-optional"> optional</span>}
      </label>
      {children({ id, "aria-describedby": described || undefined, "aria-invalid": error ? true : undefined })}
      {hint && (
        <p class="field-hint" id={`${id}-hint`}>
          {hint}
        </p>
      )}
      {error && (
        <p class="field-error" id={`${id}-error`}>
          {error}
        </p>
      )}
    </div>
  );
}

type TextProps = FieldProps & { value: string; onValue: (value: string) => void } & Omit<
    JSX.InputHTMLAttributes<HTMLInputElement>,
    "value" | "label" | "class" | "size"
  >;

/** One line of text (or `type="number"`, `"email"`, `"password"`, `"date"`, …). */
export function TextField({ label, hint, error, optional, hideLabel, class: more, value, onValue, ...input }: TextProps) {
  return (
    <Field {...{ label, hint, error, optional, hideLabel, class: more }}>
      {(props) => <input type="text" {...input} {...props} value={value} onInput={(event) => onValue(event.currentTarget.value)} />}
    </Field>
  );
}

type AreaProps = FieldProps & { value: string; onValue: (value: string) => void; rows?: number; spellcheck?: boolean; mono?: boolean };

export function AreaField({ value, onValue, rows = 3, spellcheck = false, mono = false, ...field }: AreaProps) {
  return (
    <Field {...field}>
      {(props) => (
        <textarea {...props} rows={rows} spellcheck={spellcheck} class={mono ? "mono" : ""} value={value} onInput={(event) => onValue(event.currentTarget.value)} />
      )}
    </Field>
  );
}

type SelectProps = FieldProps & {
  value: string;
  onValue: (value: string) => void;
  options: readonly { value: string; label: string; disabled?: boolean }[];
  disabled?: boolean;
};

export function SelectField({ value, onValue, options, disabled, ...field }: SelectProps) {
  return (
    <Field {...field}>
      {(props) => (
        <select {...props} value={value} disabled={disabled} onChange={(event) => onValue(event.currentTarget.value)}>
          {options.map((option) => (
            <option key={option.value} value={option.value} disabled={option.disabled}>
              {option.label}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}

export function CheckField({ label, checked, onChecked, disabled }: { label: string; checked: boolean; onChecked: (value: boolean) => void; disabled?: boolean }) {
  return (
    <label class="check">
      <input type="checkbox" checked={checked} disabled={disabled} onChange={(event) => onChecked(event.currentTarget.checked)} />
      <span>{label}</span>
    </label>
  );
}
