import type { ComponentChildren } from "preact";

export interface Column<Row> {
  title: string;
  cell: (row: Row) => ComponentChildren;
  /** Figures stand at the right. */
  isNumber?: boolean;
  /** A column of buttons: its title is for screen readers. */
  isActions?: boolean;
}

interface TableProps<Row> {
  /** What the table lists; read out before it. */
  caption: string;
  columns: readonly Column<Row>[];
  rows: readonly Row[];
  rowKey: (row: Row) => string;
  /** The first cell names its row. */
  showCaption?: boolean;
}

/** A table that turns into cards on a phone. */
export function Table<Row>({ caption, columns, rows, rowKey, showCaption = false }: TableProps<Row>) {
  return (
    <table class="table">
      <caption class={showCaption ? "" : "for-readers"}>{caption}</caption>
      <thead>
        <tr>
          {columns.map((column) => (
            <th key={column.title} scope="col" class={column.isNumber ? "number" : ""}>
              {column.isActions ? <span class="for-readers">{column.title}</span> : column.title}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => (
          <tr key={rowKey(row)}>
            {columns.map((column) => (
              <td key={column.title} data-title={column.isActions ? undefined : column.title} class={column.isNumber ? "number" : column.isActions ? "actions" : ""}>
                {column.cell(row)}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}
